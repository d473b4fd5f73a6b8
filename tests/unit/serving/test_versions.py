"""Live versions: swapped when whole, kept for a while, and never taken from a broken one."""

import time
from collections.abc import Callable

import pytest

from rayrec.errors import IncompatibleArtifact, NotFound, VersionNotLoaded
from rayrec.serving.versions import Live, Pair
from rayrec.workspace import Workspace


def _publish(ws: Workspace) -> str:
    with ws.stage("indexes") as staged:
        staged.write_bytes("x", b"x")
        return staged.publish({"encoder": {"space": "s"}})


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def ws(tmp_path):
    return Workspace.open(tmp_path)


class Parts:
    """Loads a pair as its name, or fails for those in `broken`; remembers what it was asked."""

    def __init__(self, ws: Workspace):
        self.loaded: list[tuple[str, str | None]] = []
        self.broken: set[str] = set()
        self.failures: list[Pair] = []
        self.live = Live(ws, self.load, poll_s=0.02, on_failure=self.failures.append)

    def load(self, pair: Pair, before: str | None) -> str:
        self.loaded.append((pair.index, before))
        if pair.index in self.broken:
            raise IncompatibleArtifact(pair.index)
        return pair.index


@pytest.fixture
def promoted(ws):
    first = _publish(ws)
    ws.promote(index=first)
    parts = Parts(ws)
    yield first, parts
    parts.live.close()


def test_without_a_promoted_version_there_is_nothing_to_serve(ws):
    with pytest.raises(NotFound, match="rayrec index"):
        Parts(ws)


def test_a_promoted_version_takes_over_and_the_one_before_still_answers(ws, promoted):
    first, parts = promoted
    second = _publish(ws)
    ws.promote(index=second)
    _until(lambda: parts.live.current.value == second)
    assert parts.loaded == [(first, None), (second, first)]
    assert parts.live.get(Pair(first)).value == first
    assert parts.live.of_index(first).value == first


def test_a_rollback_finds_its_version_loaded(ws, promoted):
    first, parts = promoted
    ws.promote(index=_publish(ws))
    _until(lambda: parts.live.current.pair != Pair(first))
    ws.rollback()
    _until(lambda: parts.live.current.pair == Pair(first))
    assert len(parts.loaded) == 2


def test_a_broken_version_never_goes_live_and_the_next_good_one_does(ws, promoted):
    first, parts = promoted
    broken, good = _publish(ws), _publish(ws)
    parts.broken.add(broken)
    ws.promote(index=broken)
    _until(lambda: bool(parts.failures))
    time.sleep(0.2)
    assert parts.live.current.value == first
    assert len(parts.loaded) == 2, "a version that failed is not tried at every look"
    ws.promote(index=good)
    _until(lambda: parts.live.current.value == good)


def test_a_damaged_pointer_changes_nothing(ws, promoted):
    first, parts = promoted
    ws.write_bytes(b"{", "current.json")
    time.sleep(0.1)
    assert parts.live.current.value == first
    second = _publish(ws)
    (ws.fs.delete_file(ws.path("current.json")), ws.promote(index=second))
    _until(lambda: parts.live.current.value == second)


def test_an_unknown_pair_is_refused(promoted):
    _, parts = promoted
    with pytest.raises(VersionNotLoaded, match="nope"):
        parts.live.get(Pair("nope"))
    assert parts.live.of_index("nope") is None
