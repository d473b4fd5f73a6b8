"""Embedding: the Ray Data job against one bare thread and against sentence-transformers; int8; pictures.

All read the same texts, cut at the same length, by the same weights. The job is timed in steady
state: while all its workers work, so without their start. The bare thread is the best batch size of the
same onnxruntime encoder with neither Ray nor files; the peer is the best batch size of
sentence-transformers with a thread for every core. int8 comes with its fidelity to fp32, and with what one
short query costs. Pictures are the photos of grocery_store (if they are there), read, decoded and encoded by
efficientnet-lite0, in the job, by one bare thread, and by one bare process a core at a time: what the cores give when
they all work, without any job, for they share caches and clock.

    python -m benchmarks.bench_embed [--quick] [--data DIR]
"""

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import common
from rayrec import encoder_exports
from rayrec.config import EmbedConfig, EncoderConfig, PicturesConfig
from rayrec.data import catalog, complete_journey
from rayrec.data.pictures import PictureReader
from rayrec.encoders.base import EncoderId
from rayrec.encoders.image import OnnxImageEncoder
from rayrec.encoders.onnx import OnnxTextEncoder
from rayrec.encoders.text import TextModel, TorchTextEncoder
from rayrec.pipelines import fidelity
from rayrec.pipelines.cluster import connected
from rayrec.pipelines.embed import EmbedWorker
from rayrec.pipelines.embed_pictures import PictureWorker, picture_hashes
from rayrec.pipelines.pool import run_blocks
from rayrec.schema import HASH_BYTES, ITEMS
from rayrec.workspace import Workspace

_BATCHES = (8, 16, 32)


def texts_of(data: Path, n: int, seed: int) -> tuple[str, list[str]]:
    """(where from, `n` distinct real texts): chorus_icecat if it is there, else the Complete Journey."""
    file = data / "chorus_icecat" / "products.parquet"
    if file.exists():
        columns = common.read_columns(file)
        found = [f"{t}. {d}" for t, d in zip(columns["title"], columns["short_description"], strict=True) if d]
        name = "chorus_icecat"
    else:
        found = catalog.item_texts(complete_journey.tables()[0])
        name = "complete_journey"
    distinct = sorted(set(found))
    picks = np.random.default_rng(seed).permutation(len(distinct))[:n]
    return name, [distinct[i] for i in picks]


def items_of(texts: list[str]) -> pa.Table:
    """ITEMS of texts as titles."""
    rows = [{"item_id": f"{n:06d}", "title": text} for n, text in enumerate(texts)]
    return pa.Table.from_pylist(rows, schema=ITEMS)


def timed_rate(encode: object, texts: list[str]) -> float:
    started = time.perf_counter()
    encode(texts)  # type: ignore[operator]
    return len(texts) / (time.perf_counter() - started)


def bare_rate(directory: Path, texts: list[str], batches: tuple[int, ...] = _BATCHES) -> tuple[float, int]:
    """(rows/s of one thread, its best batch size)."""
    rates = {}
    for batch in batches:
        encoder = OnnxTextEncoder(directory, threads=1, batch_size=batch)
        encoder.encode(texts[:64])
        rates[batch] = timed_rate(encoder.encode, texts)
    best = max(rates, key=lambda batch: rates[batch])
    return rates[best], best


def text_rate(ws: Workspace, encoder: EncoderConfig, texts: list[str], cores: int) -> float:
    """rows/s of the job over texts."""
    config = EmbedConfig(encoder=encoder)
    hashes = pa.array([catalog.content_hash(t) for t in texts], pa.binary(HASH_BYTES))
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    export = encoder_exports.ensure(ws, encoder)
    worker = {
        "ws_uri": ws.uri,
        "encoder": encoder,
        "encoder_id": str(encoder_exports.encoder_id(encoder)),
        "export": export,
    }
    ordered = [texts[i] for i in order]
    return job_rate(EmbedWorker, "text", ordered, hashes.take(pa.array(order)), config, worker, cores)


def job_rate(
    worker: type,
    column: str,
    values: list[str],
    hashes: pa.Array,
    config: EmbedConfig,
    arguments: dict[str, Any],
    cores: int,
) -> float:
    """rows/s of the job while every worker works."""
    with connected():
        blocks = list(run_blocks(worker, column, values, hashes, config, arguments))
    workers = {b["worker"] for b in blocks}
    if len(workers) != cores:
        raise SystemExit(f"{len(workers)} workers took part, expected {cores}")
    begin = max(min(b["started"] for b in blocks if b["worker"] == w) for w in workers)
    end = min(max(b["ended"] for b in blocks if b["worker"] == w) for w in workers)
    rows = sum(
        b["rows"] * max(0.0, min(end, b["ended"]) - max(begin, b["started"])) / (b["ended"] - b["started"])
        for b in blocks
    )
    return rows / (end - begin)


def peer_rate(model: TextModel, texts: list[str], cores: int) -> tuple[float, int]:
    """(rows/s, best batch size) of sentence-transformers on all cores."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(cores)
    peer = SentenceTransformer(str(model.directory), device="cpu")
    peer.max_seq_length = model.max_tokens
    sample = texts[:: max(1, len(texts) // 500)]

    def encode(batch: int, some: list[str]) -> float:
        return timed_rate(lambda t: peer.encode(t, batch_size=batch, normalize_embeddings=True), some)

    encode(16, sample[:64])
    best = max((16, 32, 64), key=lambda batch: encode(batch, sample))
    return encode(best, texts), best


def query_ms(encode: Any, tries: int = 100) -> float:
    """CPU milliseconds of one short query."""
    for _ in range(10):
        encode(["usb c cable"])
    started = time.process_time()
    for _ in range(tries):
        encode(["usb c cable"])
    return (time.process_time() - started) / tries * 1000


def encode_pictures(encoder: OnnxImageEncoder, reader: PictureReader, uris: list[str]) -> None:
    for first in range(0, len(uris), 16):
        encoder.encode([reader.read(uri, encoder.preprocess.side) for uri in uris[first : first + 16]])


def _encode_beside_others(directory: str, pictures: PicturesConfig, uris: list[str], begin: Any, told: Any) -> None:
    encoder, reader = OnnxImageEncoder(directory, threads=1), PictureReader(pictures)
    encode_pictures(encoder, reader, uris[:32])
    begin.wait()
    started = time.time()
    encode_pictures(encoder, reader, uris)
    told.put((started, time.time()))


def rate_at_a_time(directory: Path, pictures: PicturesConfig, uris: list[str], cores: int) -> float:
    """rows/s of a bare process on every core, all at work: each encodes all the photos."""
    context = multiprocessing.get_context("spawn")
    begin, told = context.Barrier(cores), context.Queue()
    arguments = (str(directory), pictures, uris, begin, told)
    processes = [context.Process(target=_encode_beside_others, args=arguments) for _ in range(cores)]
    for process in processes:
        process.start()
    times = [told.get() for _ in processes]
    for process in processes:
        process.join()
    return cores * len(uris) / (max(end for _, end in times) - min(start for start, _ in times))


def picture_rates(ws: Workspace, root: Path, n: int, cores: int, seed: int) -> tuple[float, float, float] | None:
    """(rows/s of the job, of one bare thread, of one a core at a time) over n photos; None without the photos."""
    from rayrec.encoders import image_models
    from rayrec.encoders.image_models import ImageModel, Tower

    photos = sorted(map(str, root.glob("t*/**/*.jpg")))
    if not photos:
        return None
    picks = np.random.default_rng(seed).permutation(len(photos))[:n]
    uris = [photos[i] for i in picks]
    model = ImageModel.read("efficientnet-lite0")
    id = EncoderId("text", "photos-0-fp32")
    with tempfile.TemporaryDirectory() as local, ws.stage("encoders", name=str(id)) as staged:
        image_models.write(Tower(model.load(), model.features, 384), model, id, Path(local))
        staged.upload(Path(local), "")
        export = staged.publish({"encoder": {"space": id.space, "id": str(id)}})
    pictures = PicturesConfig(allowed_roots=(str(root),))
    arguments = {
        "ws_uri": ws.uri, "export": export, "encoder_id": str(id), "pictures": pictures, "quarantine": "bench",
    }  # fmt: skip
    config = EmbedConfig(block_rows=64)
    directory = ws.local_copy("encoders", export)
    encoder, reader = OnnxImageEncoder(directory), PictureReader(pictures)

    def bare(some: list[str]) -> None:
        encode_pictures(encoder, reader, some)

    sample = uris[: max(64, n // 4)]
    bare(sample[:32])
    before = timed_rate(bare, sample)
    job = job_rate(PictureWorker, "uri", uris, picture_hashes(pa.array(uris)), config, arguments, cores)
    after = timed_rate(bare, sample)
    return job, (before + after) / 2, rate_at_a_time(directory, pictures, sample, cores)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, default=None, help="texts (default 6,000; quick 1,000)")
    args = parser.parse_args()
    rows = args.rows or (1_000 if args.quick else 6_000)
    cores = len(os.sched_getaffinity(0))
    config = EmbedConfig().encoder
    model = TextModel.read(config.model, max_tokens=config.max_tokens)
    source, texts = texts_of(args.data, rows, args.seed)
    sample = texts[: max(500, rows // 4)]
    with tempfile.TemporaryDirectory() as root:
        ws = Workspace.open(root)
        directory = ws.local_copy("encoders", encoder_exports.ensure(ws, config))
        small = config.model_copy(update={"precision": "int8"})
        small_directory = ws.local_copy("encoders", encoder_exports.ensure(ws, small))
        before, batch = bare_rate(directory, sample)
        job = text_rate(ws, config, texts, cores)
        after, _ = bare_rate(directory, sample)  # again: the machine's speed drifts
        bare = (before + after) / 2
        int8 = text_rate(ws, small, texts, cores)
        int8_bare, _ = bare_rate(small_directory, sample, (1,))
        peer, peer_batch = peer_rate(model, texts, cores)
        report = fidelity.check(ws, small, catalog.seal(items_of(texts)))
        torch_ms = query_ms(TorchTextEncoder(model, device="cpu").encode)
        queries = {
            "torch fp32": torch_ms,
            "onnx fp32": query_ms(OnnxTextEncoder(directory).encode),
            "onnx int8": query_ms(OnnxTextEncoder(small_directory).encode),
        }
        pictures = picture_rates(ws, args.data / "grocery_store", rows // 5, cores, args.seed)
    common.show(
        f"{rows} distinct texts of {source}, at most {model.max_tokens} tokens, {cores} cores",
        [
            {"what": "one bare thread", "rows/s": bare, "batch": batch, "share of cores x bare": 1 / cores},
            {"what": "rayrec embed job", "rows/s": job, "batch": 16, "share of cores x bare": job / (cores * bare)},
            {"what": "one bare thread, int8", "rows/s": int8_bare, "batch": 1, "share of cores x bare": ""},
            {"what": "rayrec embed job, int8", "rows/s": int8, "batch": 1,
             "share of cores x bare": int8 / (cores * int8_bare)},
            {"what": "sentence-transformers", "rows/s": peer, "batch": peer_batch,
             "share of cores x bare": peer / (cores * bare)},
        ],
    )  # fmt: skip
    common.show("one short query", [{"runtime": name, "CPU ms": ms} for name, ms in queries.items()])
    if pictures is not None:
        common.show(
            "photos, efficientnet-lite0 at 224 pixels",
            [
                {"what": "one bare thread", "rows/s": pictures[1], "share of cores x bare": 1 / cores},
                {"what": "one bare process a core, at a time", "rows/s": pictures[2],
                 "share of cores x bare": pictures[2] / (cores * pictures[1])},
                {"what": "rayrec embed job", "rows/s": pictures[0],
                 "share of cores x bare": pictures[0] / (cores * pictures[1])},
            ],
        )  # fmt: skip
    common.finish(
        {
            **common.environment(["ray", "torch", "onnxruntime", "sentence-transformers"]),
            "seed": args.seed,
            "source": source,
            "rows": rows,
            "rows_per_s": round(job, 1),
            "bare_rows_per_s": round(bare, 1),
            "peer_rows_per_s": round(peer, 1),
            "of_cores_x_bare": round(job / (cores * bare), 3),
            "of_peer": round(job / peer, 3),
            "int8_rows_per_s": round(int8, 1),
            "int8_bare_rows_per_s": round(int8_bare, 1),
            "int8_of_peer": round(int8 / peer, 3),
            "int8_fidelity": report,
            "query_cpu_ms": {name: round(ms, 2) for name, ms in queries.items()},
            "image_rows_per_s": None if pictures is None else round(pictures[0], 1),
            "image_bare_rows_per_s": None if pictures is None else round(pictures[1], 1),
            "image_bare_at_a_time_rows_per_s": None if pictures is None else round(pictures[2], 1),
            "image_of_bare_at_a_time": None if pictures is None else round(pictures[0] / pictures[2], 3),
            "image_of_cores_x_bare": None if pictures is None else round(pictures[0] / (cores * pictures[1]), 3),
        }
    )


if __name__ == "__main__":
    main()
