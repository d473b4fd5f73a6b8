"""Histories by hand: order, splits, baskets."""

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data.histories import DAY_US, SEARCH, Histories, leave_one_out, next_baskets
from rayrec.schema import EVENTS
from tests.fakes import make_events

IDS = pa.array(["a", "b", "c", "d"])


def events(*rows):
    """(user, type, item or query, day, session) each."""
    table = [
        {
            "event_id": str(i),
            "user_id": user,
            "type": kind,
            "item_id": None if kind == "search" else what,
            "query": what if kind == "search" else None,
            "ts_us": int(day * DAY_US),
            "session_id": session,
        }
        for i, (user, kind, what, day, session) in enumerate(rows)
    ]
    return pa.Table.from_pylist(sorted(table, key=lambda row: row["ts_us"]), schema=EVENTS)


def test_events_become_histories_by_user_in_order_of_time():
    found = Histories.of(
        events(
            ("v", "view", "b", 1, None),
            ("u", "purchase", "a", 2, None),
            ("u", "search", "tea", 3, None),
            ("u", "click", "c", 4, None),
            ("u", "view", "unknown", 5, None),
            (None, "view", "a", 6, None),
        ),
        IDS,
    )
    assert found.users.tolist() == ["u", "v"]
    assert found.lengths.tolist() == [3, 1]
    assert found.rows.tolist() == [0, -1, 2, 1]
    assert found.kinds[1] == SEARCH
    assert [found.texts[q] if q >= 0 else None for q in found.queries] == [None, "tea", None, None]


def test_only_the_kinds_asked_for_are_kept():
    found = Histories.of(events(("u", "view", "a", 1, None), ("u", "purchase", "b", 2, None)), IDS, kinds=["purchase"])
    assert found.rows.tolist() == [1]


def test_equal_times_keep_the_order_of_the_events():
    rows = [("u", "view", item, 1, None) for item in "dbca"]
    assert Histories.of(events(*rows), IDS).rows.tolist() == [3, 1, 2, 0]


def test_leave_one_out_takes_the_last_two_items_of_who_has_three():
    learned, valid, test = leave_one_out(Histories.of_rows([[0, 1, 2, 3], [0, 1], [3, 2, 1]]))
    assert [learned.rows[learned.start[h] : learned.start[h + 1]].tolist() for h in range(3)] == [[0, 1], [0, 1], [3]]
    assert valid.wanted.tolist() == [2, 2]
    assert test.wanted.tolist() == [3, 1]
    assert valid.histories.rows.tolist() == [0, 1, 3]
    assert test.histories.rows.tolist() == [0, 1, 2, 3, 2]
    assert test.histories.users.tolist() == ["0", "2"]


def test_a_search_after_the_item_left_out_is_not_told():
    history = Histories.of(
        events(
            ("u", "view", "a", 1, None),
            ("u", "view", "b", 2, None),
            ("u", "search", "cups", 3, None),
            ("u", "view", "c", 4, None),
            ("u", "search", "tea", 5, None),
        ),
        IDS,
    )
    learned, valid, test = leave_one_out(history)
    assert learned.rows.tolist() == [0]
    assert (valid.histories.rows.tolist(), valid.wanted.tolist()) == ([0], [1])
    assert (test.histories.rows.tolist(), test.wanted.tolist()) == ([0, 1, -1], [2])


def test_next_baskets_are_the_first_ones_after_the_moment():
    history = Histories.of(
        events(
            ("u", "purchase", "a", 1, "s1"),
            ("u", "purchase", "b", 10, "s2"),
            ("u", "purchase", "a", 10.1, "s2"),
            ("u", "purchase", "b", 10.2, "s2"),
            ("u", "purchase", "d", 12, "s3"),
            ("v", "purchase", "c", 11, "s4"),
            ("w", "purchase", "c", 2, "s5"),
        ),
        IDS,
    )
    learned, cases = next_baskets(history, 5 * DAY_US)
    assert learned.rows.tolist() == [0, 2]
    assert cases.histories.users.tolist() == ["u", "v"]
    assert cases.histories.lengths.tolist() == [1, 0]
    assert cases.wanted.tolist() == [0, 1, 2]
    assert cases.wanted_start.tolist() == [0, 2, 3]
    _, fewer = next_baskets(history, 5 * DAY_US, until_us=int(10.5 * DAY_US))
    assert fewer.histories.users.tolist() == ["u"]


def test_every_basket_comes_after_what_its_shopper_did_before_it():
    history = Histories.of(
        events(
            ("v", "purchase", "c", 11, "s4"),
            ("u", "purchase", "a", 1, "s1"),
            ("u", "purchase", "b", 10, "s2"),
            ("u", "purchase", "a", 10.1, "s2"),
            ("u", "purchase", "d", 12, "s3"),
            ("u", "purchase", "a", 20, "s6"),
        ),
        IDS,
    )
    learned, cases = next_baskets(history, 5 * DAY_US, int(15 * DAY_US), every=True)
    assert learned.rows.tolist() == [0]
    assert cases.histories.users.tolist() == ["u", "u", "v"]
    assert [cases.take(np.array([c])).histories.rows.tolist() for c in range(3)] == [[0], [0, 1, 0], []]
    assert [cases.take(np.array([c])).wanted.tolist() for c in range(3)] == [[0, 1], [3], [2]]


def test_a_session_of_nobody_known_is_a_shopper_if_asked_for():
    seen = events(
        ("u", "view", "a", 1, "s1"),
        (None, "view", "b", 2, "s2"),
        (None, "view", "c", 3, "s2"),
        (None, "view", "a", 4, None),
    )
    assert Histories.of(seen, IDS).users.tolist() == ["u"]
    found = Histories.of(seen, IDS, sessions=True)
    assert found.users.tolist() == ["session s2", "u"]
    assert found.rows.tolist() == [1, 2, 0]
    assert found.of_user("u").rows.tolist() == [0]


def test_without_sessions_a_basket_is_a_day():
    history = Histories.of(
        events(("u", "purchase", "a", 1.0, None), ("u", "purchase", "b", 1.5, None), ("u", "purchase", "c", 2.1, None)),
        IDS,
    )
    assert history.baskets[0] == history.baskets[1] != history.baskets[2]


@pytest.mark.parametrize("n", [1, 3, 100])
def test_the_last_events_and_a_sample(n):
    history = Histories.of_rows([[0, 1, 2, 3], [1]])
    assert history.last(n).lengths.tolist() == [min(n, 4), 1]
    assert history.last(n).rows[-1] == 1
    _, _, test = leave_one_out(Histories.of_rows([[i % 4, 1, 2] for i in range(50)]))
    some = test.sample(n, seed=0)
    assert len(some) == min(n, 50)
    np.testing.assert_array_equal(some.wanted, np.full(len(some), 2))


def test_without_some_events_every_place_stays_and_each_file_means_the_same_beside_the_others() -> None:
    table = make_events(
        [
            {"user_id": "ann", "type": "search", "query": "hers", "ts_us": 1},
            {"user_id": "bob", "item_id": "a", "ts_us": 2},
            {"user_id": "bob", "type": "search", "query": "his", "ts_us": 3},
            {"user_id": "cat", "type": "search", "query": "shared", "ts_us": 4},
            {"user_id": "dan", "type": "search", "query": "shared", "ts_us": 5},
        ]
    )
    before = Histories.of(table, pa.array(["a"]))
    h = np.repeat(before.users, before.lengths)

    after = before.without(np.isin(h.astype(str), ["ann", "cat"]))

    assert after.users.tolist() == ["", "bob", "bob", "dan"]
    assert list(after.texts) == ["", "his", "shared"]
    assert [len(after.of_user(one).rows) for one in ("ann", "bob", "cat", "dan")] == [0, 2, 0, 1]
    assert after.of_user("bob").rows.tolist() == before.of_user("bob").rows.tolist()
    old, new = before.files(), after.files()
    assert next(iter(new)) == "histories.npz"
    for done in range(len(new) + 1):  # as many of them as were replaced
        mixed = Histories.of_files(lambda name, done=done: (new if name in list(new)[:done] else old)[name])
        assert mixed.of_user("bob").rows.tolist() == before.of_user("bob").rows.tolist()
        again = mixed.without(np.isin(np.repeat(mixed.users, mixed.lengths).astype(str), ["ann", "cat"]))
        assert again.files() == new or done == 0
        assert (again.users.tolist(), list(again.texts)) == (after.users.tolist(), list(after.texts))


def test_after_a_moment() -> None:
    table = make_events([{"user_id": "ann", "item_id": "a", "ts_us": ts} for ts in (1, 2, 3)])
    history = Histories.of(table, pa.array(["a"])).of_user("ann")
    assert [history.after(ts).ts_us.tolist() for ts in (-1, 0, 2, 3)] == [[1, 2, 3], [1, 2, 3], [3], []]
