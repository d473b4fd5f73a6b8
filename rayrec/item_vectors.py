"""Vectors of what items say, for an index that answers: those that came with the changes, others made here.

Whoever takes a change embeds it once and hands the vector on in the log, by space and content. Where it is lacking (the
change was taken under an encoder of another space) each reader makes its own.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rayrec import encoder_exports
from rayrec.encoders.base import Encoder
from rayrec.store import CatalogLog
from rayrec.workspace import Workspace


class ItemVectors:
    """Of one embedding space. said: what an index's manifest says of its encoder; queries: the one of queries, if it is
    loaded, which often is the one of items too. Thread-safe.
    """

    def __init__(self, log: CatalogLog, ws: Workspace, said: Mapping[str, Any], queries: Encoder | None = None):
        self._log, self._ws, self._said = log, ws, said
        self._encoder = queries if said["id"] == said["query_id"] else None

    def __call__(self, contents: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Unit vectors float32 (D,) of contents, hash -> text. Raises NotFound without an encoder, Unavailable."""
        found = self.kept(contents)
        lacking = {content: text for content, text in contents.items() if content not in found}
        return {**found, **self.made(lacking)} if lacking else found

    def kept(self, contents: Iterable[str]) -> dict[str, np.ndarray]:
        """Those that the log has."""
        keys = {vector_key(self.space, content): content for content in contents}
        return {keys[key]: np.frombuffer(raw, np.float32) for key, raw in self._log.vectors(keys).items()}

    def made(self, contents: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Made here, of contents hash -> text. Raises NotFound without an encoder."""
        if self._encoder is None:
            self._encoder = encoder_exports.open_items(self._ws, self._said)
        return dict(zip(contents, self._encoder.encode(list(contents.values()), "passage"), strict=True))

    @property
    def space(self) -> str:
        return self._said["space"]


def vector_key(space: str, content: str) -> str:
    """Of a vector in the log."""
    return f"{space}:{content}"


def packed(space: str, vectors: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Vectors by content, as the log keeps them."""
    return {vector_key(space, content): vector.astype(np.float32).tobytes() for content, vector in vectors.items()}
