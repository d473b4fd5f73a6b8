"""The embed job's second half: the pictures of a catalog, on the same pool of actors.

Blocks hold uris, and a worker reads, decodes and encodes a few pictures at a time, so memory grows with
neither the catalog nor the pictures. One that cannot be read is set aside with its reason, and is tried
again by the next run: it has no vector, so it is still missing.
"""

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec import encoder_exports
from rayrec.config import EmbedConfig, ImagesConfig, PicturesConfig
from rayrec.data.catalog import content_hash
from rayrec.data.pictures import PictureReader
from rayrec.embedding_store import EmbeddingStore
from rayrec.encoders.base import EncoderId
from rayrec.encoders.image import ImageEncoder, OnnxImageEncoder
from rayrec.errors import BadPicture
from rayrec.files import open_filesystem
from rayrec.pipelines.pool import Progress, hashes_of, run_blocks, tally, worker_name
from rayrec.schema import HASH_BYTES
from rayrec.workspace import Workspace

READ_AT_ONCE = 16


@dataclass(frozen=True)
class PicturesSummary:
    """encoder: version of the image encoder; embedded and reused: distinct uris; quarantined: by reason."""

    encoder: str
    embedded: int
    reused: int
    quarantined: dict[str, int]
    rows_per_s: float
    workers: dict[str, int]


def embed_pictures(
    config: EmbedConfig,
    images: ImagesConfig,
    ws: Workspace,
    catalog: str,
    space: str,
    on_progress: Progress | None = None,
) -> PicturesSummary:
    """Embed the pictures of a catalog version that have no vector yet, into the text space `space`."""
    export = encoder_exports.find_images(ws, images.model, space)
    encoder_id = picture_encoder(config, EncoderId.parse(ws.manifest("encoders", export)["encoder"]["id"]))
    uris = pc.unique(ws.read_parquet("catalog", catalog, columns=["image_uri"]).column("image_uri").drop_null())
    hashes = picture_hashes(uris)
    missing = pc.invert(pc.is_in(hashes, value_set=EmbeddingStore(ws, str(encoder_id)).present()))
    todo, keys = uris.filter(missing), hashes.filter(missing)
    reused = len(uris) - len(todo)
    if not len(todo):
        return PicturesSummary(export, 0, reused, {}, 0.0, {})
    reasons: Counter[str] = Counter()

    def counted(blocks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for block in blocks:
            reasons.update(dict(block["reasons"]))
            yield block

    arguments = {
        "ws_uri": ws.uri,
        "export": export,
        "encoder_id": str(encoder_id),
        "pictures": images.pictures,
        "quarantine": f"{catalog}.pictures",
    }
    blocks = run_blocks(PictureWorker, "uri", todo.to_pylist(), keys, config, arguments)
    rows, per_worker, busy = tally(counted(blocks), len(todo), on_progress)
    embedded = rows - sum(reasons.values())
    return PicturesSummary(export, embedded, reused, dict(reasons), round(rows / busy, 1) if busy else 0.0, per_worker)


def picture_encoder(config: EmbedConfig, exported: EncoderId) -> EncoderId:
    """Which encoder the pictures get: the export on CPUs, torch in bf16 on GPUs; two variants of one tower."""
    if not config.gpus_per_worker or config.encoder.runtime == "onnx":
        return exported
    return EncoderId(exported.space, exported.variant.removesuffix("-fp32") + "-bf16")


def picture_hashes(uris: pa.Array) -> pa.Array:
    """The keys of pictures: binary(16), null where there is no uri."""
    keys = [None if uri is None else content_hash(uri) for uri in uris.to_pylist()]
    return pa.array(keys, pa.binary(HASH_BYTES))


class PictureWorker:
    """One actor of the pool; a plain class that a test can call."""

    def __init__(self, ws_uri: str, export: str, encoder_id: str, pictures: PicturesConfig, quarantine: str):
        self._ws = Workspace.open(ws_uri, create=False)
        self._store = EmbeddingStore(self._ws, encoder_id)
        self._reader = PictureReader(pictures, open_filesystem=open_filesystem)
        self._quarantine = quarantine
        directory = self._ws.local_copy("encoders", export)
        self._encoder: ImageEncoder
        if encoder_id.endswith("-bf16"):
            from rayrec.encoders.image_models import TorchImageEncoder

            self._encoder = TorchImageEncoder(directory, precision="bf16")
        else:
            self._encoder = OnnxImageEncoder(directory, threads=1)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Embed one block {uri, content_hash}, make it durable, and tell about it in one row."""
        started = time.time()
        uris, hashes = block.column("uri").to_pylist(), hashes_of(block)
        good: list[int] = []
        vectors: list[np.ndarray] = []
        bad: list[dict[str, str]] = []
        with ThreadPoolExecutor(READ_AT_ONCE) as readers:  # reading waits for disks and hosts; decoding does not
            for first in range(0, len(uris), READ_AT_ONCE):
                part = range(first, min(first + READ_AT_ONCE, len(uris)))
                names = [uris[i] for i in part]
                fetched = readers.map(self._fetch, names)
                found = list(zip(part, map(self._decode, names, fetched), strict=True))
                fine = [(i, picture) for i, picture in found if isinstance(picture, np.ndarray)]
                bad += [
                    {"uri": uris[i], "reason": error.reason, "message": str(error)}
                    for i, error in found
                    if isinstance(error, BadPicture)
                ]
                if fine:
                    good += [i for i, _ in fine]
                    vectors.append(self._encoder.encode([picture for _, picture in fine]))
        if good:
            self._store.write(hashes.take(pa.array(good)), np.concatenate(vectors))
        if bad:
            name = f"{self._quarantine}-{secrets.token_hex(8)}.parquet"
            self._ws.write_parquet(pa.Table.from_pylist(bad), "quarantine", name)
        reasons = sorted(Counter(row["reason"] for row in bad).items())
        row = {"rows": block.num_rows, "worker": worker_name(), "started": started, "ended": time.time()}
        return pa.Table.from_pylist([{**row, "reasons": reasons}], schema=_TOLD)

    def _fetch(self, uri: str) -> bytes | BadPicture:
        try:
            return self._reader.fetch(uri)
        except BadPicture as error:
            return error

    def _decode(self, uri: str, data: bytes | BadPicture) -> np.ndarray | BadPicture:
        """Little larger than the encoder sees it; one at a time, for a picture of 50 megapixels is a gigabyte whole."""
        if isinstance(data, BadPicture):
            return data
        try:
            return self._reader.decode(uri, data, self._encoder.preprocess.side)
        except BadPicture as error:
            return error


_TOLD = pa.schema(
    [
        ("rows", pa.int64()),
        ("worker", pa.string()),
        ("started", pa.float64()),
        ("ended", pa.float64()),
        ("reasons", pa.map_(pa.string(), pa.int64())),
    ]
)
