"""Events on their way to a running service: from lines, from a Redis stream, or from recorded history.

Sent in batches and again until they are acknowledged; as each has an id, sending again counts nothing twice.
"""

import contextlib
import hashlib
import http.client
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import pyarrow as pa

from rayrec.errors import RayrecError, SchemaError, Unavailable

BATCH = 500
_AGAIN, _TOO_LARGE = (429, 503), 413
_PATIENCE_S = 60.0
_KEPT = 1_000  # rejections that are told one by one
Told = Callable[[int], None]


@dataclass
class Fed:
    """What became of events. rejections: [{line, code, message}] of the first thousand."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    rejections: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"accepted": self.accepted, "duplicates": self.duplicates, "rejected": self.rejected}

    def reject(self, line: int, code: str, message: str) -> None:
        self.rejected += 1
        if len(self.rejections) < _KEPT:
            self.rejections.append({"line": line, "code": code, "message": message})


class Feeder:
    """One connection to a service's POST /v1/events."""

    def __init__(self, url: str, key: str, *, patience_s: float = _PATIENCE_S):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SchemaError(f"url: expected http://host:port, got {url!r}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=30)
        self._key, self._patience_s = key, patience_s
        self.fed = Fed()

    def send(self, numbered: list[tuple[int, dict[str, Any]]]) -> None:
        """Events with the numbers of their lines, in parts where they are too large together.

        Raises RayrecError with what the service says; Unavailable if it does not take them within the patience.
        """
        if not numbered:
            return
        told = self._ask(json.dumps({"events": [event for _, event in numbered]}).encode())
        if told is None:
            half = len(numbered) // 2
            if not half:
                self.fed.reject(numbered[0][0], "too_large", "larger than the service takes")
                return
            self.send(numbered[:half])
            self.send(numbered[half:])
            return
        self.fed.accepted += told["accepted"]
        self.fed.duplicates += told["duplicates"]
        for one in told["rejected"]:
            self.fed.reject(numbered[one["index"]][0], one["code"], one["message"])

    def _ask(self, body: bytes) -> dict[str, Any] | None:
        """What the service says; None of a body that is too large for it."""
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        until = time.monotonic() + self._patience_s
        while True:
            try:
                self._connection.request("POST", "/v1/events", body, headers)
                response = self._connection.getresponse()
                status, told = response.status, response.read()
                wait_s, why = float(response.headers.get("retry-after", 1)), f"status {status}"
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                status, told, wait_s, why = 503, b"", 1.0, type(error).__name__
            if status == 200:
                return json.loads(told)
            if status == _TOO_LARGE:
                return None
            if status not in _AGAIN:
                raise RayrecError(f"the service refuses events: {_message(told) or why}")
            if time.monotonic() + wait_s > until:
                raise Unavailable(f"the service took no events for {self._patience_s:.0f} s ({why})")
            time.sleep(wait_s)

    def close(self) -> None:
        self._connection.close()


def _message(body: bytes) -> str | None:
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return None


def feed_lines(lines: BinaryIO, feeder: Feeder, on_progress: Told | None = None) -> None:
    """Newline JSON, an event a line; without an event_id its id is that of its place and content.

    A line that is no JSON object is rejected, the others are sent. Nothing waits for company: of a pipe, what is there
    is sent.
    """
    for some in _as_they_come(lines):
        batch = []
        for number, line in some:
            event = _parsed(number, line, feeder.fed)
            if event is not None:
                batch.append((number, event))
        feeder.send(batch)
        if on_progress is not None:
            on_progress(some[-1][0])


def _as_they_come(lines: BinaryIO) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered lines that are there already, at most BATCH at a time; waits for the first."""
    read: queue.Queue[tuple[int, bytes] | None] = queue.Queue(2 * BATCH)
    failed: list[Exception] = []

    def reading() -> None:
        try:
            for numbered in enumerate(lines, 1):
                read.put(numbered)
        except (OSError, ValueError) as error:
            failed.append(error)
        finally:
            read.put(None)

    threading.Thread(target=reading, name="rayrec-lines", daemon=True).start()
    there: tuple[int, bytes] | None = read.get()
    while there is not None:
        some = [there]
        with contextlib.suppress(queue.Empty):
            while len(some) < BATCH and (there := read.get_nowait()) is not None:
                some.append(there)
        yield some
        there = None if there is None else read.get()
    if failed:
        raise RayrecError(f"reading the events failed: {failed[0]}")


def _parsed(number: int, line: bytes, fed: Fed) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        event = json.loads(line)
        if not isinstance(event, dict):
            raise ValueError(f"expected an object, got {type(event).__name__}")
    except (ValueError, RecursionError) as error:
        fed.reject(number, "invalid_json", str(error))
        return None
    if event.get("event_id") is None:
        event["event_id"] = hashlib.blake2b(b"%d " % number + line, digest_size=12).hexdigest()
    return event


def feed_stream(
    url: str, stream: str, feeder: Feeder, *, group: str = "rayrec", name: str = "feed", idle_s: float | None = None
) -> None:
    """A Redis stream whose entries hold an event as JSON in `event`, or as fields. Acknowledged once it is durable.

    What another run of the same name took and did not acknowledge comes first. idle_s: end after so long without a new
    entry; None: never.
    """
    import redis

    with contextlib.closing(redis.Redis.from_url(url, socket_timeout=30)) as client:
        try:
            _feed_stream(client, stream, feeder, group, name, idle_s)
        except redis.ResponseError as error:
            raise SchemaError(f"stream: {error}") from error
        except redis.RedisError as error:
            raise Unavailable(f"Redis does not answer ({type(error).__name__})") from error


def _feed_stream(client: Any, stream: str, feeder: Feeder, group: str, name: str, idle_s: float | None) -> None:
    import redis

    try:
        client.xgroup_create(stream, group, id="0", mkstream=True)
    except redis.ResponseError as error:
        if "BUSYGROUP" not in str(error):  # the group is there already
            raise
    since, last = "0", time.monotonic()  # "0": what was taken before and never acknowledged
    while idle_s is None or time.monotonic() - last < idle_s:
        found = client.xreadgroup(group, name, {stream: since}, count=BATCH, block=None if since == "0" else 200)
        entries = found[0][1] if found else []
        if not entries:
            since = ">"
            continue
        last = time.monotonic()
        batch = []
        for number, (entry, values) in enumerate(entries, 1):
            event = _of_entry(stream, entry, values or {}, number, feeder.fed)
            if event is not None:
                batch.append((number, event))
        feeder.send(batch)
        client.xack(stream, group, *(entry for entry, _ in entries))


def _of_entry(stream: str, entry: bytes, values: dict[bytes, bytes], number: int, fed: Fed) -> dict[str, Any] | None:
    try:
        if b"event" in values:
            event = json.loads(values[b"event"])
            if not isinstance(event, dict):
                raise ValueError(f"expected an object, got {type(event).__name__}")
        else:
            event = {key.decode(): value.decode() for key, value in values.items()}
            for field_name in ("ts_us", "price_cents", "quantity", "position"):
                if field_name in event:
                    event[field_name] = int(event[field_name])
    except (ValueError, RecursionError) as error:
        fed.reject(number, "invalid_entry", f"{entry.decode()}: {error}")
        return None
    if event.get("event_id") is None:
        event["event_id"] = f"{stream}-{entry.decode()}"
    return event


def recorded(events: pa.Table, days: float) -> list[dict[str, Any]]:
    """The newest `days` of EVENTS in time order, those of a known shopper."""
    ts = events.column("ts_us").to_numpy()
    newest = events.filter(pa.array(ts >= ts.max(initial=0) - days * 86_400e6))
    return [row for row in newest.to_pylist() if row["user_id"] or row["session_id"]]


def replay(
    events: list[dict[str, Any]],
    feeder: Feeder,
    *,
    speed: float,
    label: str,
    on_progress: Told | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Send recorded events as if they happened now, `speed` times as fast as they did; 0: as fast as they are taken.

    Each gets the time at which it is sent, and an id of its own and this label, so that the same label counts once.
    """
    began, first_us = clock(), events[0]["ts_us"] if events else 0
    batch: list[tuple[int, dict[str, Any]]] = []
    for number, event in enumerate(events, 1):
        due_s = (event["ts_us"] - first_us) / 1e6 / speed if speed else 0.0
        ahead_s = due_s - (clock() - began)
        if batch and (ahead_s > 0 or len(batch) == BATCH):
            feeder.send(batch)
            batch = []
            if on_progress is not None:
                on_progress(number - 1)
        if ahead_s > 0:
            sleep(ahead_s)
        now = {key: value for key, value in event.items() if value is not None and key not in ("ts_us", "event_id")}
        batch.append((number, {**now, "event_id": f"{label}-{event['event_id']}"}))
    feeder.send(batch)
    if on_progress is not None:
        on_progress(len(events))
