"""What is held out is found again by its ids, whatever events join; new cases by hand."""

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data.held_out import SCHEMA, HeldOut, cases_of, drawn, held_out_of_new
from rayrec.data.histories import DAY_US, Cases, Histories, leave_one_out, next_baskets
from rayrec.schema import EVENTS

IDS = pa.array([f"i{n}" for n in range(8)])


def events(*rows):
    """(id, user, item, day) each, in order of time; an item in capitals is a search for it."""
    table = [
        {
            "event_id": name,
            "user_id": user,
            "type": "search" if item.isupper() else "purchase",
            "item_id": None if item.isupper() else item,
            "query": item if item.isupper() else None,
            "ts_us": int(day * DAY_US),
        }
        for name, user, item, day in rows
    ]
    return pa.Table.from_pylist(sorted(table, key=lambda row: row["ts_us"]), schema=EVENTS)


def of(table):
    return Histories.of(table, IDS), table.column("event_id").combine_chunks()


def asked(cases: Cases):
    """(shopper, rows before, rows wanted) of each."""
    one = [cases.take(np.array([c])) for c in range(len(cases))]
    return [(c.histories.users[0], c.histories.rows.tolist(), c.wanted.tolist()) for c in one]


BEFORE = [
    ("a", "ann", "i0", 1),
    ("b", "ann", "i1", 2),
    ("c", "ann", "i2", 3),
    ("d", "ann", "TEA", 3.5),
    ("e", "ann", "i3", 4),
    ("f", "bob", "i4", 1),
    ("g", "bob", "i5", 2),
]
LATER = [("h", "ann", "i6", 9), ("i", "bob", "i6", 9), ("late", "ann", "i7", 0.5)]


def test_the_last_two_items_are_still_held_out_when_they_are_not_the_last_any_more():
    histories, ids = of(events(*BEFORE))
    learned, valid, test = leave_one_out(histories)
    held = HeldOut.of_split(len(ids), histories, learned, valid, test)
    saved = held.table(ids)
    assert saved.schema == SCHEMA
    assert saved.to_pydict() == {"event_id": ["c", "d", "e"], "valid": [0, -1, -1], "test": [-1, -1, 0]}
    assert asked(cases_of(histories, held.test)) == asked(test) == [("ann", [0, 1, 2, -1], [3])]

    longer, ids = of(events(*BEFORE, *LATER))
    again = HeldOut.read(saved, ids)
    assert set(ids.filter(pa.array(again.held)).to_pylist()) == {"c", "d", "e"}
    assert asked(cases_of(longer, again.valid)) == [("ann", [7, 0, 1], [2])]
    assert asked(cases_of(longer, again.test)) == [("ann", [7, 0, 1, 2, -1], [3])]
    assert again.table(ids).equals(saved)


@pytest.mark.parametrize("seed", range(3))
def test_the_cases_of_a_split_by_time_are_found_again(seed):
    rng = np.random.default_rng(seed)
    rows = [(str(n), f"u{rng.integers(5)}", f"i{rng.integers(8)}", float(rng.integers(40)) / 2) for n in range(120)]
    histories, ids = of(events(*rows))
    learned, valid = next_baskets(histories, 14 * DAY_US, 17 * DAY_US, every=True)
    _, test = next_baskets(histories, 17 * DAY_US, every=True)
    held = HeldOut.read(HeldOut.of_split(len(ids), histories, learned, valid, test).table(ids), ids)
    assert len(test) > 5
    assert asked(cases_of(histories, held.valid)) == asked(valid)
    assert asked(cases_of(histories, held.test)) == asked(test)
    assert histories.where(~held.held[histories.sources]).rows.tolist() == learned.rows.tolist()


def test_a_case_whose_item_left_the_catalog_is_none():
    histories, ids = of(events(*BEFORE))
    held = HeldOut.of_split(len(ids), histories, *leave_one_out(histories))
    smaller = Histories.of(events(*BEFORE), pa.array(["i0", "i2", "i4"]))
    assert asked(cases_of(smaller, held.test)) == []
    assert asked(cases_of(smaller, held.valid)) == [("ann", [0], [1])]


def test_of_new_events_each_judging_shoppers_last_item_is_held_out():
    histories, ids = of(events(*BEFORE, *LATER, ("x", "eve", "i1", 9)))
    new = ~np.isin(ids.to_pylist(), [row[0] for row in BEFORE])
    held = held_out_of_new(histories, new, 0.999, baskets=False)
    assert set(ids.filter(pa.array(held.held)).to_pylist()) == {"h", "i"}  # of eve nothing is known before
    found = asked(cases_of(histories, held.test)) + asked(cases_of(histories, held.valid))
    assert sorted(found) == [("ann", [7, 0, 1, 2, -1, 3], [6]), ("bob", [4, 5], [6])]
    assert not (held.held & ~new).any()


def test_of_new_baskets_all_that_is_new_in_the_last_is_held_out():
    rows = [("a", "i0", 1), ("b", "i1", 5), ("c", "i2", 9.0), ("d", "i3", 9.1), ("e", "i4", 9.2)]
    histories, ids = of(events(*((name, "ann", item, day) for name, item, day in rows)))
    new = np.isin(ids.to_pylist(), ["b", "d", "e"])
    held = held_out_of_new(histories, new, 0.999, baskets=True)
    assert ids.filter(pa.array(held.held)).to_pylist() == ["d", "e"]
    found = asked(cases_of(histories, held.test)) + asked(cases_of(histories, held.valid))
    assert found == [("ann", [0, 1, 2], [3, 4])]


def test_the_same_share_of_shoppers_judges_every_time():
    rows = [(f"{n}-{day}", f"u{n}", f"i{(n + day) % 8}", day) for n in range(400) for day in (1, 2, 3)]
    histories, ids = of(events(*rows))
    names = np.array(ids.to_pylist())

    def judges(day):
        held = held_out_of_new(histories, np.char.endswith(names, f"-{day}"), 0.5, baskets=False)
        return [set(cases_of(histories, part).histories.users) for part in (held.valid, held.test)]

    valid, test = judges(2)
    assert judges(3) == [valid, test]
    assert not valid & test
    assert test == {user for user in map(str, histories.users) if drawn(user) < 0.25}
    assert 70 < len(test) < 130


def test_cases_of_two_updates_stay_apart():
    one = HeldOut(np.array([True, True, False]), np.array([-1, 0, -1]), np.array([0, -1, -1]))
    two = HeldOut(np.array([False, False, True]), np.array([-1, -1, -1]), np.array([-1, -1, 0]))
    both = one.joined(two)
    assert both.held.all()
    assert (both.valid.tolist(), both.test.tolist()) == ([-1, 0, -1], [0, -1, 1])


def test_nothing_held_out_is_read_as_nothing():
    held = HeldOut.read(SCHEMA.empty_table(), pa.array(["a", "b"]))
    assert not held.held.any()
    assert held.test.tolist() == [-1, -1]


def test_histories_of_no_table_cannot_be_asked_for_their_events():
    with pytest.raises(ValueError, match="not made of a table"):
        cases_of(Histories.of_rows([[1, 2]]), np.zeros(2, np.int64))
