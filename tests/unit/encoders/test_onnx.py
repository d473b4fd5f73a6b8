import subprocess
import sys

import numpy as np
import pytest

from rayrec.config import EncoderConfig
from rayrec.encoders.onnx import OnnxTextEncoder, export
from rayrec.encoders.text import TextModel, TorchTextEncoder
from rayrec.errors import IncompatibleArtifact, RayrecError
from tests.fakes import make_tiny_model

pytestmark = pytest.mark.model

# 1 to 64 tokens, in batches of other sizes than the two texts an export is traced with.
TEXTS = [
    "red",
    "usb c cable",
    "",
    "frozen pizza , thin crust with four cheeses",
    "blue shoe " * 9,
    "over ear " * 200,
    "a",
]


@pytest.fixture(scope="module", params=["bert", "gpt2", "minilm"])
def exported(request, tmp_path_factory):
    """(the model, the directory of its export)"""
    name = request.param
    if name != "minilm":
        name = str(make_tiny_model(tmp_path_factory.mktemp(name), name))
    directory = tmp_path_factory.mktemp("export")
    export(EncoderConfig(model=name, max_tokens=64), directory)
    return TextModel.read(name, max_tokens=64), directory


def test_an_export_agrees_with_torch_at_other_shapes_than_traced(exported):
    model, directory = exported
    torch_encoder = TorchTextEncoder(model, device="cpu")
    for batch_size in (1, 3, 16):
        encoder = OnnxTextEncoder(directory, batch_size=batch_size)
        assert (encoder.encode(TEXTS) * torch_encoder.encode(TEXTS)).sum(1).min() >= 0.999
    assert (encoder.id.space, encoder.id.variant, encoder.dim) == (model.space, "onnx-fp32", torch_encoder.dim)
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_a_batch_equals_its_texts_one_by_one(exported):
    encoder = OnnxTextEncoder(exported[1])
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5)


def test_int8_is_close_to_fp32_and_a_vector_does_not_depend_on_its_batch(exported, tmp_path):
    model, directory = exported
    export(EncoderConfig(model=str(model.directory), max_tokens=64, precision="int8"), tmp_path)
    small, whole = OnnxTextEncoder(tmp_path), OnnxTextEncoder(directory)
    assert small.id.variant == "onnx-int8"
    assert (small.encode(TEXTS) * whole.encode(TEXTS)).sum(1).min() > 0.95
    alone = np.concatenate([small.encode([text]) for text in TEXTS])
    np.testing.assert_array_equal(small.encode(TEXTS), alone)


def test_an_export_keeps_the_prefixes(tmp_path):
    tiny = str(make_tiny_model(tmp_path / "bert", "bert"))
    export(EncoderConfig(model=tiny, max_tokens=64, query_prefix="red ", passage_prefix="blue "), tmp_path / "out")
    encoder = OnnxTextEncoder(tmp_path / "out")
    reference = TorchTextEncoder(TextModel.read(tiny, max_tokens=64), device="cpu")
    np.testing.assert_allclose(encoder.encode(["shoe"], "query"), reference.encode(["red shoe"]), atol=1e-5)
    np.testing.assert_allclose(encoder.encode(["shoe"]), reference.encode(["blue shoe"]), atol=1e-5)


def test_encoding_needs_neither_torch_nor_transformers(exported):
    code = (
        "import sys; from rayrec.encoders.onnx import OnnxTextEncoder\n"
        "assert OnnxTextEncoder(sys.argv[1]).encode(['usb c cable']).shape[0] == 1\n"
        "print([name for name in ('torch', 'transformers', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(exported[1])], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "encoder.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty object"])
def test_a_broken_export_is_refused_by_directory(tmp_path, whole, name, damage):
    for file in whole.iterdir():
        data = file.read_bytes()
        if file.name == name:
            data = {"missing": None, "truncated": data[: len(data) // 2], "empty object": b"{}"}[damage]
        if data is not None:
            (tmp_path / file.name).write_bytes(data)
    with pytest.raises(IncompatibleArtifact, match=str(tmp_path)):
        OnnxTextEncoder(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An export, made in this process: the seconds it takes to import torch are spent."""
    from rayrec.encoders.onnx import _export_here

    directory = tmp_path_factory.mktemp("whole")
    tiny = make_tiny_model(tmp_path_factory.mktemp("bert"), "bert")
    _export_here(EncoderConfig(model=str(tiny), max_tokens=64), directory)
    return directory


def test_what_cannot_be_exported_says_why(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(RayrecError, match=r"cannot be exported to ONNX \(.*nonsense.*\); set encoder.runtime: torch"):
        export(EncoderConfig(model=str(tmp_path)), tmp_path / "out")
    with pytest.raises(RayrecError, match=r"cannot be exported to ONNX \(.*no such directory"):
        export(EncoderConfig(model=str(tmp_path / "nowhere")), tmp_path / "out")
