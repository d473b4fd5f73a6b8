import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.errors import IncompatibleArtifact
from rayrec.retrieval.dense import DenseIndex

KINDS = ["flat", "hnsw", "ivfpq"]
DIM = 32


def _unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _clustered(seed, n):
    """Points around 40 fixed centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(40, DIM))
    return _unit(centres[rng.integers(40, size=n)] + 0.5 * rng.normal(size=(n, DIM)))


def _brute(vectors, queries, k, allowed=None):
    scores = queries @ vectors.T
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.isfinite(np.take_along_axis(scores, rows, 1)), rows, -1)


def _recall(found, expected):
    return np.mean([len(set(f) & set(e)) / len(e) for f, e in zip(found.tolist(), expected.tolist(), strict=True)])


@pytest.fixture(scope="module")
def vectors():
    return _clustered(1, 3000)


@pytest.fixture(scope="module")
def queries():
    return _clustered(2, 40)


@pytest.fixture(scope="module", params=KINDS)
def index(request, vectors):
    return DenseIndex.build(vectors, request.param)


# Small whole numbers: products are exact in any order of summing, and ties are everywhere.
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(1, 400),
    k=st.integers(1, 400),
    share=st.sampled_from([None, 0.1, 0.9]),
)
def test_flat_equals_brute_force_with_ties_by_position(seed, n, k, share):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (n, 4)).astype(np.float32)
    queries = rng.integers(-1, 2, (3, 4)).astype(np.float32)
    allowed = None if share is None else rng.random(n) < share
    hits = DenseIndex.build(vectors, "flat").search(queries, k, allowed)
    expected = _brute(vectors, queries, k, allowed)
    assert hits.rows.shape == hits.scores.shape == (3, k)
    assert hits.rows[:, : expected.shape[1]].tolist() == expected.tolist()
    assert (hits.rows[:, expected.shape[1] :] == -1).all()
    for row, row_scores, query in zip(hits.rows, hits.scores, queries, strict=True):
        assert row_scores[row >= 0].tolist() == (vectors[row[row >= 0]] @ query).tolist()
        assert np.isneginf(row_scores[row < 0]).all()


def test_recall_at_10_is_at_least_nine_tenths(index, vectors, queries):
    hits = index.search(queries, 10)
    assert _recall(hits.rows, _brute(vectors, queries, 10)) >= 0.9
    assert (np.diff(hits.scores, axis=1) <= 0).all()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_filtered_search_returns_only_allowed_rows_and_finds_the_best(index, vectors, queries, share):
    allowed = np.random.default_rng(3).random(len(vectors)) < share
    rows = index.search(queries, 10, allowed).rows
    assert allowed[rows].all()
    assert _recall(rows, _brute(vectors, queries, 10, allowed)) >= 0.9


def test_a_narrow_filter_is_exact(index, vectors, queries):
    allowed = np.random.default_rng(4).random(len(vectors)) < 0.02
    kept = index.vectors(np.arange(len(vectors)))  # ivfpq: its 8-bit copies
    assert index.search(queries, 10, allowed).rows.tolist() == _brute(kept, queries, 10, allowed).tolist()


def test_fewer_allowed_than_k_pads_with_minus_one(index, queries):
    allowed = np.zeros(index.n, bool)
    allowed[[7, 2900]] = True
    hits = index.search(queries[:1], 4, allowed)
    assert sorted(hits.rows[0, :2]) == [7, 2900]
    assert hits.rows[0, 2:].tolist() == [-1, -1]
    assert np.isneginf(hits.scores[0, 2:]).all()


def test_k_over_n_returns_every_row_once_and_pads(queries):
    index = DenseIndex.build(_clustered(5, 3), "flat")
    rows = index.search(queries[:2], 5).rows
    assert np.sort(rows, axis=1).tolist() == [[-1, -1, 0, 1, 2]] * 2


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_or_empty_index_answers(kind, n, queries):
    index = DenseIndex.build(_clustered(6, n), kind)
    assert sorted(index.search(queries[:1], 6).rows[0]) == [-1] * (6 - n) + list(range(n))
    assert (index.search(queries[:1], 6, np.zeros(n, bool)).rows == -1).all()
    assert index.vectors(np.empty(0, np.int64)).shape == (0, DIM)


def test_a_filter_that_allows_nothing_finds_nothing(index, queries):
    assert (index.search(queries, 10, np.zeros(index.n, bool)).rows == -1).all()


def test_saved_and_loaded_answers_the_same(index, queries, tmp_path):
    index.save(tmp_path)
    loaded = DenseIndex.load(tmp_path)
    assert (loaded.kind, loaded.n, loaded.dim) == (index.kind, 3000, DIM)
    before, after = index.search(queries, 10), loaded.search(queries, 10)
    assert before.rows.tolist() == after.rows.tolist()
    assert before.scores.tolist() == after.scores.tolist()


def test_vectors_are_those_put_in(index, vectors):
    positions = np.array([5, 0, 2999])
    cosine = (index.vectors(positions) * vectors[positions]).sum(1) / np.linalg.norm(index.vectors(positions), axis=1)
    assert cosine.min() > (0.99 if index.kind == "ivfpq" else 1 - 1e-6)


def test_building_twice_gives_the_same_answers(vectors, queries):
    first, second = (DenseIndex.build(vectors, "ivfpq", seed=3).search(queries, 10) for _ in range(2))
    assert first.rows.tolist() == second.rows.tolist()


def test_auto_is_flat_for_a_small_catalog(vectors):
    assert DenseIndex.build(vectors).kind == "flat"


def test_an_unknown_kind_is_refused(vectors):
    with pytest.raises(ValueError, match="'annoy'"):
        DenseIndex.build(vectors, "annoy")


@pytest.mark.parametrize("shape", [(1, DIM + 1), (DIM,)])
def test_a_query_of_the_wrong_shape_is_refused(index, shape):
    with pytest.raises(IncompatibleArtifact, match="32"):
        index.search(np.zeros(shape, np.float32), 3)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_file_is_refused_by_name(index, tmp_path, keep):
    index.save(tmp_path)
    file = tmp_path / "dense.faiss"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(IncompatibleArtifact, match=r"dense\.faiss"):
        DenseIndex.load(tmp_path)


@pytest.mark.parametrize("said", [{"kind": "flat", "n": 2, "dim": DIM}, {"kind": "flat", "n": 3, "dim": 8}, {}])
def test_wrong_counts_are_refused_by_name(tmp_path, said):
    DenseIndex.build(_clustered(7, 3), "flat").save(tmp_path)
    (tmp_path / "dense.json").write_text(json.dumps(said))
    with pytest.raises(IncompatibleArtifact, match=r"dense\.faiss"):
        DenseIndex.load(tmp_path)


def test_a_missing_index_is_refused_by_name(tmp_path):
    with pytest.raises(IncompatibleArtifact, match=r"dense\.faiss"):
        DenseIndex.load(tmp_path)


def test_above_finds_all_that_reach_the_floor_on_flat_in_one_pass(vectors, queries):
    flat = DenseIndex.build(vectors, "flat")
    floors = [float(np.sort(vectors @ query)[-1500]) - 1e-4 for query in queries[:5]]
    seen = []

    def floor_of(floor):
        return lambda best: seen.append(best) or floor

    found = flat.above(queries[:5], [floor_of(floor) for floor in floors])
    for query, floor, (positions, scores, complete, best) in zip(queries[:5], floors, found, strict=True):
        assert complete
        assert positions.tolist() == np.flatnonzero(vectors @ query >= floor).tolist()
        np.testing.assert_allclose(scores, (vectors @ query)[positions], atol=1e-5)
        assert best == pytest.approx(float((vectors @ query).max()), abs=1e-5)
    assert seen == [best for *_, best in found]


def test_above_tells_when_a_graph_cut_the_list(vectors, queries):
    graph = DenseIndex.build(vectors, "hnsw")
    [(positions, _, complete, _)] = graph.above(queries[:1], [lambda best: -1.0])
    assert (len(positions), complete) == (min(1000, len(vectors)), len(vectors) <= 1000)
    [(positions, _, complete, best)] = graph.above(queries[:1], [lambda best: best - 1e-4])
    assert complete
    assert best == pytest.approx(float((vectors @ queries[0]).max()), abs=1e-5)
    assert int((vectors @ queries[0]).argmax()) in positions


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_a_mapped_index_answers_the_same(tmp_path, vectors, queries, kind):
    DenseIndex.build(vectors, kind).save(tmp_path)
    mapped, read = DenseIndex.load(tmp_path, mapped=True), DenseIndex.load(tmp_path)
    assert mapped.vectors(np.arange(5)).tolist() == read.vectors(np.arange(5)).tolist()
    assert mapped.search(queries, 5).rows.tolist() == read.search(queries, 5).rows.tolist()


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
@pytest.mark.parametrize("share", [None, 0.5, 0.01])
def test_vectors_beside_a_graph_are_found_as_if_they_were_in_it(kind, share):
    vectors, queries = _clustered(1, 3000), _clustered(2, 40)
    index, rng = DenseIndex.build(vectors, kind), np.random.default_rng(5)
    changed = np.append(rng.choice(3000, 400, replace=False), np.arange(3000, 3100))
    new = _unit(queries[rng.integers(40, size=len(changed))] + 0.05 * rng.normal(size=(len(changed), DIM)))
    for position, vector in zip(changed, new, strict=True):
        index.put(int(position), vector)
    now = np.vstack([vectors, np.zeros((100, DIM), np.float32)])
    now[changed] = new
    allowed = None if share is None else rng.random(3100) < share
    found = index.search(queries, 3, allowed)
    assert _recall(found.rows, _brute(now, queries, 3, allowed)) >= 0.98
    assert allowed is None or allowed[found.rows[found.rows >= 0]].all()


def test_equal_vectors_beside_a_graph_are_found_by_position():
    index = DenseIndex.build(_clustered(1, 700), "hnsw")
    same = _unit(np.ones((1, DIM)))[0]
    for position in (650, 3, 400, 17):
        index.put(position, same)
    assert index.search(same[None], 3).rows.tolist() == [[3, 17, 400]]
