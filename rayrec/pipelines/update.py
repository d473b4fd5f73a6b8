"""Continual learning: the model that answers learns what came since, and is replaced only if it forgot nothing.

New are the events that it did not know, whatever their time. It goes on from its own weights, on these and a replay of
old ones, on Ray Train as `train` does, and is judged beside what it was on two slices: held-out new events, where it
must gain, and the events that were held out before, of which it may lose little.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow.compute as pc

from rayrec.config import UpdateConfig
from rayrec.errors import Conflict, NotFound, SchemaError
from rayrec.pipelines.event_log import export_events, newest_events
from rayrec.pipelines.fit import Progress, newest_catalog, run
from rayrec.pipelines.index import find_embeddings
from rayrec.pipelines.train import datasets_of
from rayrec.pipelines.updating import made_of, worker
from rayrec.workspace import Workspace

_KILLED = ("runs", "update.json")


@dataclass(frozen=True)
class UpdateSummary:
    """model: a version under models/, None if none was made; reason: why it answers or not.

    events_offset: of the service's log, up to which events were looked at. figures: slice -> the metric before, after.
    """

    promoted: bool
    reason: str
    new_events: int
    events_offset: int
    model: str | None = None
    replayed: int = 0
    weight: float | None = None
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    generation: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def update(
    config: UpdateConfig, ws: Workspace, *, address: str | None = None, on_progress: Progress | None = None
) -> UpdateSummary:
    """Train the model that answers on new events; promote it if the gate lets it. Without enough of them, nothing.

    Raises NotFound without a trained model or the events that it learned from.
    """
    present = ws.current().model
    before = trained_manifest(ws, present)
    events = _events(config, ws, str(present))
    new = count_new(ws, before["events"], events)
    offset = ws.manifest("events", events).get("log_offset", 0)
    if (waiting := _waiting(config, ws, str(present), events, new)) is not None:
        return UpdateSummary(False, waiting, new, offset)
    catalog = newest_catalog(ws)
    arguments = {
        "catalog": catalog,
        "events": events,
        "embeddings": find_embeddings(before["encoder"]["space"], ws, catalog),
        "images": before["encoder"]["images"],
        "present": present,
        "trained": before["config"],
    }
    with _remembered(config, ws, str(present), events):
        told = run("update", worker, config, arguments, ws, address, on_progress, lambda: datasets_of(ws, events))
    summary = UpdateSummary(new_events=new, events_offset=offset, **told)
    return _promoted(ws, str(present), summary) if summary.promoted else summary


def trained_manifest(ws: Workspace, model: str | None) -> dict[str, Any]:
    """Of a model that can be trained on, and says which events it knows."""
    manifest = {} if model is None else ws.manifest("models", model)
    if "recommender" not in manifest:
        raise NotFound(f"no trained model answers in {ws.uri}; run 'rayrec train' first")
    if lacking := [key for key in ("config", "catalog", "events") if key not in manifest]:
        raise SchemaError(f"models/{model} does not say its {', '.join(lacking)}; run 'rayrec train' again")
    return manifest


def _events(config: UpdateConfig, ws: Workspace, present: str) -> str:
    """The newest, with what the service took since; or of an update that was killed, those that it was of.

    A run is named by its events, and a service never stops taking some: so one that died would never be continued.
    """
    if ws.exists(*_KILLED):
        said = json.loads(ws.read_bytes(*_KILLED))
        events = said.pop("events")
        if said == made_of(config, present) and ws.exists("events", events, "manifest.json"):
            return events
    export_events(ws, config.store)
    return newest_events(ws)


@contextlib.contextmanager
def _remembered(config: UpdateConfig, ws: Workspace, present: str, events: str) -> Iterator[None]:
    """What an update is of, until it is done; or failed, for then the next tries what is newest."""
    ws.write_bytes(json.dumps({**made_of(config, present), "events": events}).encode(), *_KILLED)
    try:
        yield
    except Exception:
        ws.fs.delete_file(ws.path(*_KILLED))
        raise
    ws.fs.delete_file(ws.path(*_KILLED))


def count_new(ws: Workspace, known: str, newest: str) -> int:
    """Events of the newest version that another lacks, told by their ids: an event that comes late is new too."""
    if known == newest:
        return 0
    before, now = (
        pc.unique(ws.read_parquet("events", version, columns=["event_id"]).column("event_id"))
        for version in (known, newest)
    )
    return len(now) - int(pc.sum(pc.is_in(now, value_set=before)).as_py() or 0)


def _waiting(config: UpdateConfig, ws: Workspace, present: str, events: str, new: int) -> str | None:
    """Why there is nothing to do yet."""
    if not new:
        return "no new events since the model that answers"
    if new < config.least:
        return f"{new} new events, fewer than {config.least}"
    for version in reversed(ws.versions("models")):
        if version <= present:
            break
        said = ws.manifest("models", version)
        same = said.get("update") == made_of(config, present)
        if same and said["events"] == events:  # one that passed and does not answer was rolled back, or its job died
            found = "passed its gate: 'rayrec promote' lets it answer" if said["verdict"]["promoted"] else "was refused"
            return f"no new events since models/{version}, made of the same ones, {found}"
    return None


def _promoted(ws: Workspace, present: str, summary: UpdateSummary) -> UpdateSummary:
    """Let it answer, unless another model came to answer meanwhile, against which it was not judged."""
    while (now := ws.current()).model == present:
        with contextlib.suppress(Conflict):  # another index was promoted in this moment
            generation = ws.promote(model=summary.model, expect_generation=now.generation).generation
            return replace(summary, generation=generation)
    reason = f"models/{now.model} answers since, against which it was not judged"
    return replace(summary, promoted=False, reason=reason)
