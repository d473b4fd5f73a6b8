"""The index job: shards built in tasks, published whole, promoted, refused when damaged."""

import json
from pathlib import Path

import pytest

from rayrec import Engine
from rayrec.config import FusionWeights, IndexConfig, SourceConfig
from rayrec.errors import IncompatibleArtifact, NotFound
from rayrec.pipelines.embed import embed
from rayrec.pipelines.index import index
from rayrec.workspace import Workspace
from tests.integration.conftest import embed_config, write_catalog

pytestmark = [pytest.mark.ray, pytest.mark.model]


def write_events(path: Path, pairs: list[tuple[str, str]]) -> Path:
    """JSONL in which each pair of items is bought together by five shoppers, and one bad row."""
    rows = [
        {"event_id": f"{n}-{shopper}-{item}", "user_id": f"u{shopper}", "session_id": f"s{n}-{shopper}",
         "type": "purchase", "item_id": item, "ts_us": 1_700_000_000_000_000 + n}
        for n, pair in enumerate(pairs)
        for shopper in range(5)
        for item in pair
    ]  # fmt: skip
    rows.append({**rows[0]})  # sent twice
    rows.append({**rows[0], "event_id": "bad", "type": "stare"})
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def embedded(cluster: str, ws: Workspace, tmp_path: Path) -> Workspace:
    embed(embed_config(write_catalog(tmp_path / "items.csv", 60)), ws)
    return ws


def test_an_index_answers_with_what_shoppers_did(embedded: Workspace, tmp_path: Path):
    events = write_events(tmp_path / "events.jsonl", [("i000003", "i000042")] * 4)
    summary = index(IndexConfig(events=SourceConfig(path=str(events))), embedded)
    assert (summary.items, summary.events, summary.quarantined, summary.duplicates) == (60, 40, 1, 1)
    assert (summary.shards, summary.dense, summary.generation) == (1, "flat", 1)
    engine = Engine.open(embedded)
    assert engine.search("lamp no 42", mode="lexical").hits[0].item_id == "i000042"
    together = engine.recommend(recent_item_ids=["i000003"], k=2, explain=True).hits
    assert together[0].item_id == "i000042" or together[1].item_id == "i000042"


def test_shards_answer_as_one(embedded: Workspace):
    one = Engine.open(embedded, index=index(IndexConfig(shards=1), embedded).index)
    three = Engine.open(embedded, index=index(IndexConfig(shards=3), embedded).index)
    for query in ("wireless mouse", "desk lamp stand"):
        whole, split = (e.search(query, mode="dense", k=60) for e in (one, three))
        assert [h.item_id for h in whole.hits] == [h.item_id for h in split.hits]
        whole, split = (e.search(query, k=60, facets=["brand"]) for e in (one, three))
        assert {h.item_id for h in whole.hits} == {h.item_id for h in split.hits}
        assert whole.facets == split.facets


def test_promote_and_rollback_change_who_answers(embedded: Workspace):
    first = index(IndexConfig(), embedded).index
    second = index(IndexConfig(dense="hnsw"), embedded).index
    unpromoted = index(IndexConfig(promote=False), embedded)
    assert unpromoted.generation is None
    assert Engine.open(embedded).versions["index"] == second
    embedded.rollback()
    assert Engine.open(embedded).versions["index"] == first
    embedded.promote(index=unpromoted.index)
    assert Engine.open(embedded).versions["index"] == unpromoted.index


@pytest.mark.parametrize("name", ["shard-0000/dense/dense.faiss", "items.parquet", "behavior/behavior.npz"])
def test_a_damaged_index_is_refused_by_name(embedded: Workspace, name: str):
    version = index(IndexConfig(), embedded).index
    path = Path(embedded.path("indexes", version, name))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IncompatibleArtifact, match=name):
        Engine.open(embedded)
    with pytest.raises(IncompatibleArtifact, match=name):
        embedded.promote(index=version)


def test_the_variant_that_covers_the_catalog_is_indexed(embedded: Workspace, tmp_path: Path):
    source = write_catalog(tmp_path / "more.csv", 70)
    on_gpu = embed(embed_config(source, gpus_per_worker=1), embedded)
    version = index(IndexConfig(), embedded).index
    assert embedded.manifest("indexes", version)["encoder"]["id"] == on_gpu.encoder_id


def test_a_model_of_another_space_stops_answering_with_a_new_index(embedded: Workspace):
    first = index(IndexConfig(), embedded).index
    with embedded.stage("models") as staged:
        staged.write_bytes("relevance.json", b"{}")
        model = staged.publish(
            {"encoder": embedded.manifest("indexes", first)["encoder"], "fusion": {"dense": 0.2, "k": 20.0}}
        )
    embedded.promote(model=model)
    assert Engine.open(embedded).weights.dense == 0.2
    cut_elsewhere = IndexConfig().encoder.model_copy(update={"max_tokens": 32})
    embed(embed_config(None, encoder=cut_elsewhere), embedded)
    second = index(IndexConfig(encoder=cut_elsewhere), embedded).index
    assert (embedded.current().index, embedded.current().model) == (second, None)
    assert Engine.open(embedded).weights == FusionWeights()


def test_a_failed_build_publishes_nothing(embedded: Workspace, tmp_path: Path):
    encoder = embedded.names("embeddings")[0]
    for part in embedded.names("embeddings", encoder):
        Path(embedded.path("embeddings", encoder, part)).unlink()
    with pytest.raises(NotFound, match=r"no embedding.* run .rayrec embed"):
        index(IndexConfig(), embedded)
    assert embedded.versions("indexes") == []
    assert embedded.names("indexes") == []
    assert embedded.current().generation == 0


def test_index_before_embed_says_what_to_do(cluster: str, tmp_path: Path):
    with pytest.raises(NotFound, match="rayrec embed"):
        index(IndexConfig(), Workspace.open(tmp_path / "new"))
