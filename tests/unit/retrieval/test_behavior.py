import math

import numpy as np
import pyarrow as pa
import pytest

from rayrec.errors import IncompatibleArtifact
from rayrec.retrieval.behavior import HISTORY, NEIGHBOURS, BehaviorIndex
from rayrec.schema import EVENTS
from tests.fakes import DAY_US, NOW_US, make_events

IDS = pa.array(["a", "b", "c", "d"])


def _build(records, ids=IDS, half_life_days=10.0):
    return BehaviorIndex.build(make_events(records), ids, half_life_days)


def _baskets(*baskets):
    return [{"session_id": f"s{i}", "item_id": item} for i, basket in enumerate(baskets) for item in basket]


def _pairs(index):
    found = index.neighbours.tocoo()
    return {(int(i), int(j)): float(v) for i, j, v in zip(found.row, found.col, found.data, strict=True)}


def test_popularity_fades_by_half_a_half_life_and_by_kind_of_event():
    index = _build(
        [
            {"item_id": "d", "type": "add_to_cart", "ts_us": NOW_US - 20 * DAY_US},
            {"item_id": "b", "ts_us": NOW_US - 10 * DAY_US},
            {"item_id": "a"},
            {"item_id": "c", "type": "view"},
            {"item_id": "c", "type": "click"},
        ]
    )
    weights = [1.0, 0.5, 0.1 + 0.2, 0.5 / 4]
    assert index.popularity == pytest.approx([math.log1p(w) / math.log(2) for w in weights])
    assert index.now_us == NOW_US
    assert index.events == 5


def test_repeat_is_the_share_of_buyers_that_came_back_smoothed_by_five():
    buys = [("u1", "s1"), ("u1", "s2"), ("u1", "s3"), ("u2", "s4"), ("u3", "s5")]
    records = [{"user_id": user, "session_id": session, "item_id": "a"} for user, session in buys]
    records += [{"user_id": "u4", "session_id": "s6", "item_id": "b"}] * 2  # twice in one basket is not again
    records += [{"user_id": "u5", "session_id": s, "item_id": "c", "type": "view"} for s in ("s7", "s8")]
    records += [{"session_id": s, "item_id": "d"} for s in ("s9", "s10")]  # nobody we know
    index = _build([{"event_id": f"e{i}", **record} for i, record in enumerate(records)])
    assert index.repeat == pytest.approx([1 / (3 + 5), 0, 0, 0])


def test_neighbours_are_the_shrunk_cosine_of_three_baskets():
    index = _build(_baskets("ab", "ab", "ac", "d"))
    ab, ac = 2 / (math.sqrt(3 * 2) + 10), 1 / (math.sqrt(3 * 1) + 10)
    assert _pairs(index) == pytest.approx({(0, 1): ab, (1, 0): ab, (0, 2): ac, (2, 0): ac})


def test_a_basket_of_one_half_life_ago_makes_half_a_pair():
    old = [{"session_id": "s", "item_id": item, "ts_us": NOW_US - 10 * DAY_US} for item in "ab"]
    index = _build([*old, {"session_id": "now", "item_id": "c"}])
    assert _pairs(index)[0, 1] == pytest.approx(0.5 / (math.sqrt(0.5 * 0.5) + 10))


def test_without_a_session_a_basket_is_a_users_day():
    day = NOW_US - NOW_US % DAY_US
    index = _build(
        [
            {"user_id": "u", "item_id": "a", "ts_us": day},
            {"user_id": "u", "item_id": "b", "ts_us": day + DAY_US - 1},
            {"user_id": "u", "item_id": "c", "ts_us": day + DAY_US},
            {"user_id": "v", "item_id": "d", "ts_us": day + DAY_US},
        ]
    )
    assert set(_pairs(index)) == {(0, 1), (1, 0)}


def test_a_session_is_one_basket_over_midnight_and_apart_from_the_users_day():
    day = NOW_US - NOW_US % DAY_US
    index = _build(
        [
            {"user_id": "u", "session_id": "s", "item_id": "a", "ts_us": day - 1},
            {"user_id": "u", "session_id": "s", "item_id": "b", "ts_us": day + 1},
            {"user_id": "u", "item_id": "c", "ts_us": day + 2},
        ]
    )
    assert set(_pairs(index)) == {(0, 1), (1, 0)}


def test_events_of_nobody_are_no_basket():
    assert _pairs(_build([{"item_id": "a"}, {"item_id": "b"}])) == {}


@pytest.mark.parametrize(("size", "counts"), [(200, True), (201, False)])
def test_a_basket_over_the_cap_says_nothing(size, counts):
    names = [f"i{i:03d}" for i in range(size)]
    index = _build(_baskets(names), ids=pa.array(names))
    assert (index.neighbours.nnz > 0) == counts


def test_the_nearest_neighbours_are_kept_and_ties_go_by_item_id():
    names = [f"i{i:02d}" for i in range(NEIGHBOURS + 10)]
    index = _build(_baskets(names, [names[0], names[-1]]), ids=pa.array(names))
    assert sorted(index.neighbours[0].indices) == [*range(1, NEIGHBOURS), NEIGHBOURS + 9]
    assert sorted(index.neighbours[30].indices) == [i for i in range(1, NEIGHBOURS + 2) if i != 30]


def rows_and_ages(index, user):
    """Of a shopper's history: rows, and ages in days."""
    history = index.history(user)
    return history.rows.tolist(), ((index.now_us - history.ts_us) / DAY_US).tolist()


def test_history_is_oldest_first_with_ages_in_days():
    index = _build(
        [
            {"user_id": "u", "item_id": "b", "ts_us": NOW_US - 3 * DAY_US},
            {"user_id": "u", "item_id": "a", "ts_us": NOW_US - 2 * DAY_US},
            {"user_id": "t", "item_id": "c", "ts_us": NOW_US - DAY_US, "type": "view"},
            {"user_id": "u", "item_id": "b", "ts_us": NOW_US - DAY_US // 2},
            {"item_id": "d"},
        ]
    )
    rows, ages = rows_and_ages(index, "u")
    assert (rows, ages) == ([1, 0, 1], [3, 2, 0.5])
    assert index.history("t").rows.tolist() == [2]
    for stranger in ("", "a", "uu", "zzz"):
        assert rows_and_ages(index, stranger) == ([], [])


def test_history_keeps_the_last_events_of_each_user():
    records = [
        {"user_id": f"u{i % 2}", "item_id": "abcd"[i % 4], "ts_us": NOW_US + i * DAY_US} for i in range(3 * HISTORY)
    ]
    rows, ages = rows_and_ages(_build(records), "u1")
    assert ages == list(range(2 * HISTORY - 2, -1, -2))
    assert rows == [1, 3] * (HISTORY // 2)


def test_unknown_items_and_searches_are_not_counted():
    known = [{"user_id": "u", "session_id": "s", "item_id": item} for item in "ab"]
    noise = [
        {"user_id": "u", "session_id": "s", "item_id": "gone"},
        {"user_id": "u", "session_id": "s", "type": "search", "query": "pizza"},
        {"user_id": "u", "session_id": "s", "type": "search", "item_id": "c"},
    ]
    clean, noisy = _build(known), _build([*known, *noise])
    assert noisy.events == 2
    assert noisy.popularity.tolist() == clean.popularity.tolist()
    assert _pairs(noisy) == _pairs(clean)
    history = noisy.history("u")
    assert sorted(history.rows.tolist()) == [-1, 0, 1]
    assert [history.texts[q] for q in history.queries if q >= 0] == ["pizza"]


@pytest.mark.parametrize("events", [EVENTS.empty_table(), make_events([{"item_id": "gone", "user_id": "u"}])])
def test_without_usable_events_nothing_is_known(events):
    index = BehaviorIndex.build(events, IDS, 10.0)
    assert (index.events, index.popularity.tolist(), index.repeat.tolist()) == (0, [0] * 4, [0] * 4)
    assert (index.neighbours.shape, index.neighbours.nnz) == ((4, 4), 0)
    assert rows_and_ages(index, "u") == ([], [])


@pytest.mark.parametrize("records", [[], [{**r, "user_id": "ü"} for r in _baskets("ab", "abc")]])
def test_saved_and_loaded_is_the_same(tmp_path, records):
    index = _build(records)
    index.save(tmp_path)
    loaded = BehaviorIndex.load(tmp_path)
    for name, value in vars(index).items():
        found = getattr(loaded, name)
        if name == "histories":
            for part, wanted in vars(value).items():
                assert np.array_equal(getattr(found, part), wanted), part
        else:
            assert _pairs(loaded) == _pairs(index) if name == "neighbours" else np.array_equal(found, value), name
    assert loaded.history("ü").rows.tolist() == index.history("ü").rows.tolist()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"junk"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    _build([{"item_id": "a"}]).save(tmp_path)
    file = tmp_path / "behavior.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(IncompatibleArtifact, match=r"behavior\.npz"):
        BehaviorIndex.load(tmp_path)


def test_a_missing_index_is_refused_by_name(tmp_path):
    with pytest.raises(IncompatibleArtifact, match=r"behavior\.npz"):
        BehaviorIndex.load(tmp_path)
