"""A small shop of things with pictures, and an image tower that was fitted to it; real files, jobs and exports."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from PIL import Image

from rayrec import encoder_exports
from rayrec.config import EmbedConfig, ImagesConfig, IndexConfig, PicturesConfig, SourceConfig
from rayrec.encoders.base import EncoderId
from rayrec.encoders.image import Preprocess
from rayrec.workspace import Workspace

COLORS = ["red", "green", "blue", "yellow", "black", "white"]
THINGS = ["mug", "teapot", "scarf", "lamp", "chair", "notebook"]
TITLES = [f"{color} {thing}" for color in COLORS for thing in THINGS]
SIDE, GRID = 32, 4


def item_id(title: str) -> str:
    return title.replace(" ", "-")


def photo_of(title: str, size: tuple[int, int] = (240, 240), form: str = "JPEG") -> bytes:
    """A picture of an item: a mosaic that is its alone, at any size and in any format."""
    colors = np.random.default_rng(TITLES.index(title)).integers(0, 256, (GRID, GRID, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(colors).resize(size, Image.Resampling.NEAREST).save(file, form)
    return file.getvalue()


def publish_tower(ws: Workspace) -> str:
    """An image encoder whose projection takes each item's picture to its title's vector. Its version."""
    import torch
    from torch import nn

    from rayrec.encoders.image_models import ImageModel, Tower, write

    text = encoder_exports.open_export(ws, encoder_exports.ensure(ws, EmbedConfig().encoder))
    preprocess = Preprocess(SIDE, (SIDE, SIDE), (0.5,) * 3, (0.25,) * 3)
    backbone = nn.Sequential(nn.AvgPool2d(SIDE // GRID), nn.Flatten())
    pictures = [np.asarray(Image.open(io.BytesIO(photo_of(title)))) for title in TITLES]
    features = backbone(torch.from_numpy(preprocess.apply(pictures))).numpy()
    wanted = text.encode(TITLES)
    tower = Tower(backbone, features.shape[1], text.dim)
    with torch.no_grad():
        tower.projection.weight.copy_(torch.from_numpy(np.linalg.lstsq(features, wanted, rcond=None)[0].T))
        tower.projection.bias.zero_()
    model = ImageModel("mosaic", preprocess, features.shape[1], "0", lambda: backbone)
    id = EncoderId(text.id.space, f"{encoder_exports.PHOTOS}test-fp32")
    with ws.stage("encoders", name=f"{text.id.space}.{encoder_exports.PHOTOS}test") as staged:
        local = Path(staged.ws.path("tower"))
        write(tower, model, id, local)
        staged.upload(local, "")
        manifest = {"encoder": {"space": id.space, "id": str(id)}, "image_weight": 1.0, "promoted": True}
        return staged.publish(manifest)


def build_photo_shop(root: Path, exported: Path) -> Workspace:
    """A workspace whose index can be searched by photo. exported: holds the text encoder, to be copied."""
    from rayrec.pipelines.embed import embed
    from rayrec.pipelines.index import index

    (root / "encoders").mkdir()
    for version in (exported / "encoders").iterdir():
        (root / "encoders" / version.name).symlink_to(version)
    ws = Workspace.open(root)
    publish_tower(ws)
    folder = root / "pictures"
    folder.mkdir()
    for title in TITLES:
        (folder / f"{item_id(title)}.jpg").write_bytes(photo_of(title))
    rows = [
        {
            "item_id": item_id(title),
            "title": title,
            "brand": title.split()[0],
            "image_uri": f"file://{folder}/{item_id(title)}.jpg",
        }
        for title in TITLES
    ]
    pyarrow.csv.write_csv(pa.Table.from_pylist(rows), root / "items.csv")
    images = ImagesConfig(pictures=PicturesConfig(allowed_roots=(str(folder),)))
    embedded = embed(EmbedConfig(source=SourceConfig(path=str(root / "items.csv")), images=images), ws)
    assert embedded.pictures is not None
    assert embedded.pictures.embedded == len(TITLES)
    index(IndexConfig(images=images), ws)
    return ws
