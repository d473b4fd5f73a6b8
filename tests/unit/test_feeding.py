"""Events on their way to a service that is busy, away, or finds fault with some of them."""

import io
import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrec import feeding
from rayrec.errors import RayrecError, SchemaError, Unavailable
from rayrec.feeding import Feeder, feed_lines, feed_stream, recorded, replay
from tests.fakes import DAY_US, NOW_US, make_events
from tests.redis_server import redis_server


class Taker(HTTPServer):
    """Takes events as the service does; answers the first requests with `before`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.before: list[tuple[int, bytes]] = []
        self.taken: dict[str, dict[str, Any]] = {}
        self.batches: list[int] = []
        self.keys: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Taker

    def do_POST(self) -> None:
        events = json.loads(self.rfile.read(int(self.headers["content-length"])))["events"]
        self.server.keys.add(self.headers["authorization"])
        if self.server.before:
            status, body = self.server.before.pop(0)
            return self._answer(status, body)
        self.server.batches.append(len(events))
        bad = [i for i, event in enumerate(events) if "type" not in event]
        new = {
            e["event_id"]: e for i, e in enumerate(events) if i not in bad and e["event_id"] not in self.server.taken
        }
        self.server.taken |= new
        rejected = [{"index": i, "code": "invalid_event", "message": "type: Field required"} for i in bad]
        told = {"accepted": len(new), "duplicates": len(events) - len(bad) - len(new), "rejected": rejected}
        return self._answer(200, json.dumps(told).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("retry-after", "0")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def taker() -> Iterator[Taker]:
    server = Taker()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def feeder(taker: Taker) -> Iterator[Feeder]:
    feeder = Feeder(taker.url, "the key", patience_s=1.0)
    yield feeder
    feeder.close()


def lines(*events: Any) -> io.BytesIO:
    return io.BytesIO(b"".join((e if isinstance(e, bytes) else json.dumps(e).encode()) + b"\n" for e in events))


def click(name: str) -> dict[str, Any]:
    return {"event_id": name, "type": "click", "item_id": "a"}


def test_lines_are_sent_and_bad_ones_are_told_by_their_number(taker: Taker, feeder: Feeder) -> None:
    feed_lines(lines(click("e1"), b"{broken", b"", [1], {"event_id": "e2"}, click("e3")), feeder)

    assert feeder.fed.to_dict() == {"accepted": 2, "duplicates": 0, "rejected": 3}
    assert [(one["line"], one["code"]) for one in feeder.fed.rejections] == [
        (2, "invalid_json"),
        (4, "invalid_json"),
        (5, "invalid_event"),
    ]
    assert set(taker.taken) == {"e1", "e3"}
    assert taker.keys == {"Bearer the key"}


def test_a_file_that_is_sent_again_counts_once_also_without_ids(taker: Taker, feeder: Feeder) -> None:
    nameless = {"type": "view", "item_id": "a"}
    for _ in range(2):
        feed_lines(lines(nameless, nameless, click("e1")), feeder)

    assert feeder.fed.to_dict() == {"accepted": 3, "duplicates": 3, "rejected": 0}


def test_many_lines_go_in_batches_and_progress_is_told(taker: Taker, feeder: Feeder) -> None:
    told: list[int] = []
    feed_lines(lines(*(click(f"e{i}") for i in range(1_200))), feeder, told.append)

    assert sum(taker.batches) == len(taker.taken) == 1_200
    assert max(taker.batches) <= 500
    assert told == list(np.cumsum(taker.batches))


def test_of_a_pipe_what_is_there_is_sent(taker: Taker, feeder: Feeder) -> None:
    there, into = os.pipe()
    with os.fdopen(there, "rb") as lines_of_it:
        feeding_it = threading.Thread(target=feed_lines, args=(lines_of_it, feeder))
        feeding_it.start()
        with os.fdopen(into, "wb", buffering=0) as pipe:
            for name in ("e1", "e2"):
                pipe.write(json.dumps(click(name)).encode() + b"\n")
                deadline = time.monotonic() + 10
                while name not in taker.taken:  # the pipe stays open meanwhile
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
        feeding_it.join(10)
    assert feeder.fed.accepted == 2


def test_a_busy_service_is_asked_again(taker: Taker, feeder: Feeder) -> None:
    taker.before = [(429, b""), (503, b"{}"), (429, b"")]
    feed_lines(lines(click("e1")), feeder)
    assert feeder.fed.accepted == 1


def test_one_that_stays_busy_or_is_away_ends_with_what_is_wrong(taker: Taker, monkeypatch: pytest.MonkeyPatch) -> None:
    taker.before = [(429, b"")] * 10_000
    feeder = Feeder(taker.url, "k", patience_s=0.2)
    with pytest.raises(Unavailable, match=r"took no events for 0 s \(status 429\)"):
        feed_lines(lines(click("e1")), feeder)
    feeder.close()
    monkeypatch.setattr(feeding.time, "sleep", lambda _: None)
    away = Feeder("http://127.0.0.1:1", "k", patience_s=0.2)
    with pytest.raises(Unavailable, match="ConnectionRefusedError"):
        feed_lines(lines(click("e1")), away)


def test_a_key_that_may_not_is_told_in_the_services_words(taker: Taker, feeder: Feeder) -> None:
    taker.before = [(403, b'{"error": {"message": "needs a key of scope events"}}')]
    with pytest.raises(RayrecError, match="refuses events: needs a key of scope events"):
        feed_lines(lines(click("e1")), feeder)
    with pytest.raises(SchemaError, match="url: expected"):
        Feeder("localhost:8000", "k")


def test_recorded_events_are_replayed_at_their_pace(taker: Taker, feeder: Feeder) -> None:
    records = [
        {"user_id": "u", "item_id": "old", "ts_us": NOW_US - 3 * DAY_US},
        {"user_id": "u", "item_id": "a", "ts_us": NOW_US - 100_000_000},
        {"user_id": None, "item_id": "a", "ts_us": NOW_US - 90_000_000},
        {"user_id": "u", "item_id": "b", "ts_us": NOW_US - 100_000_000},
        {"user_id": "v", "item_id": "c", "ts_us": NOW_US, "quantity": 2},
    ]
    events = recorded(make_events(records).sort_by("ts_us"), days=1)
    now, slept = [50.0], []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))
        now[0] += seconds

    replay(events, feeder, speed=10, label="run", clock=lambda: now[0], sleep=sleep)

    assert slept == [10]
    assert taker.batches == [2, 1]
    assert [event["item_id"] for event in taker.taken.values()] == ["a", "b", "c"]
    assert all("ts_us" not in event for event in taker.taken.values())
    assert list(taker.taken) == ["run-e000001", "run-e000003", "run-e000004"]
    replay(events, feeder, speed=0, label="run")
    assert feeder.fed.to_dict() == {"accepted": 3, "duplicates": 3, "rejected": 0}


def test_what_is_too_large_together_goes_in_parts_and_what_is_alone_is_told(taker: Taker, feeder: Feeder) -> None:
    too_large = (413, b'{"error": {"message": "too large"}}')
    taker.before = [too_large, too_large, too_large]  # all four, the first two, the first
    feed_lines(lines(*(click(f"e{i}") for i in range(4))), feeder)
    assert (taker.batches, sorted(taker.taken)) == ([1, 2], ["e1", "e2", "e3"])
    assert [(one["line"], one["code"]) for one in feeder.fed.rejections] == [(1, "too_large")]


def test_what_is_nested_too_deep_is_rejected_alone(taker: Taker, feeder: Feeder) -> None:
    feed_lines(lines(b"[" * 100_000, click("e1")), feeder)
    assert (list(taker.taken), feeder.fed.rejections[0]["code"]) == (["e1"], "invalid_json")


def test_a_stream_is_taken_once_and_what_was_not_acknowledged_comes_again(
    taker: Taker, feeder: Feeder, tmp_path: Path
) -> None:
    import redis

    with redis_server(tmp_path) as server:
        client = redis.Redis.from_url(server.url)
        client.xadd("shop", {"event": json.dumps(click("e1"))})
        client.xadd("shop", {"type": "purchase", "item_id": "b", "user_id": "ann", "price_cents": "199"})
        client.xadd("shop", {"event": "{broken"})
        client.xadd("shop", {"event": json.dumps({**click("x"), "event_id": None})})
        taker.before = [(400, b'{"error": {"message": "not now"}}')]
        with pytest.raises(RayrecError, match="not now"):
            feed_stream(server.url, "shop", feeder, idle_s=0.1)
        assert client.xpending("shop", "rayrec")["pending"] == 4

        feed_stream(server.url, "shop", feeder, idle_s=0.1)
        client.xadd("shop", {"event": json.dumps(click("e2"))})
        feed_stream(server.url, "shop", feeder, idle_s=0.1)

        assert client.xpending("shop", "rayrec")["pending"] == 0
        client.close()
    assert feeder.fed.accepted == 4
    assert all(taker.taken)
    assert {"e1", "e2"} < set(taker.taken)
    bought = next(event for event in taker.taken.values() if event["type"] == "purchase")
    assert (bought["price_cents"], bought["event_id"][:5]) == (199, "shop-")
    assert {one["code"] for one in feeder.fed.rejections} == {"invalid_entry"}
