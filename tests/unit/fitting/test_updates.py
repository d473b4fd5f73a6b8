"""What an update learns: new events and a drawn share of old ones, nothing that is held out; and that it pays."""

from dataclasses import replace

import numpy as np
import pytest

from rayrec.config import RecommenderConfig, TrainConfig
from rayrec.data.held_out import HeldOut
from rayrec.data.histories import DAY_US, Histories
from rayrec.fitting.updates import Lesson, replayed
from rayrec.schema import EVENT_TYPES


def sequences(rows):
    histories = Histories.of_rows(rows)
    return replace(histories, places=np.arange(len(histories.rows)))


def nothing(n):
    return HeldOut(np.zeros(n, bool), np.full(n, -1), np.full(n, -1))


def test_a_replay_has_whole_windows_and_as_many_events_as_asked():
    histories = sequences([np.arange(5), np.arange(5), np.arange(5)])
    old = np.ones(15, bool)
    seen = set()
    for seed in range(20):
        again = replayed(histories, old, 10, 6, seed)
        assert not again[histories.start[:-1]].any()  # nothing foresees the first
        per_shopper = again.reshape(3, 5).sum(1)
        assert sorted(per_shopper) == [0, 2, 4]
        seen.add(tuple(per_shopper))
        assert np.array_equal(again, replayed(histories, old, 10, 6, seed))
    assert len(seen) > 3
    assert replayed(histories, old, 10, 99, 0).sum() == 12
    assert replayed(histories, old & (np.arange(15) < 5), 10, 99, 0).sum() == 4
    assert not replayed(histories, old, 10, 0, 0).any()


def lesson(replay, seed=0, held=None, kinds=None):
    """Ten shoppers of 6 old events and 4 new ones."""
    histories = sequences([np.arange(10)] * 10)
    if kinds is not None:
        histories = replace(histories, kinds=kinds(histories.kinds))
    known = np.tile(np.arange(10) < 6, 10)
    config = TrainConfig(model=RecommenderConfig(length=20))
    return Lesson.of(histories, known, held or nothing(100), config, replay=replay, held_out=0.5, seed=seed)


@pytest.mark.parametrize(("replay", "expected"), [(0.0, 0), (0.5, 0.5), (1.0, 1.0), (99.0, None)])
def test_new_events_are_taught_with_so_many_old_ones(replay, expected):
    found = lesson(replay)
    judging = int(found.fresh.held.sum())  # one event each of about half of the shoppers
    assert 1 <= judging <= 9
    new = 40 - judging
    assert (found.taught & ~found.known).sum() == new
    # each shopper's first event is foreseen by nothing
    assert found.replayed == (found.taught & found.known).sum() == (50 if expected is None else round(expected * new))


def test_what_is_held_out_is_never_taught_nor_counted():
    held = nothing(100)
    held.held[[4, 5, 14, 15]] = True
    held.test[[5, 15]] = [0, 1]
    held.valid[[4, 14]] = [0, 1]
    found = lesson(99.0, held=held)
    assert not (found.taught & found.held).any()
    assert found.held.sum() == 4 + found.fresh.held.sum()
    assert len(found.old_test) == 2
    before, after = found.learned(before=True), found.learned(before=False)
    assert len(before.rows) == 56
    assert len(after.rows) == 100 - found.held.sum()
    assert not found.held[after.sources].any()
    assert found.known[before.sources].all()
    # both slices count alike when the best epoch is chosen
    news = len(np.unique(found.fresh.valid[found.fresh.valid >= 0]))
    assert len(found.valid) == news + min(news, 2)
    assert [(old, len(cases)) for old, cases in found.valid_by_slice()] == [(True, 2), (False, news)]


def test_events_without_weight_do_not_count():
    found = lesson(1.0, kinds=lambda kinds: np.full_like(kinds, EVENT_TYPES.index("search")))
    assert not found.taught.any()
    assert "nothing to learn" in str(found.lacking(0))


def test_too_few_cases_are_told():
    assert lesson(1.0).lacking(0) is None
    assert str(lesson(1.0).lacking(11)).endswith("new cases to judge by, at least 11 are needed")
    assert lesson(1.0).lacking(1) == "0 old cases to judge by, at least 1 are needed"


def test_an_event_that_comes_late_is_new_whatever_its_time():
    histories = sequences([np.arange(8)] * 40)
    known = np.tile(np.arange(8) != 3, 40)  # new ones lie between old ones
    assert histories.ts_us[3] == 3 * DAY_US
    found = Lesson.of(histories, known, nothing(320), TrainConfig(), replay=0.0, held_out=0.5, seed=0)
    taught = np.flatnonzero(found.taught)
    assert len(taught) + found.fresh.held.sum() == 40
    assert set(taught % 8) == {3}
    assert found.new_test.histories.lengths.tolist() == [3] * len(found.new_test)
