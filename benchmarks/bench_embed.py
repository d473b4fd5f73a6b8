"""Embedding: the Ray Data job against one bare thread and against sentence-transformers.

All three read the same texts, cut at the same length, by the same weights. The job is timed in steady
state: while all its workers work, so without their start. The bare thread is the best batch size of the
same onnxruntime encoder with neither Ray nor files; the peer is the best batch size of
sentence-transformers with a thread for every core.

    python -m benchmarks.bench_embed [--quick] [--data DIR]
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import common
from rayrec import encoder_exports
from rayrec.config import EmbedConfig
from rayrec.data import catalog, complete_journey
from rayrec.encoders.onnx import OnnxTextEncoder
from rayrec.encoders.text import TextModel
from rayrec.pipelines.cluster import connected
from rayrec.pipelines.embed import run_blocks
from rayrec.schema import HASH_BYTES
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


def timed_rate(encode: object, texts: list[str]) -> float:
    started = time.perf_counter()
    encode(texts)  # type: ignore[operator]
    return len(texts) / (time.perf_counter() - started)


def bare_rate(directory: Path, texts: list[str]) -> tuple[float, int]:
    """(rows/s of one thread, its best batch size)."""
    rates = {}
    for batch in _BATCHES:
        encoder = OnnxTextEncoder(directory, threads=1, batch_size=batch)
        encoder.encode(texts[:64])
        rates[batch] = timed_rate(encoder.encode, texts)
    best = max(rates, key=lambda batch: rates[batch])
    return rates[best], best


def job_rate(ws: Workspace, export: str, space: str, texts: list[str], cores: int) -> float:
    """rows/s of the job while every worker works."""
    config = EmbedConfig()
    hashes = pa.array([catalog.content_hash(t) for t in texts], pa.binary(HASH_BYTES))
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    worker = {"ws_uri": ws.uri, "encoder": config.encoder, "encoder_id": f"{space}.onnx-fp32", "export": export}
    with connected():
        blocks = list(run_blocks([texts[i] for i in order], hashes.take(pa.array(order)), config, cores, worker))
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
        export = encoder_exports.ensure(ws, config)
        directory = ws.local_copy("encoders", export)
        before, batch = bare_rate(directory, sample)
        job = job_rate(ws, export, model.space, texts, cores)
        after, _ = bare_rate(directory, sample)  # again: the machine's speed drifts
        bare = (before + after) / 2
        peer, peer_batch = peer_rate(model, texts, cores)
    common.show(
        f"{rows} distinct texts of {source}, at most {model.max_tokens} tokens, {cores} cores",
        [
            {"what": "one bare thread", "rows/s": bare, "batch": batch, "share of cores x bare": 1 / cores},
            {"what": "rayrec embed job", "rows/s": job, "batch": 16, "share of cores x bare": job / (cores * bare)},
            {"what": "sentence-transformers", "rows/s": peer, "batch": peer_batch,
             "share of cores x bare": peer / (cores * bare)},
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
        }
    )


if __name__ == "__main__":
    main()
