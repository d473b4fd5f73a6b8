"""What every encoder is: an id in two parts, a dimension, and texts in, unit vectors out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np


@dataclass(frozen=True)
class EncoderId:
    """space: within it vectors may be compared; variant: how they were computed (runtime, precision)."""

    space: str
    variant: str

    def __str__(self) -> str:
        return f"{self.space}.{self.variant}"

    @classmethod
    def parse(cls, text: str) -> "EncoderId":
        space, _, variant = text.rpartition(".")
        return cls(space, variant)


Role = Literal["query", "passage"]
"""What a text is: models of the E5 kind read a query and an item differently."""


class Encoder(Protocol):
    """A loaded text model."""

    id: EncoderId
    dim: int

    def encode(self, texts: Sequence[str], role: Role = "passage") -> np.ndarray:
        """float32 (B, D), each row L2-normalised, in the order of `texts`."""
        ...


def onnx_session(graph: Path, threads: int) -> Any:
    """An onnxruntime session on the CPU; many workers want one thread each."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def by_length(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Indices in batches of similar length, so that padding costs little (1.6x on product titles)."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
