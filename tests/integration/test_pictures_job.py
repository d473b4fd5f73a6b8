"""The embed job's pictures on a real cluster: good ones embedded once, bad ones set aside, and an index of both."""

import os
import shutil
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec import Engine, encoder_exports
from rayrec.config import EmbedConfig, ImagesConfig, IndexConfig, PicturesConfig, SourceConfig
from rayrec.embedding_store import EmbeddingStore
from rayrec.encoders.base import EncoderId
from rayrec.encoders.image import OnnxImageEncoder
from rayrec.encoders.item import fuse
from rayrec.errors import IncompatibleArtifact, NotFound
from rayrec.pipelines.embed import EmbedSummary, embed
from rayrec.pipelines.embed_pictures import embed_pictures, picture_hashes
from rayrec.pipelines.index import index
from rayrec.pipelines.pool import default_workers
from rayrec.schema import CONTENT_HASH
from rayrec.workspace import Workspace
from tests.fakes import make_photo

pytestmark = [pytest.mark.ray, pytest.mark.model]

GOOD, BARE = 43, 5  # items with a picture, two of which share it, and without
THINGS = ["lamp", "chair", "mug", "scarf", "shelf", "rug", "clock", "vase", "stool", "tray"]
WEB = "http://169.254.169.254/x.png"


def hostile(folder: Path) -> dict[str, str]:
    """Writes what a seller should not have sent into `folder`; {uri: the reason that each is refused for}."""
    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": size, b"IDAT": zlib.compress(bytes(1 << 20)), b"IEND": b""}
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    jpeg = make_photo("red", (64, 48), "JPEG")
    files = {
        "bomb.png": (bomb, "too_many_pixels"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_a_picture"),
        "page.html": (b"<!DOCTYPE html><script>alert(1)</script>", "not_a_picture"),
        "empty.jpg": (b"", "not_a_picture"),
        "noise.png": (np.random.default_rng(0).bytes(5_000), "not_a_picture"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    private = folder.parent / "private.png"
    private.write_bytes(make_photo("red"))
    (folder / "link.png").symlink_to(private)
    (folder / "album").mkdir()
    places = [str(private), "../private.png", "link.png", "album", WEB]
    return {
        **{name: reason for name, (_, reason) in files.items()},
        **dict.fromkeys(places, "not_allowed"),
        "none.jpg": "not_found",
    }


def good(folder: Path) -> list[str]:
    """Writes distinct JPEGs and PNGs into `folder`; the uri of each item's, the last two the same."""
    names = []
    for i in range(GOOD - 1):
        form = ("JPEG", "PNG")[i % 2]
        names.append(f"{i:02}.{form.lower()}")
        (folder / names[-1]).write_bytes(make_photo(f"hsl({i * 8}, 90%, 50%)", (40 + i, 60), form))
    return [*names, names[-1]]


def publish_tower(ws: Workspace, space: str, weights: Path) -> str:
    """A small image encoder of a text space, of random weights. Its version."""
    import torch
    from torchvision import models

    from rayrec.encoders.image_models import ImageModel, Tower, write

    torch.manual_seed(0)
    torch.save(models.get_model("mobilenet_v3_small", weights=None).state_dict(), weights)
    model = ImageModel.read("mobilenet_v3_small", str(weights))
    model = replace(model, preprocess=replace(model.preprocess, resize=36, crop=(32, 32)))
    id = EncoderId(space, f"{encoder_exports.PHOTOS}small-fp32")
    with ws.stage("encoders", name=f"{space}.{encoder_exports.PHOTOS}small") as staged:
        directory = weights.with_suffix("")
        write(Tower(model.load(), model.features, 384), model, id, directory)
        staged.upload(directory, "")
        return staged.publish({"encoder": {"space": space, "id": str(id)}, "image_weight": 1.0, "promoted": True})


@dataclass
class Shop:
    """A workspace whose catalog was embedded once, the folder of its pictures, and what is wrong with some."""

    ws: Workspace
    folder: Path
    good: list[str]
    bad: dict[str, str]
    tower: str
    first: EmbedSummary

    @property
    def space(self) -> str:
        return EncoderId.parse(self.first.encoder_id).space

    def images(self, *hosts: str, model: str = "fitted") -> ImagesConfig:
        allowed = PicturesConfig(allowed_roots=(str(self.folder),), allowed_hosts=hosts)
        return ImagesConfig(model=model, pictures=allowed)

    def embed(self, *hosts: str, model: str = "fitted") -> EmbedSummary:
        return embed(EmbedConfig(images=self.images(*hosts, model=model), block_rows=16), self.ws)

    def vectors(self, uris: list[str], variant: str = "fp32") -> np.ndarray:
        id = f"{self.space}.{encoder_exports.PHOTOS}small-{variant}"
        return EmbeddingStore(self.ws, id).lookup(picture_hashes(pa.array(uris)))

    def parts(self) -> set[str]:
        """Files of pictures' vectors."""
        id = f"{self.space}.{encoder_exports.PHOTOS}small-fp32"
        return set(self.ws.names("embeddings", id))

    def quarantined(self) -> set[str]:
        """Files of pictures that were set aside."""
        return {name for name in self.ws.names("quarantine") if ".pictures-" in name}

    def aside(self, files: set[str]) -> dict[str, dict[str, str]]:
        rows = [row for file in files for row in self.ws.read_parquet("quarantine", file).to_pylist()]
        assert len(rows) == len({row["uri"] for row in rows})
        return {row["uri"]: row for row in rows}

    def copy(self, root: Path) -> "Shop":
        """The same, to be changed."""
        shutil.copytree(self.ws.root, root / "ws", symlinks=True)
        shutil.copytree(self.folder, root / "pictures", symlinks=True)
        return replace(self, ws=Workspace.open(root / "ws"), folder=root / "pictures")


@pytest.fixture(scope="module")
def shop(cluster: str, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("pictured")
    folder = root / "pictures"
    folder.mkdir()
    (root / "ws" / "encoders").mkdir(parents=True)
    for version in (exported / "encoders").iterdir():
        (root / "ws" / "encoders" / version.name).symlink_to(version)
    ws = Workspace.open(root / "ws")
    tower = publish_tower(ws, encoder_exports.encoder_id(EmbedConfig().encoder).space, root / "small.pth")
    uris, bad = good(folder), hostile(folder)
    pictures = [*uris, *bad, *[None] * BARE]
    order = np.random.default_rng(0).permutation(len(pictures))
    rows = [
        {"item_id": f"i{i:02}", "title": f"{THINGS[i % 10]} of series {i}", "image_uri": pictures[order[i]]}
        for i in range(len(pictures))
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "items.parquet")
    images = ImagesConfig(pictures=PicturesConfig(allowed_roots=(str(folder),)))
    source = SourceConfig(path=str(root / "items.parquet"))
    first = embed(EmbedConfig(source=source, images=images, block_rows=16), ws)
    return Shop(ws, folder, uris, bad, tower, first)


@pytest.fixture
def own(shop: Shop, tmp_path: Path) -> Shop:
    return shop.copy(tmp_path)


def test_good_pictures_are_embedded_and_bad_ones_are_counted_by_reason(shop: Shop):
    pictures = shop.first.pictures
    assert pictures is not None
    assert (shop.first.items, shop.first.embedded, len(shop.bad)) == (60, 60, 12)
    assert (pictures.encoder, pictures.embedded, pictures.reused) == (shop.tower, GOOD - 1, 0)
    assert pictures.quarantined == {
        "not_a_picture": 4, "not_allowed": 5, "not_found": 1, "too_many_pixels": 1, "truncated": 1,
    }  # fmt: skip
    assert sum(pictures.workers.values()) == GOOD - 1 + 12
    vectors = shop.vectors(shop.good)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[-1].tolist() == vectors[-2].tolist()


def test_a_bad_picture_is_set_aside_with_its_reason(shop: Shop):
    aside = shop.aside(shop.quarantined())
    assert {uri: row["reason"] for uri, row in aside.items()} == shop.bad
    assert all(name.startswith(f"{shop.first.catalog}.pictures-") for name in shop.quarantined())
    assert all(uri.rpartition("/")[2] in row["message"] for uri, row in aside.items())
    assert "60,000 x 60,000 pixels" in aside["bomb.png"]["message"]
    assert "169.254.169.254:80 is none of allowed_hosts" in aside[WEB]["message"]


def test_vectors_are_those_of_the_encoder_alone(shop: Shop):
    from PIL import Image

    encoder = OnnxImageEncoder(shop.ws.local_copy("encoders", shop.tower))
    for uri in shop.good[:6]:
        pixels = np.asarray(Image.open(shop.folder / uri).convert("RGB"))
        np.testing.assert_allclose(shop.vectors([uri])[0], encoder.encode([pixels])[0], atol=1e-5)


def test_a_second_run_tries_only_what_was_bad(own: Shop):
    parts, files = own.parts(), own.quarantined()
    again = own.embed("169.254.169.254").pictures  # an allowed name, at an address that is not public
    assert again is not None
    assert (again.embedded, again.reused) == (0, GOOD - 1)
    assert again.quarantined == own.first.pictures.quarantined  # type: ignore[union-attr]
    assert sum(again.workers.values()) == 12
    assert own.parts() == parts
    aside = own.aside(own.quarantined() - files)
    assert {uri: row["reason"] for uri, row in aside.items()} == own.bad
    assert "169.254.169.254 is at an address that is not public" in aside[WEB]["message"]


def test_a_repaired_picture_is_embedded_by_the_next_run(own: Shop):
    (own.folder / "half.jpg").write_bytes(make_photo("red", (64, 48), "JPEG"))
    (own.folder / "none.jpg").write_bytes(make_photo("blue", (64, 48), "JPEG"))
    repaired = own.embed().pictures
    assert repaired is not None
    assert (repaired.embedded, repaired.reused) == (2, GOOD - 1)
    assert repaired.quarantined == {"not_a_picture": 4, "not_allowed": 5, "too_many_pixels": 1}
    assert own.vectors(["half.jpg", "none.jpg"]).shape == (2, 384)
    nothing_new = own.embed().pictures
    assert nothing_new is not None
    assert (nothing_new.embedded, nothing_new.reused) == (0, GOOD + 1)


def test_an_index_fuses_what_has_a_picture_and_leaves_the_rest(own: Shop):
    built = index(IndexConfig(images=own.images(), shards=1), own.ws)
    manifest = own.ws.manifest("indexes", built.index)
    id = f"{own.space}.{encoder_exports.PHOTOS}small-fp32"
    assert manifest["counts"]["pictures"] == GOOD
    assert manifest["encoder"]["images"] == {"export": own.tower, "id": id, "weight": 1.0}
    catalog = own.ws.read_parquet("catalog", own.first.catalog)
    texts = EmbeddingStore(own.ws, own.first.encoder_id).lookup(catalog.column(CONTENT_HASH).combine_chunks())
    engine = Engine.open(own.ws)
    for row, (item_id, title, uri) in enumerate(
        zip(*(catalog.column(name).to_pylist() for name in ("item_id", "title", "image_uri")), strict=True)
    ):
        stored = engine.shards.vectors(np.array([row]))[0]
        if uri in own.good:
            together = texts[row] + own.vectors([uri])[0]
            np.testing.assert_allclose(stored, together / np.linalg.norm(together), atol=1e-6)
            assert stored.tolist() == fuse(texts[row : row + 1], own.vectors([uri]), 1.0)[0].tolist()
        else:
            np.testing.assert_allclose(stored, texts[row], atol=1e-7)
            assert engine.search(title, mode="dense", k=3).hits[0].item_id == item_id
            assert engine.search(title, k=3).hits[0].item_id == item_id


def test_a_weight_of_the_config_is_before_the_towers_own(own: Shop):
    images = own.images().model_copy(update={"weight": 0.25})
    built = index(IndexConfig(images=images, promote=False), own.ws)
    assert own.ws.manifest("indexes", built.index)["encoder"]["images"]["weight"] == 0.25


def test_a_tower_of_another_space_is_refused(own: Shop, tmp_path: Path):
    foreign = publish_tower(own.ws, "elsewhere", tmp_path / "foreign.pth")
    refused = rf"encoders/{foreign} is of space elsewhere, the text encoder of {own.space}"
    with pytest.raises(IncompatibleArtifact, match=refused):
        own.embed(model=foreign)
    with pytest.raises(IncompatibleArtifact, match=refused):
        index(IndexConfig(images=own.images(model=foreign)), own.ws)
    assert own.ws.latest("indexes") is None
    os.unlink(own.ws.path("encoders", own.tower, "manifest.json"))
    with pytest.raises(NotFound, match="no image encoder of space"):
        own.embed()


def test_gpu_workers_run_torch_in_bf16_and_share_the_space(own: Shop):
    config = EmbedConfig(gpus_per_worker=0.5, block_rows=16)
    done = embed_pictures(config, own.images(), own.ws, own.first.catalog, own.space)
    assert (done.embedded, done.reused, sum(done.quarantined.values())) == (GOOD - 1, 0, 12)
    assert default_workers(config) == 2, "two workers share the GPU"
    assert 1 <= len(done.workers) <= 2, "one may have done all before the other had its model"
    one, other = own.vectors(own.good), own.vectors(own.good, "bf16")
    assert (one * other).sum(1).min() > 0.99
    assert np.abs(one - other).max() > 1e-5, "not what fp32 gives"
    again = embed_pictures(config, own.images(), own.ws, own.first.catalog, own.space)
    assert (again.embedded, again.reused) == (0, GOOD - 1)
