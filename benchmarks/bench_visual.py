"""Photos and products: photo -> product, text -> photo, photo -> text on grocery_store, by a fitted image tower.

`all`: fitted on the train photos of all 81 products, chosen on the val photos, judged on the test photos. `new`: ten
products are held out of fitting altogether, photos, picture and text; their test photos are looked for among all 81.
Rows before fitting: the frozen backbone comparing photo and product picture, and the ridge regression that fitting
starts from. With --workspace the bundles are kept, and loaded when they are there.

    python -m benchmarks.bench_visual [--quick] [--data DIR] [--workspace W]
"""

import csv
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import common
from rayrec import encoder_exports
from rayrec.config import EmbedConfig, FitImagesConfig, PicturesConfig, SourceConfig, TrainingConfig
from rayrec.data import catalog
from rayrec.data.pictures import PictureReader
from rayrec.encoders.base import EncoderId
from rayrec.encoders.image import OnnxImageEncoder
from rayrec.encoders.item import fuse
from rayrec.pipelines.cluster import connected
from rayrec.pipelines.embed import embed
from rayrec.pipelines.fit_images import fit_images
from rayrec.schema import ITEMS
from rayrec.workspace import Workspace

HELD_OUT = 10
SIDE = 160


@dataclass(frozen=True)
class Grocery:
    """ITEMS of the 81 products, in the order of their class; photos: split -> [(path, class)]."""

    root: Path
    items: pa.Table
    photos: dict[str, list[tuple[str, int]]]

    @classmethod
    def read(cls, root: Path) -> "Grocery":
        with open(root / "classes.csv") as file:
            classes = list(csv.DictReader(file))
        items = []
        for row in classes:
            about = (root / row["Product Description Path (str)"].lstrip("/")).read_text().strip()
            name = row["Class Name (str)"].replace("-", " ")
            picture = str(root / row["Iconic Image Path (str)"].lstrip("/"))
            number = int(row["Class ID (int)"])
            items.append({"item_id": f"{number:02d}", "title": name, "description": about, "image_uri": picture})
        photos = {}
        for split in ("train", "val", "test"):
            lines = [line.split(",") for line in (root / f"{split}.txt").read_text().splitlines() if line.strip()]
            photos[split] = [(str(root / path.strip()), int(label)) for path, label, _ in lines]
        return cls(root, pa.Table.from_pylist(items, schema=ITEMS), photos)


def held_out(seed: int) -> list[int]:
    return sorted(np.random.default_rng(seed).permutation(81)[:HELD_OUT].tolist())


def fitted(
    ws: Workspace, data: Grocery, without: list[int], training: TrainingConfig
) -> tuple[dict[str, Any], float, float]:
    """(manifest of the tower, its score before, seconds it took), fitted unless the workspace has it."""
    kept = [row for row in range(81) if row not in without]
    folder = Path(ws.uri)
    for split in ("train", "val"):
        rows = [(uri, f"{label:02d}") for uri, label in data.photos[split] if label not in without]
        columns = {"image_uri": [uri for uri, _ in rows], "item_id": [item for _, item in rows]}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    pq.write_table(data.items.take(pa.array(kept)), folder / "items.parquet")
    with connected():
        embed(EmbedConfig(source=SourceConfig(path=str(folder / "items.parquet"))), ws)
        found = [v for v in ws.versions("encoders") if f".{encoder_exports.PHOTOS}" in v]
        if not found:
            config = FitImagesConfig(
                side=SIDE,
                pictures=PicturesConfig(allowed_roots=(str(data.root),)),
                photos=str(folder / "train.parquet"),
                validation_photos=str(folder / "val.parquet"),
                training=training,
            )
            started = time.perf_counter()
            summary = fit_images(config, ws, on_progress=lambda told: print(told, flush=True))
            print(summary, f"{time.perf_counter() - started:.0f} s", flush=True)
            (folder / "fit_s.txt").write_text(str(summary.seconds))
            found = [summary.version]
    manifest = ws.manifest("encoders", found[-1])
    return manifest, manifest["before"], float((folder / "fit_s.txt").read_text())


def recalls(queries: np.ndarray, things: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """right: bool (queries, things), which things answer. r1, r5: share of queries with one among the first k."""
    best = np.argsort(-(queries @ things.T), axis=1, kind="stable")
    return {f"r{k}": round(float(np.take_along_axis(right, best[:, :k], 1).any(1).mean()), 4) for k in (1, 5)}


def encode(encoder: Any, reader: PictureReader, uris: list[str]) -> np.ndarray:
    return np.concatenate(
        [
            encoder.encode([reader.read(uri, encoder.preprocess.side) for uri in uris[first : first + 32]])
            for first in range(0, len(uris), 32)
        ]
    )


def judge(
    ws: Workspace, manifest: dict[str, Any], data: Grocery, reader: PictureReader, only: list[int] | None
) -> dict[str, dict[str, float]]:
    """Figures on the test photos, of `only` some products, among all products and photos."""
    space = manifest["encoder"]["space"]
    text = encoder_exports.open_for(ws, {"space": space, "export": encoder_exports.find(ws, space)})
    tower = OnnxImageEncoder(ws.local_copy("encoders", manifest["version"]), threads=2)
    texts = text.encode(catalog.item_texts(data.items))
    pictures = encode(tower, reader, data.items.column("image_uri").to_pylist())
    items = fuse(texts, pictures, manifest["image_weight"])
    labels = np.array([label for _, label in data.photos["test"]])
    photos = encode(tower, reader, [uri for uri, _ in data.photos["test"]])
    asked = np.isin(labels, only) if only else np.ones(len(labels), bool)
    products = np.array(only if only else range(81))
    of_product = labels[:, None] == np.arange(81)[None]
    return {
        "photo_to_product": recalls(photos[asked], items, of_product[asked]),
        "photo_to_text": recalls(photos[asked], texts, of_product[asked]),
        "photo_to_picture": recalls(photos[asked], pictures, of_product[asked]),
        "text_to_photo": recalls(texts[products], photos, of_product.T[products]),
    }


def frozen(data: Grocery, reader: PictureReader) -> dict[str, float]:
    """Photo -> product picture by the backbone as it came, at its own side."""
    from rayrec.encoders import image_models
    from rayrec.encoders.image_models import ImageModel, Tower

    model = ImageModel.read("efficientnet-lite0")
    with tempfile.TemporaryDirectory() as directory:
        tower = Tower(model.load(), model.features, None)
        image_models.write(tower, model, EncoderId(model.space, "onnx-fp32"), Path(directory))
        encoder = OnnxImageEncoder(directory, threads=2)
        photos = encode(encoder, reader, [uri for uri, _ in data.photos["test"]])
        pictures = encode(encoder, reader, data.items.column("image_uri").to_pylist())
    labels = np.array([label for _, label in data.photos["test"]])
    return recalls(photos, pictures, labels[:, None] == np.arange(81)[None])


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--workspace", type=Path, help="keep the bundles here, and use those that are there")
    parser.add_argument("--steps", type=int, default=None, help="of each fit (default 600; quick 60)")
    args = parser.parse_args()
    root = args.data / "grocery_store"
    if not root.exists():
        raise SystemExit(f"{root} is not there; give --data")
    data = Grocery.read(root)
    reader = PictureReader(PicturesConfig(allowed_roots=(str(root),)))
    steps = args.steps or (60 if args.quick else 600)
    training = TrainingConfig(
        steps=steps,
        batch=32,
        learning_rate=2e-4,
        weight_decay=0.02,
        evaluate_every=max(20, steps // 12),
        patience=12,
        seed=args.seed,
    )
    without = held_out(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        kept = args.workspace or Path(temporary)
        found, rows = {}, [{"what": "frozen backbone, photo -> picture", **frozen(data, reader)}]
        for name, leave_out in (("all", []), ("new", without)):
            ws = Workspace.open(kept / name)
            manifest, before, seconds = fitted(ws, data, leave_out, training)
            figures = judge(ws, manifest, data, reader, leave_out or None)
            found[name] = {
                **figures,
                "fit_s": seconds,
                "steps": manifest["config"]["training"]["steps"],
                "val_before": before,
                "val_after": manifest["after"],
            }
            rows += [{"what": f"{name}: {what}", **values} for what, values in figures.items()]
            print(name, found[name], flush=True)
    common.show("grocery_store test photos, 81 products; new: products held out of fitting", rows)
    common.finish(
        {
            **common.environment(["torch", "torchvision", "onnxruntime", "ray"]),
            "seed": args.seed,
            "frozen": {key: rows[0][key] for key in ("r1", "r5")},
            **found["all"],
            "new_products": {"held_out": without, **found["new"]},
        }
    )


if __name__ == "__main__":
    main()
