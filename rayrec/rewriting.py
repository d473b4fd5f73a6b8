"""Taking what bars name out of the files of a workspace, whatever version they are of, old, present or unfinished.

Every file is rewritten, for a Parquet file's statistics and dictionaries hold values too. Each by itself, so that a
kill leaves some of them clean and none broken; `clean` again does the others.
"""

import contextlib
import io
import shutil
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from rayrec.barring import Bars
from rayrec.data.held_out import FILE as HELD_OUT
from rayrec.data.histories import Histories
from rayrec.errors import IncompatibleArtifact, NotFound, Unavailable
from rayrec.store.base import Traces
from rayrec.workspace import Workspace

WHOSE = ["user_id", "session_id", "ts_us"]
_BEHAVIOR = "behavior"
_LEFT_BEHIND_S = 3_600.0  # an unfinished file that nobody has touched for so long is a killed job's
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # pa.ArrowInvalid is a ValueError


@dataclass
class Cleaned:
    """removed: events by place, with a zero for a place where there were none; unfinished: what is being written."""

    removed: dict[str, int] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)

    def add(self, place: str, removed: int) -> None:
        self.removed[place] = self.removed.get(place, 0) + removed


def clean(ws: Workspace, bars: Bars) -> dict[str, int]:
    """Rows removed, by place. Raises Unavailable while a job is writing what cannot be read yet; then again.

    On a filesystem without locks two of them may undo each other's work, so there it ends only when it finds nothing.
    """
    done = Cleaned()
    with ws.lock("forget.lock"):
        while True:
            found = _clean_once(ws, bars)
            for place, removed in found.removed.items():
                done.add(place, removed)
            if ws.is_local or not any(found.removed.values()):
                break
    if found.unfinished:
        raise Unavailable(f"a job is writing {found.unfinished[0]}; do it again when that has ended")
    return done.removed


def clean_version(ws: Workspace, kind: str, version: str, bars: Bars) -> None:
    """What a publisher does last: its version may hold what was forgotten while it was made."""
    if bars.known():
        with ws.lock("forget.lock"):
            {"events": _clean_events, "indexes": _clean_index}[kind](ws, version, bars, Cleaned())


def clean_copies(ws: Workspace, bars: Bars) -> None:
    """The copies of index versions that this machine keeps of a workspace elsewhere; those of old ones go."""
    if ws.is_local:
        return
    published = ws.versions("indexes")
    for version in ws.copies("indexes"):
        copy = ws.cache("indexes", version)
        if version not in published:
            shutil.rmtree(copy.root, ignore_errors=True)
        elif copy.exists("indexes", version, "manifest.json"):
            with copy.lock("forget.lock"):
                _clean_index(copy, version, bars, Cleaned())
    for path in ws.downloads():
        if time.time() - _touched_s(Workspace.open(path), "") > _LEFT_BEHIND_S:
            shutil.rmtree(path, ignore_errors=True)


def traces(ws: Workspace, user_id: str) -> Traces:
    """What else than their id leads to a user in events at rest."""
    sessions: set[str] = set()
    newest_us = 0
    for found in _whose(ws):
        theirs = found.filter(pc.fill_null(pc.equal(found.column("user_id"), user_id), False))
        sessions |= set(theirs.column("session_id").to_pylist()) - {None}
        newest_us = max(newest_us, pc.max(theirs.column("ts_us")).as_py() or 0)
    for found in _whose(ws) if sessions else ():  # and of before they said who they are
        nobodys = found.filter(pc.is_null(found.column("user_id")))
        theirs = nobodys.filter(pc.is_in(nobodys.column("session_id"), value_set=pa.array(sorted(sessions))))
        newest_us = max(newest_us, pc.max(theirs.column("ts_us")).as_py() or 0)
    return Traces(sorted(sessions), newest_us)


def _whose(ws: Workspace) -> Iterator[pa.Table]:
    for version, name in event_files(ws):
        with contextlib.suppress(*_UNREADABLE, NotFound):  # `clean` tells
            yield _read(ws, "events", version, name, WHOSE)


def event_files(ws: Workspace) -> Iterator[tuple[str, str]]:
    """(version, name) of the parts of all events versions, published or not."""
    for version in ws.names("events"):
        for name in ws.names("events", version):
            if name.endswith(".parquet"):
                yield version, name


def _clean_once(ws: Workspace, bars: Bars) -> Cleaned:
    done = Cleaned()
    for version in ws.names("events"):
        _clean_events(ws, version, bars, done)
    for version in ws.names("indexes"):
        _clean_index(ws, version, bars, done)
    for version in ws.names("models"):
        _clean_model(ws, version, done)
    _clean_quarantine(ws, bars, done)
    return done


def _clean_events(ws: Workspace, version: str, bars: Bars, done: Cleaned) -> None:
    place = f"events/{version}"
    done.add(place, 0)
    new: dict[str, bytes] = {}
    rows = 0
    for name in _names(ws, done, "events", version):
        if not name.endswith(".parquet"):
            continue
        try:
            gone = bars.forgotten(_read(ws, "events", version, name, WHOSE))
            rows += int((~gone).sum())
            if gone.any():
                table = _read(ws, "events", version, name).filter(pa.array(~gone))
                sink = pa.BufferOutputStream()
                pq.write_table(table, sink, compression="zstd")
                new[name] = sink.getvalue().to_pybytes()
                done.add(place, int(gone.sum()))
        except (*_UNREADABLE, NotFound) as error:
            _unreadable(ws, done, error, "events", version, name)
    _put(ws, "events", version, new, counts={"events": rows})


def _clean_index(ws: Workspace, version: str, bars: Bars, done: Cleaned) -> None:
    """Of each shopper's history. What is counted over all of them (popularity, bought together) names nobody."""
    place = f"indexes/{version}"
    done.add(place, 0)
    names = _names(ws, done, "indexes", version, _BEHAVIOR)
    if not names:
        return
    try:
        before = Histories.of_files(lambda name: ws.read_bytes("indexes", version, _BEHAVIOR, name))
        asked = np.load(io.BytesIO(ws.read_bytes("indexes", version, _BEHAVIOR, "asked.npy")), allow_pickle=False)
    except (*_UNREADABLE, NotFound) as error:
        _unreadable(ws, done, error, "indexes", version, _BEHAVIOR)
        return
    until = np.array([bars.until(f"u:{user}") for user in before.users], np.int64)
    gone = before.ts_us <= np.repeat(until, before.lengths)
    after = before.without(gone)
    done.add(place, int(gone.sum()))
    changed = {
        "histories.npz": bool(gone.any()),
        "texts.parquet": list(after.texts) != list(before.texts),
        "users.parquet": after.users.tolist() != before.users.tolist(),
    }
    new = {f"{_BEHAVIOR}/{name}": content for name, content in after.files().items() if changed[name]}
    unasked = np.array([not text for text in after.texts], bool)
    if len(asked) == len(unasked) and asked[unasked].any():
        packed = io.BytesIO()
        np.save(packed, np.where(unasked[:, None], np.float32(0), asked))
        new[f"{_BEHAVIOR}/asked.npy"] = packed.getvalue()
    _put(ws, "indexes", version, new)


def _clean_model(ws: Workspace, version: str, done: Cleaned) -> None:
    """Of the events that judge a model, by their ids: those that are in no events version any more."""
    if HELD_OUT not in _names(ws, done, "models", version):
        return
    place = f"models/{version}"
    done.add(place, 0)
    try:
        before = _read(ws, "models", version, HELD_OUT)
    except (*_UNREADABLE, NotFound) as error:
        _unreadable(ws, done, error, "models", version, HELD_OUT)
        return
    known = []
    for of, name in event_files(ws):
        try:
            known.append(_read(ws, "events", of, name, ["event_id"]).column("event_id"))
        except (*_UNREADABLE, NotFound) as error:
            unfinished = len(done.unfinished)
            _unreadable(ws, done, error, "events", of, name)
            if len(done.unfinished) > unfinished:
                return
    ids = pa.chunked_array([chunk for column in known for chunk in column.chunks], pa.string())
    after = before.filter(pc.is_in(before.column("event_id"), value_set=ids.combine_chunks()))
    if after.num_rows == before.num_rows:
        return
    sink = pa.BufferOutputStream()
    pq.write_table(after, sink, compression="zstd")
    done.add(place, before.num_rows - after.num_rows)
    _put(ws, "models", version, {HELD_OUT: sink.getvalue().to_pybytes()})


def _clean_quarantine(ws: Workspace, bars: Bars, done: Cleaned) -> None:
    """Records of events that were set aside and mention a barred user or session; they have no time to go by."""
    catalogs = {f"{version}.parquet" for version in ws.versions("catalog")}
    done.add("quarantine", 0)
    for name in _names(ws, done, "quarantine"):
        if name in catalogs:
            continue
        try:
            table = ws.read_parquet("quarantine", name)
        except (*_UNREADABLE, NotFound) as error:
            _unreadable(ws, done, error, "quarantine", name)
            continue
        kept = set_aside(table, bars)
        if kept.num_rows < table.num_rows:
            ws.write_parquet(kept, "quarantine", name)
            done.add("quarantine", table.num_rows - kept.num_rows)


def set_aside(table: pa.Table, bars: Bars) -> pa.Table:
    """QUARANTINE without the records that mention somebody who is barred."""
    if not bars.known():
        return table
    kept = [not bars.mentions(record or "") for record in table.column("record").to_pylist()]
    return table.filter(pa.array(kept, pa.bool_()))


# -- files ----------------------------------------------------------------------------------------


def _read(ws: Workspace, kind: str, version: str, name: str, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(ws.path(kind, version, name), columns=columns, filesystem=ws.fs, partitioning=None)


def _names(ws: Workspace, done: Cleaned, *folder: str) -> list[str]:
    """Names of the files in a folder that are whole; what a killed writer left of one is deleted."""
    whole = []
    for name in ws.names(*folder):
        if name.endswith(".tmp"):
            _left_behind(ws, done, *folder, name)
        else:
            whole.append(name)
    return whole


def _put(ws: Workspace, kind: str, version: str, new: dict[str, bytes], **said: object) -> None:
    """Replace files of a version, or write them where nothing is published."""
    if not ws.exists(kind, version, "manifest.json"):
        for name, content in new.items():
            ws.write_bytes(content, kind, version, name)
        return
    unsettled = any("was" in entry for entry in ws.manifest(kind, version)["files"].values())
    if new or unsettled:
        ws.replace(kind, version, new, **said)


def _unreadable(ws: Workspace, done: Cleaned, error: Exception, *path: str) -> None:
    """Raises IncompatibleArtifact for one of a published version: nobody can tell what is in it."""
    label = "/".join(path)
    if path[0] == "quarantine" or ws.exists(*path[:2], "manifest.json"):
        raise IncompatibleArtifact(
            f"{label}: not readable ({type(error).__name__}), so nothing can be taken out of it; delete it"
        ) from error
    _left_behind(ws, done, *path)


def _left_behind(ws: Workspace, done: Cleaned, *path: str) -> None:
    info = ws.fs.get_file_info(ws.path(*path))
    if info.type == pafs.FileType.NotFound:
        return
    if time.time() - _touched_s(ws, *path) < _LEFT_BEHIND_S:
        done.unfinished.append("/".join(path))
    elif info.type == pafs.FileType.Directory:
        ws.fs.delete_dir(info.path)
    else:
        ws.fs.delete_file(info.path)


def _touched_s(ws: Workspace, *path: str) -> float:
    """When a file, or anything in a folder, was written last; 0 if nobody knows."""
    infos = [ws.fs.get_file_info(ws.path(*path))]
    if infos[0].type == pafs.FileType.Directory:
        infos += ws.fs.get_file_info(pafs.FileSelector(infos[0].path, recursive=True, allow_not_found=True))
    return max((info.mtime.timestamp() for info in infos if info.mtime is not None), default=0.0)
