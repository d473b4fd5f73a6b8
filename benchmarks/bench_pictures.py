"""Pictures: the Ray Data job against one bare thread, and the memory that it takes.

Small JPEGs under distinct names, which are hard links to a few hundred files, so what is timed is opening, decoding
and encoding, not the disk. The bare thread reads and encodes as a worker does, without Ray. The peak is the sum of the
proportional set sizes of the driver and all of Ray's processes, sampled every second.

    python -m benchmarks.bench_pictures [--quick] [--data DIR]
"""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from PIL import Image

from benchmarks import common
from rayrec import encoder_exports
from rayrec.config import EmbedConfig, ImagesConfig, PicturesConfig
from rayrec.data import catalog
from rayrec.data.pictures import PictureReader
from rayrec.encoders.base import EncoderId
from rayrec.encoders.image import OnnxImageEncoder
from rayrec.encoders.image_models import ImageModel, Tower, write
from rayrec.pipelines.cluster import connected
from rayrec.pipelines.embed_pictures import READ_AT_ONCE, embed_pictures
from rayrec.schema import ITEMS
from rayrec.workspace import Workspace

SIDE, DIM, SPACE = 64, 384, "bench"


def make_pictures(folder: Path, n: int, distinct: int, seed: int) -> list[str]:
    """Names of `n` JPEGs of SIDE x SIDE pixels in `folder`, of `distinct` contents."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    names = [f"{i:07}.jpg" for i in range(n)]
    for i, name in enumerate(names):
        if i < distinct:
            colours = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            colours.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / name, quality=85)
        else:
            os.link(folder / names[i % distinct], folder / name)
    return names


def publish_catalog(ws: Workspace, names: list[str]) -> str:
    rows = [{"item_id": name, "title": name, "image_uri": name} for name in names]
    with ws.stage("catalog") as staged:
        staged.write_parquet("items.parquet", catalog.seal(pa.Table.from_pylist(rows, schema=ITEMS)))
        return staged.publish({"counts": {"items": len(names)}})


def publish_tower(ws: Workspace, local: Path) -> str:
    """The default backbone on SIDE x SIDE pixels, with a projection that was not fitted."""
    model = ImageModel.read("efficientnet-lite0")
    model = replace(model, preprocess=replace(model.preprocess, resize=SIDE, crop=(SIDE, SIDE)))
    id = EncoderId(SPACE, f"{encoder_exports.PHOTOS}bench-fp32")
    write(Tower(model.load(), model.features, DIM), model, id, local)
    with ws.stage("encoders", name=f"{SPACE}.{encoder_exports.PHOTOS}bench") as staged:
        staged.upload(local, "")
        return staged.publish({"encoder": {"space": SPACE, "id": str(id)}, "image_weight": 1.0, "promoted": True})


def bare_rate(directory: Path, config: PicturesConfig, names: list[str]) -> float:
    """pictures/s of one thread."""
    encoder, reader = OnnxImageEncoder(directory, threads=1), PictureReader(config)

    def run(some: list[str]) -> None:
        for first in range(0, len(some), READ_AT_ONCE):
            encoder.encode([reader.read(name, SIDE) for name in some[first : first + READ_AT_ONCE]])

    run(names[:64])
    started = time.perf_counter()
    run(names)
    return len(names) / (time.perf_counter() - started)


def tree_pss() -> int:
    """Bytes of this process and all below it."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended meanwhile
            continue
    return total


@contextmanager
def sampled(samples: list[int]) -> Iterator[None]:
    """Append tree_pss() every second inside the block."""
    done = threading.Event()

    def sample() -> None:
        while not done.wait(1):
            samples.append(tree_pss())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--pictures", type=int, default=None, help="(default 100,000; quick 2,000)")
    parser.add_argument("--distinct", type=int, default=300, help="files that the names lead to")
    args = parser.parse_args()
    n = args.pictures or (2_000 if args.quick else 100_000)
    cores = len(os.sched_getaffinity(0))
    samples: list[int] = []
    with tempfile.TemporaryDirectory() as root:
        names = make_pictures(Path(root) / "pictures", n, args.distinct, args.seed)
        ws = Workspace.open(f"{root}/ws")
        version, tower = publish_catalog(ws, names), publish_tower(ws, Path(root) / "tower")
        pictures = PicturesConfig(allowed_roots=(f"{root}/pictures",))
        directory = ws.local_copy("encoders", tower)
        sample = names[: max(500, n // 50)]
        before = bare_rate(directory, pictures, sample)
        base = tree_pss()
        with connected(num_cpus=cores), sampled(samples):
            config = EmbedConfig(workers=cores)
            done = embed_pictures(config, ImagesConfig(pictures=pictures), ws, version, SPACE)
        after = bare_rate(directory, pictures, sample)  # again: the machine's speed drifts
    if (done.embedded, len(done.workers)) != (n, cores):
        raise SystemExit(f"{done.embedded} pictures by {len(done.workers)} workers, expected {n} by {cores}")
    bare = (before + after) / 2
    share = done.rows_per_s / (cores * bare)
    peak, start, quarter = (value / 2**20 for value in (max(samples), base, max(samples[: -(-len(samples) // 4)])))
    common.show(
        f"{n} JPEGs of {SIDE} x {SIDE} pixels, {cores} cores",
        [
            {"what": "one bare thread", "pictures/s": bare, "share of cores x bare": 1 / cores, "peak MiB": start},
            {"what": "rayrec embed job", "pictures/s": done.rows_per_s, "share of cores x bare": share,
             "peak MiB": peak},
        ],
    )  # fmt: skip
    common.finish(
        {
            **common.environment(["ray", "onnxruntime", "pillow"]),
            "seed": args.seed,
            "pictures": n,
            "distinct_files": args.distinct,
            "pictures_per_s": done.rows_per_s,
            "bare_pictures_per_s": round(bare, 1),
            "of_cores_x_bare": round(share, 3),
            "driver_pss_mib": round(start),
            "peak_pss_first_quarter_mib": round(quarter),
            "peak_pss_mib": round(peak),
            "samples": len(samples),
        }
    )


if __name__ == "__main__":
    main()
