"""Fitting an image model into the text encoder's space, on Ray Train."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train

from rayrec import encoder_exports
from rayrec.config import FitImagesConfig
from rayrec.data import readers
from rayrec.data.pictures import PictureReader
from rayrec.embedding_store import EmbeddingStore
from rayrec.encoders.base import EncoderId
from rayrec.errors import BadPicture, SchemaError
from rayrec.files import open_filesystem
from rayrec.pipelines.fit import FitSummary, Progress, fit, item_embeddings, newest_catalog, publish, train_here
from rayrec.schema import CONTENT_HASH
from rayrec.workspace import Workspace


def fit_images(
    config: FitImagesConfig, ws: Workspace, *, address: str | None = None, on_progress: Progress | None = None
) -> FitSummary:
    """Fit an image model into the text encoder's space, on the newest catalog's pictures and on photos."""
    items_by, _ = encoder_exports.resolve(ws, config.encoder)
    arguments = {"catalog": newest_catalog(ws), "embeddings": item_embeddings(ws, items_by)}
    return fit("images", _fit_images_worker, config, arguments, ws, address, on_progress)


def _fit_images_worker(arguments: dict[str, Any]) -> None:
    from rayrec.fitting.images import ImageTask
    from rayrec.fitting.training import judge

    config: FitImagesConfig = arguments["config"]
    ws = Workspace.open(arguments["ws_uri"], create=False)
    items = ws.read_parquet("catalog", arguments["catalog"])
    vectors = EmbeddingStore(ws, arguments["embeddings"]).lookup(items.column(CONTENT_HASH).combine_chunks())
    reader = CachedPictures(PictureReader(config.pictures, open_filesystem=open_filesystem), config)
    row_of = {item: row for row, item in enumerate(items.column("item_id").to_pylist())}
    own = [(uri, row) for row, uri in enumerate(items.column("image_uri").to_pylist()) if uri]
    pictures = {row: uri for uri, row in reader.readable(own)}
    photos = reader.readable(read_photos(config.photos, row_of))
    judges = reader.readable(read_photos(config.validation_photos, row_of))
    if not judges:  # hold some out: photos, or whole items
        rng = np.random.default_rng(config.training.seed)
        pool = photos or [(uri, row) for row, uri in sorted(pictures.items())]
        order = rng.permutation(len(pool))
        held = max(1, round(config.held_out * len(pool))) if len(pool) > 1 else 0
        judges, learned = [pool[i] for i in order[:held]], [pool[i] for i in order[held:]]
        photos, pictures = (learned, pictures) if photos else ([], {row: uri for uri, row in learned})
    if len(photos) + len(pictures) < 2 or not judges:
        raise SchemaError("no pictures to fit on: give the catalog's image_uri or photos, and allow where they are")
    task = ImageTask(
        config, vectors, pictures, photos, judges, reader.read, rank=ray.train.get_context().get_world_rank()
    )
    judge(task)
    before = task.found
    progress = train_here(task, arguments, config.training)
    judge(task)
    space = EncoderId.parse(arguments["embeddings"]).space

    def write(local: Path) -> dict[str, Any]:
        id = task.save(local, space)
        return {"encoder": {"space": space, "id": str(id)}, "image_weight": task.image_weight}

    name = f"{space}.{encoder_exports.PHOTOS}{arguments['bundle'].rpartition('-')[2]}"
    publish(ws, name, progress, before, task.found, "recall@1 of held-out photos", write, arguments)


def read_photos(path: str | None, row_of: dict[str, int]) -> list[tuple[str, int]]:
    """(uri, row) of a table of image_uri and item_id; photos of unknown items are left out."""
    if path is None:
        return []
    tables = [raw.table for raw in readers.read(*open_filesystem(path))]
    table = pa.concat_tables(tables, promote_options="permissive")
    lacking = {"image_uri", "item_id"} - set(table.column_names)
    if lacking:
        raise SchemaError(f"{path}: no column {', '.join(sorted(lacking))}")
    uris, ids = table.column("image_uri").to_pylist(), [str(i) for i in table.column("item_id").to_pylist()]
    return [(uri, row_of[item]) for uri, item in zip(uris, ids, strict=True) if uri and item in row_of]


class CachedPictures:
    """Pictures as training reads them again and again: decoded once at a little over the crop, and kept while there
    is room for `budget_bytes`."""

    def __init__(self, reader: PictureReader, config: FitImagesConfig, budget_bytes: int = 2 << 30):
        self._reader = reader
        self._side = round(1.1 * (config.side or 224))
        self._kept: dict[str, np.ndarray] = {}
        self._room = budget_bytes

    def read(self, uri: str) -> np.ndarray:
        """uint8 (H, W, 3). Raises BadPicture."""
        known = self._kept.get(uri)
        if known is not None:
            return known
        picture = shrink(self._reader.read(uri, self._side), self._side)
        if picture.nbytes <= self._room:
            self._kept[uri] = picture
            self._room -= picture.nbytes
        return picture

    def readable(self, photos: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Those that can be read now."""

        def good(photo: tuple[str, int]) -> bool:
            try:
                self.read(photo[0])
            except BadPicture:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            return [photo for photo, fine in zip(photos, pool.map(good, photos), strict=True) if fine]


def shrink(picture: np.ndarray, side: int) -> np.ndarray:
    """With the shorter side at most `side`."""
    from PIL import Image

    height, width = picture.shape[:2]
    share = side / min(height, width)
    if share >= 1:
        return picture
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
