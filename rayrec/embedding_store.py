"""Vectors at rest: embeddings/<encoder_id>/*.parquet, keyed by content hash, written in whole parts.

Parts are atomic and never changed, so what is present is what was finished: the embed job is
"needed keys - present keys", and that subtraction is also its resume.
"""

import secrets

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.errors import IncompatibleArtifact, NotFound
from rayrec.schema import CONTENT_HASH, HASH_BYTES, embeddings_schema
from rayrec.workspace import Workspace


class EmbeddingStore:
    """The vectors of one encoder id in one workspace."""

    def __init__(self, ws: Workspace, encoder_id: str):
        self.ws = ws
        self.encoder_id = encoder_id

    def present(self) -> pa.Array:
        """Distinct content hashes that have a vector: binary(16) (P,)."""
        try:
            table = self._read([CONTENT_HASH])
        except NotFound:
            return pa.array([], pa.binary(HASH_BYTES))
        return pc.unique(table.column(CONTENT_HASH))

    def write(self, hashes: pa.Array, vectors: np.ndarray) -> str:
        """Add one part; its name. hashes: binary(16) (B,); vectors: float32 (B, D)."""
        name = f"part-{secrets.token_hex(8)}.parquet"
        values = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        table = pa.table(
            [
                hashes,
                pa.repeat(self.encoder_id, len(hashes)),
                pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
            ],
            schema=embeddings_schema(vectors.shape[1]),
        )
        self.ws.write_parquet(table, "embeddings", self.encoder_id, name)
        return name

    def lookup(self, hashes: pa.Array) -> np.ndarray:
        """float32 (B, D) in the order of `hashes`. Raises NotFound that counts the missing ones."""
        vectors, present = self.find(hashes)
        missing = len(hashes) - int(present.sum())
        if missing:
            raise NotFound(
                f"{missing} of {len(hashes)} items have no embedding by {self.encoder_id}; run 'rayrec embed'"
            )
        return vectors

    def find(self, hashes: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """(float32 (B, D) in the order of `hashes`, zeros where there is none; bool (B,), whether there is one).

        D is 0 if nothing was ever embedded.
        """
        if not self.ws.names("embeddings", self.encoder_id):
            return np.empty((len(hashes), 0), np.float32), np.zeros(len(hashes), bool)
        table = self._read([CONTENT_HASH, "vector"])
        place = pc.index_in(hashes, value_set=table.column(CONTENT_HASH))
        vectors = table.column("vector").combine_chunks()
        if isinstance(vectors, pa.ChunkedArray):
            vectors = pa.concat_arrays(vectors.chunks)
        stored = vectors.flatten().to_numpy().reshape(table.num_rows, -1)
        present = pc.is_valid(place).to_numpy(zero_copy_only=False)
        if present.all():
            return stored[place.to_numpy()], present
        out = np.zeros((len(hashes), stored.shape[1]), np.float32)
        out[present] = stored[place.drop_null().to_numpy()]
        return out, present

    def _read(self, columns: list[str]) -> pa.Table:
        try:
            return self.ws.read_parquet("embeddings", self.encoder_id, columns=columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise IncompatibleArtifact(f"embeddings/{self.encoder_id}: {error}; delete the part it names") from error
