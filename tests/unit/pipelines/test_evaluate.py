"""Judging an engine on rated queries, and the gate in front of fitted weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayrec.engine import Engine
from rayrec.errors import SchemaError
from rayrec.evaluation.metrics import ndcg
from rayrec.files import open_filesystem
from rayrec.pipelines.evaluate import Relevance, publish_weights, read_judgements, relevance
from rayrec.workspace import Workspace
from tests.fakes import FakeEncoder, build_engine, make_catalog, make_items, publish_model

ADJECTIVES = ["small", "large", "organic", "classic", "compact"]
NOUNS = ["chips", "nuts", "pizza"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return build_engine(tmp_path_factory.mktemp("index"), make_catalog(150))


@pytest.fixture(scope="module")
def judgements(engine: Engine) -> dict[str, dict[str, float]]:
    """Every query of adjective and noun; items whose title says both are 3, the noun alone 1."""
    titles = {i["item_id"]: i["title"].lower() for i in engine.columns.items.to_pylist()}
    rated = {}
    for adjective in ADJECTIVES:
        for noun in NOUNS:
            grades = {i: 3.0 * (adjective in t) * (noun in t) or 1.0 * (noun in t) for i, t in titles.items()}
            rated[f"{adjective} {noun}"] = grades
    return rated


@pytest.fixture(scope="module")
def result(engine: Engine, judgements: dict[str, dict[str, float]]) -> Relevance:
    return relevance(engine, judgements, seeds=3)


def test_the_figures_are_the_mean_over_queries_of_what_search_returns(
    engine: Engine, judgements: dict[str, dict[str, float]], result: Relevance
):
    assert result.queries == 15
    for name, mode in (("bm25", "lexical"), ("dense", "dense"), ("hybrid", "hybrid")):
        tops = {q: [h.item_id for h in engine.search(q, k=10, mode=mode).hits] for q in judgements}
        expected = np.mean([ndcg(tops[q], judgements[q]) for q in judgements])
        assert result.ndcg10[name] == pytest.approx(expected, abs=1e-4)
    low, high = result.hybrid_minus_bm25_ci95
    assert low <= result.hybrid_minus_bm25 <= high
    assert result.judged10["bm25"] == 1.0  # every item is rated


def test_few_queries_are_refused(engine: Engine, judgements: dict[str, dict[str, float]]):
    with pytest.raises(SchemaError, match="at least 10"):
        relevance(engine, dict(list(judgements.items())[:9]))


@pytest.mark.parametrize(("low", "promoted"), [(0.01, True), (0.0, False), (-0.01, False)])
def test_fitted_weights_answer_only_if_their_gain_is_clear_of_zero(
    engine: Engine, result: Relevance, tmp_path: Path, low: float, promoted: bool
):
    ws = Workspace.open(tmp_path / "ws")
    with ws.stage("indexes") as staged:
        staged.write_bytes("x", b"x")
        index = staged.publish({"encoder": {"space": "fake"}})
    ws.promote(index=index)
    answering = Engine(engine.shards, engine.encoder, index=index, weights=engine.weights)
    judged = replace(result, fitted_gain_ci95=(low, 0.05))
    version, said = publish_weights(ws, answering, judged)
    assert said is promoted
    assert ws.current().model == (version if promoted else None)
    assert ws.manifest("models", version)["fusion"] == result.fitted.model_dump()
    assert json.loads(ws.read_bytes("models", version, "relevance.json"))["queries"] == 15


def test_a_trained_recommender_goes_on_answering_under_new_search_weights(
    engine: Engine, result: Relevance, tmp_path: Path
):
    ws = Workspace.open(tmp_path / "ws")
    with ws.stage("indexes") as staged:
        staged.write_bytes("x", b"x")
        index = staged.publish({"encoder": {"space": FakeEncoder().id.space}})
    model = publish_model(ws, engine.columns.items, weight=3.0)
    ws.promote(index=index, model=model)
    answering = Engine(engine.shards, engine.encoder, index=index, weights=engine.weights, model=model)
    version, promoted = publish_weights(ws, answering, replace(result, fitted_gain_ci95=(0.01, 0.05)))
    assert promoted
    assert version != model
    assert ws.manifest("models", version)["recommender"] == ws.manifest("models", model)["recommender"]
    assert ws.manifest("models", version)["fusion"] == result.fitted.model_dump()
    assert ws.read_bytes("models", version, "shopper.onnx") == ws.read_bytes("models", model, "shopper.onnx")


def test_judgements_come_from_csv_and_lose_queries_without_a_relevant_item(tmp_path: Path):
    file = tmp_path / "rated.csv"
    file.write_text("query,docid,rating\nlamp,007,2\nlamp,8,0\nchair,9,0\n")
    assert read_judgements(*open_filesystem(str(file))) == {"lamp": {"007": 2.0, "8": 0.0}}


@pytest.mark.parametrize(
    ("text", "says"), [("query,docid\na,1\n", "rating"), ("query,docid,rating\na,1,good\n", "'good'")]
)
def test_bad_judgements_are_one_clear_error(tmp_path: Path, text: str, says: str):
    file = tmp_path / "rated.csv"
    file.write_text(text)
    with pytest.raises(SchemaError, match=says):
        read_judgements(*open_filesystem(str(file)))


def test_an_item_of_an_unrated_catalog_counts_as_irrelevant(tmp_path: Path):
    engine = build_engine(tmp_path, make_items([{"item_id": f"i{n}", "title": f"lamp {n}"} for n in range(12)]))
    judged = relevance(engine, {f"lamp {n}": {f"i{n}": 1.0, "gone": 0.0} for n in range(12)}, seeds=1)
    assert judged.ndcg10["bm25"] == 1.0
    assert judged.judged10["bm25"] == pytest.approx(1 / 10, abs=0.03)


def test_rated_items_that_the_catalog_lacks_count_in_the_ideal_of_every_figure(tmp_path: Path):
    engine = build_engine(tmp_path, make_items([{"item_id": f"i{n}", "title": f"lamp {n}"} for n in range(12)]))
    rated = {f"lamp {n}": {f"i{n}": 1.0, "gone": 3.0, "lost": 3.0} for n in range(12)}
    judged = relevance(engine, rated, seeds=1)
    assert judged.out_of_fold == [pytest.approx(judged.ndcg10["hybrid"], abs=1e-4)]
    assert judged.ndcg10["hybrid"] < 0.2
