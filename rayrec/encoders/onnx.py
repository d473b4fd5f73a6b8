"""Text models on onnxruntime: exported once, then run without torch.

An export is a directory of `model.onnx` (pooling and normalising included), `tokenizer.json` and
`encoder.json`. Exporting needs torch, so it is a process of its own: whoever asks for vectors never
imports it. On one core it encodes about as fast as torch in batches and 2.8 times as fast one by one.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rayrec.encoders.base import EncoderId, by_length
from rayrec.encoders.text import TextModel, TorchTextEncoder, load_tokenizer, pad
from rayrec.errors import IncompatibleArtifact, RayrecError

VARIANT = "onnx-fp32"
MIN_COSINE = 0.999
_PROBES = [
    "usb c cable",
    "Frozen pizza, thin crust with four cheeses, 12 oz",
    "a",
    "Wireless noise-cancelling over-ear headphones with a 40 hour battery, carrying case and cable. " * 4,
]


def export(model: str, max_tokens: int, directory: Path) -> None:
    """Export a text model into `directory`, in a process of its own. Raises RayrecError with its reason."""
    command = [sys.executable, "-m", "rayrec.encoders.onnx", model, str(max_tokens), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RayrecError(f"{model}: cannot be exported to ONNX ({reason}); set encoder.runtime: torch")


def _export_here(name: str, max_tokens: int, directory: Path) -> None:
    import warnings

    import torch

    model = TextModel.read(name, max_tokens=max_tokens)
    reference = TorchTextEncoder(model, device="cpu", batch_size=4)
    tokenizer = load_tokenizer(model.directory, model.max_tokens)
    example = tuple(torch.from_numpy(a) for a in pad(tokenizer.encode_batch(_PROBES[:2])))
    axes = {0: "batch", 1: "tokens"}
    directory.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracer notes; what they warn of is checked below at other shapes
        torch.onnx.export(
            reference._module,
            example,
            str(directory / "model.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["embedding"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "embedding": {0: "batch"}},
            opset_version=17,
            dynamo=False,  # 2 s against 20 s or more, and needs no further package
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "encoder.json").write_text(
        json.dumps({"space": model.space, "dim": reference.dim, "max_tokens": model.max_tokens})
    )
    exported = OnnxTextEncoder(directory)
    for probes in (_PROBES, _PROBES[2:3]):
        cosine = float((reference.encode(probes) * exported.encode(probes)).sum(1).min())
        if not cosine >= MIN_COSINE:
            raise RayrecError(f"the export's cosine to torch is {cosine:.4f}, below {MIN_COSINE}")


class OnnxTextEncoder:
    """An export, loaded. `threads`: of this one session; many workers want 1 each."""

    def __init__(self, directory: str | Path, *, threads: int = 1, batch_size: int = 16):
        import onnxruntime

        directory = Path(directory)
        try:
            said = json.loads((directory / "encoder.json").read_text())
            self.id = EncoderId(said["space"], VARIANT)
            self.dim = int(said["dim"])
            if not (directory / "tokenizer.json").exists():  # or load_tokenizer would turn to transformers
                raise FileNotFoundError("no tokenizer.json")
            self._tokenizer = load_tokenizer(directory, said["max_tokens"])
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(
                str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises its own undeclared kinds
            raise IncompatibleArtifact(f"{directory}: not a usable text export ({error})") from error
        self._batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        encodings = self._tokenizer.encode_batch(list(texts))
        out = np.empty((len(texts), self.dim), np.float32)
        for batch in by_length([len(e.ids) for e in encodings], self._batch_size):
            ids, mask = pad([encodings[i] for i in batch])
            out[batch] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return out


if __name__ == "__main__":
    try:
        _export_here(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    except Exception as failure:  # any library's: `export` reads the last line, and messages may have many
        sys.exit(f"{type(failure).__name__}: {' '.join(str(failure).split())}")
