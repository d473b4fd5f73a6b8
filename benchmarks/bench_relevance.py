"""Search quality on human ratings: bm25, dense and hybrid nDCG@10 over the full catalog.

Gain 2^rating - 1, unrated items 0; `rated_only` ranks the rated items alone. The interval is a paired
bootstrap over queries of hybrid minus bm25. `out_of_fold` fits the fusion weights on four fifths of the
queries and judges them on the rest, once a seed. bm25s is the peer for words. All of it twice: with the text encoder
as it came, and fitted to the catalog by `rayrec fit text` with its defaults, which sees no rating and no rated query.
At last what `rayrec fit ranking` learns from simulated clicks, few and many, judged by ratings of other queries.

    python -m benchmarks.bench_relevance [--items F --judgements F] [--workspace W]
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.relevance_clicks import learned_from_clicks
from rayrec import Engine
from rayrec.config import EmbedConfig, EncoderConfig, FitTextConfig, IndexConfig, SourceConfig
from rayrec.data import catalog, readers
from rayrec.evaluation.metrics import bootstrap_ci, ndcg
from rayrec.files import open_filesystem
from rayrec.pipelines.cluster import connected
from rayrec.pipelines.embed import embed
from rayrec.pipelines.evaluate import Judgements, ndcg_by_query, read_judgements, relevance
from rayrec.pipelines.fit_text import fit_text
from rayrec.pipelines.index import index
from rayrec.workspace import Workspace

_COLUMNS = {
    "item_id": ("item_id", "id"),
    "title": ("title",),
    "description": ("description", "short_description"),
}


def build(items: Path, root: str) -> tuple[Engine, Engine, dict[str, Any]]:
    """Embed, index, fit and index again a file of items: (engine of the encoder as it came, of the fitted, the fit).

    What a workspace holds already is not done again.
    """
    names = set(next(readers.read(*open_filesystem(str(items)))).table.column_names)
    columns = {ours: next((n for n in theirs if n in names), theirs[0]) for ours, theirs in _COLUMNS.items()}
    columns = {ours: theirs for ours, theirs in columns.items() if theirs in names or ours != "description"}
    ws = Workspace.open(root)
    with connected():
        embed(EmbedConfig(source=SourceConfig(path=str(items), columns=columns)), ws)
        plain = index(IndexConfig(promote=False), ws).index
        fit = fit_text(FitTextConfig(), ws, on_progress=lambda told: print(told, flush=True))
        print(fit, flush=True)
        if not fit.promoted:
            raise SystemExit("the fitted encoder was not promoted")
        fitted = index(IndexConfig(encoder=EncoderConfig(model="fitted")), ws).index
    return Engine.open(ws, index=plain), Engine.open(ws, index=fitted), fit.to_dict()


def bm25s_ndcg(engine: Engine, judgements: Judgements) -> float | None:
    """nDCG@10 of the bm25s package over the same texts (k1 1.2, b 0.5, English stems); None if absent."""
    try:
        import bm25s
        import Stemmer
    except ImportError:
        return None
    stemmer = Stemmer.Stemmer("english")
    items = engine.columns.items
    ids = items.column("item_id").to_pylist()
    retriever = bm25s.BM25(k1=1.2, b=0.5)
    retriever.index(
        bm25s.tokenize(catalog.item_texts(items), stemmer=stemmer, show_progress=False), show_progress=False
    )
    scores = []
    for query, rated in judgements.items():
        tokens = bm25s.tokenize(query, stemmer=stemmer, show_progress=False)
        rows, _ = retriever.retrieve(tokens, k=min(10, len(ids)), show_progress=False)
        scores.append(ndcg([ids[row] for row in rows[0]], rated))
    return round(float(np.mean(scores)), 4)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--items", type=Path, help="default: chorus_icecat's products")
    parser.add_argument("--judgements", type=Path, help="default: chorus_icecat's ratings")
    parser.add_argument("--workspace", help="keep the embeddings here (default: a temporary directory)")
    args = parser.parse_args()
    items = args.items or args.data / "chorus_icecat" / "products.parquet"
    ratings = args.judgements or args.data / "chorus_icecat" / "judgements.csv"
    for file in (items, ratings):
        if not file.exists():
            raise SystemExit(f"{file} is not there; give --data, or --items and --judgements")
    with tempfile.TemporaryDirectory() as temporary:
        plain, engine, fit = build(items, args.workspace or temporary)
        judgements = read_judgements(*open_filesystem(str(ratings)))
        seeds = 5 if args.quick else 20
        before = relevance(plain, judgements, seeds=seeds).to_dict()
        result = relevance(engine, judgements, seeds=seeds)
        peer = bm25s_ndcg(engine, judgements)
        gain = ndcg_by_query(engine, judgements, "dense") - ndcg_by_query(plain, judgements, "dense")
        by_clicks = [
            learned_from_clicks(engine, judgements, answers, 1 if args.quick else 3)
            for answers in ((100,) if args.quick else (100, 3_000))
        ]
    found = result.to_dict()
    rows = [
        {"what": name if told is found else f"{name}, not fitted", "nDCG@10": told["ndcg10"][name],
         "rated only": told["rated_only"][name], "judged@10": told["judged10"][name]}
        for told, names in ((before, ("dense", "hybrid")), (found, ("bm25", "dense", "hybrid")))
        for name in names
    ]  # fmt: skip
    mean = float(np.mean(result.out_of_fold))
    rows.append({"what": "hybrid, fitted out of fold (mean)", "nDCG@10": mean, "rated only": "", "judged@10": ""})
    rows.append(
        {"what": "bm25s (peer)", "nDCG@10": peer if peer is not None else "-", "rated only": "", "judged@10": ""}
    )
    rows += [
        {"what": f"both, signals from {told['answers']:,} answers, out of fold (mean)",
         "nDCG@10": float(np.mean(told["by_seed"])), "rated only": "", "judged@10": ""}
        for told in by_clicks
    ]  # fmt: skip
    common.show(f"{result.queries} rated queries over {engine.columns.n} items of {items.name}", rows)
    bm25 = found["ndcg10"]["bm25"]
    common.finish(
        {
            **common.environment(["tantivy", "faiss-cpu", "onnxruntime"]),
            "seed": args.seed,
            "items": engine.columns.n,
            **found,
            "dense_gain": round(float(gain.mean()), 4),
            "dense_gain_ci95": [round(edge, 4) for edge in bootstrap_ci(gain)],
            "not_fitted": before,
            "fit": fit,
            "out_of_fold_above_bm25": sum(score > bm25 for score in result.out_of_fold),
            "out_of_fold_below_bm25": sum(score < bm25 for score in result.out_of_fold),
            "bm25s_ndcg10": peer,
            "by_clicks": by_clicks,
        }
    )


if __name__ == "__main__":
    main()
