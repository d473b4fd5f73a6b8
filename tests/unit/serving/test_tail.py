"""Who follows the log: each in turn, whatever the others do."""

import threading
import time

import pytest

from rayrec.errors import Unavailable
from rayrec.schema import Change
from rayrec.serving.tail import Following, Tail
from tests.service import until


class BusyLog:
    """One that always has more, as under a stream of writes."""

    def newest(self):
        return 10**9

    def changes(self, after, limit):
        return [Change(after + 1 + n, "a", None, None, 0) for n in range(limit)]


class Place:
    """As much of a LiveCatalog as a tail sees."""

    def __init__(self, broken=False):
        self.offset, self.broken = 0, broken

    def plan(self, changes, embed):
        if self.broken:
            raise ValueError("cannot be worked out")
        time.sleep(0.001)
        return []

    def took(self, offset, steps=()):
        self.offset = offset


def following(broken=False):
    part = object()
    return Following(part, Place(broken), lambda updates, offset: None, lambda updates: [], None)


@pytest.fixture
def tail():
    failures = []
    made = Tail(BusyLog(), 0.01, lambda work: work(), on_failure=lambda: failures.append(1))
    made.failures = failures
    yield made
    made.close()


def follow_at_once(tail, *all_of_them):
    with tail._lock:
        tail._following = list(all_of_them)


def test_every_version_gets_on_while_writes_never_end(tail):
    first, second = following(), following()
    follow_at_once(tail, first, second)
    until(lambda: min(first.live.offset, second.live.offset) > 1_000, 10)
    assert abs(first.live.offset - second.live.offset) <= 200


def test_one_that_fails_is_tried_again_and_keeps_no_other_waiting(tail, monkeypatch):
    monkeypatch.setattr("rayrec.serving.tail._RETRY_S", 0.05)
    broken, sound = following(broken=True), following()
    follow_at_once(tail, broken, sound)
    until(lambda: sound.live.offset > 1_000 and len(tail.failures) > 2, 10)
    assert broken.live.offset == 0
    broken.live.broken = False
    until(lambda: broken.live.offset > 100, 10)


def test_a_new_version_catches_up_with_what_there_was_and_begins_though_more_comes(tail, monkeypatch):
    """As far as the others are, but for what is written in that moment."""
    began = time.monotonic()
    rate = 5_000  # changes a second, as many as are taken up in a tenth of it
    monkeypatch.setattr(tail._log, "newest", lambda: 3_000 + int((time.monotonic() - began) * rate), raising=False)
    new = following()
    tail.follow(new)
    assert tail._log.newest() - new.live.offset < 1_500
    monkeypatch.setattr(tail._log, "newest", lambda: 10 * new.live.offset + 10_000, raising=False)
    tail.follow(following())  # writes are faster
    with pytest.raises(ValueError, match="worked out"):
        tail.follow(following(broken=True))


def test_closing_does_not_wait_for_the_end_of_the_log():
    tail = Tail(BusyLog(), 0.01, lambda work: work())
    follow_at_once(tail, following())
    time.sleep(0.05)
    closing = threading.Thread(target=tail.close)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()


def test_what_takes_back_and_fails_is_taken_up_again():
    """A replica does not stay in the past."""
    calls = []

    class Steps(Place):
        def since(self, offset):
            return [("update", "back")]

    def update(updates, offset):
        calls.append((updates, offset))
        if updates == ["back"]:
            raise Unavailable("no model")

    place = Steps()
    place.offset = 9
    part = Following(object(), place, update, lambda updates: [], None)
    with pytest.raises(Unavailable), part.as_of(5):
        pass
    assert calls == [(["back"], 5), (["update"], 9)]
