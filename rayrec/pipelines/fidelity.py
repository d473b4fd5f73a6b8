"""The check that an int8 encoder must pass on the shop's own words before it is used; its report under reports/."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec import encoder_exports
from rayrec.config import EncoderConfig
from rayrec.data.catalog import item_texts
from rayrec.errors import IncompatibleArtifact, SchemaError
from rayrec.evaluation.fidelity import MIN_COSINE, MIN_OVERLAP, fidelity
from rayrec.fitting.pairs import Pairs
from rayrec.workspace import Workspace

ITEMS, QUERIES = 1_000, 200


def check(ws: Workspace, config: EncoderConfig, items: pa.Table, seed: int = 0) -> dict[str, Any] | None:
    """The report of a config's int8 export against fp32, on a sample of the catalog; None for fp32.

    Measured once an encoder. Raises IncompatibleArtifact if it is not faithful.
    """
    if config.precision == "fp32" or config.model == "e5":
        return None
    id = encoder_exports.encoder_id(config)
    name = f"fidelity-{id}.json"
    if ws.exists("reports", name):
        report = json.loads(ws.read_bytes("reports", name))
    else:
        whole = encoder_exports.open_export(
            ws, encoder_exports.ensure(ws, config.model_copy(update={"precision": "fp32"}))
        )
        small = encoder_exports.open_export(ws, encoder_exports.ensure(ws, config))
        rng = np.random.default_rng(seed)
        sample = items.take(pa.array(np.sort(rng.permutation(items.num_rows)[:ITEMS])))
        texts = item_texts(sample)
        queries, answers = _queries(sample, rng)
        found = fidelity(
            whole.encode(queries, "query"),
            small.encode(queries, "query"),
            whole.encode(texts),
            answers,
            small.encode(texts),
        )
        report = found.to_dict()
        ws.write_bytes(json.dumps(report, indent=1).encode(), "reports", name)
    if not report["faithful"]:
        raise IncompatibleArtifact(
            f"encoder.precision: int8 of {config.model} has cosine {report['cosine_mean']} (at least {MIN_COSINE}) and "
            f"shares {report['top10_overlap']} of the ten nearest (at least {MIN_OVERLAP}) with fp32; "
            "use precision: fp32"
        )
    return report


def _queries(items: pa.Table, rng: np.random.Generator) -> tuple[list[str], list[set[int]]]:
    """Mined queries and the rows that answer them; titles, where nothing recurs."""
    try:
        pairs = Pairs(items)
        draws = pairs.among(np.arange(items.num_rows))
        queries = list(dict.fromkeys(draws.draw(rng).query for _ in range(QUERIES)))
        return queries, [pairs.answering(query) for query in queries]
    except SchemaError:
        rows = range(min(QUERIES, items.num_rows))
        return [items.column("title")[row].as_py() for row in rows], [{row} for row in rows]
