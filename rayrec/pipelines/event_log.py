"""Events at rest: versions of Parquet parts, to which what the service took is added, each event exactly once.

A version names in `log_offset` up to where the service's log is in it. An export begins there, writes one more part
beside those of the version before, and is not there at all until it is whole; so whatever is killed, nothing is in a
version twice and nothing is left out.
"""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from rayrec.barring import Bars
from rayrec.data import events
from rayrec.errors import NotFound
from rayrec.rewriting import clean_version
from rayrec.schema import EVENTS, validate
from rayrec.store import EventStore, default_store, open_store
from rayrec.workspace import ENVELOPE, Workspace

log = logging.getLogger(__name__)

_AT_ONCE = 20_000  # events read from the store at a time


@dataclass(frozen=True)
class Exported:
    """events: that are new in `version`; offset: of the log, up to which the version has everything."""

    version: str | None
    events: int
    offset: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def newest_events(ws: Workspace) -> str:
    """Raises NotFound."""
    version = ws.latest("events")
    if version is None:
        raise NotFound(f"no events in {ws.uri} yet; run 'rayrec index' with events: there is nothing to learn from")
    return version


def read_events(ws: Workspace, version: str) -> pa.Table:
    """EVENTS of a version in order of time, each once, whatever part it came with."""
    return events.dedupe(validate(ws.read_parquet("events", version), EVENTS, f"events/{version}"))


def export_events(ws: Workspace, url: str | None = None) -> Exported:
    """Add what the service took since the newest version to a version of its own; nothing of who is barred.

    url: of the store; None: the workspace's own, if it has one.
    """
    url = url or default_store(ws)
    latest = ws.latest("events")
    said = {} if latest is None else ws.manifest("events", latest)
    offset = said.get("log_offset", 0)
    if url is None:
        return Exported(latest, 0, offset)
    store = open_store(url)
    try:
        found, offset = _since(store, offset)
    finally:
        store.close()
    found = found.filter(pa.array(~Bars(ws).forgotten(found)))
    if not found.num_rows:
        return Exported(latest, 0, offset)
    with ws.stage("events") as staged:
        for name in said.get("files", ()):
            staged.write_bytes(name, ws.read_bytes("events", str(latest), name))
        staged.write_parquet(f"live-{offset:016d}.parquet", events.dedupe(found))
        before = {key: value for key, value in said.items() if key not in ENVELOPE}
        counts = {"events": before.get("counts", {}).get("events", 0) + found.num_rows}
        version = staged.publish({**before, "counts": counts, "log_offset": offset})
    clean_version(ws, "events", version, Bars(ws))
    log.info("events/%s has %d new events", version, found.num_rows)
    return Exported(version, found.num_rows, offset)


def _since(store: EventStore, offset: int) -> tuple[pa.Table, int]:
    tables = [EVENTS.empty_table()]
    while part := store.read(offset, _AT_ONCE):
        tables.append(pa.Table.from_pylist([event for _, event in part], schema=EVENTS))
        offset = part[-1][0]
    return pa.concat_tables(tables), offset
