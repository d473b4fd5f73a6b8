"""Old versions taken away, and the log of changes below what is kept.

Index versions go by age; those stay that answer. Catalog and event versions go when nothing that is kept names them. Of
the log, only what every kept base contains is cut, so whichever is rolled back to finds all changes after its own.
"""

import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

from rayrec.errors import SchemaError
from rayrec.store import open_catalog_log
from rayrec.workspace import KINDS, Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pruned:
    """How many versions of each kind went, and how many changes of the log."""

    indexes: int
    catalog: int
    events: int
    changes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def prune(ws: Workspace, keep: int, store: str | None = None) -> Pruned:
    """Keep the newest `keep` indexes and the one that answers; rollbacks to others are no longer possible.

    store: URL of the log; None: leave it. Safe to repeat, and to be killed: a version is unpublished first.
    """
    if keep < 1:
        raise SchemaError(f"keep: expected 1 or more, got {keep}")
    with ws.lock("current.lock"):
        now = ws.current()
        old = [version for version in ws.versions("indexes")[:-keep] if version != now.index]
        history = [pair for pair in now.history if pair["index"] not in old]
        if history != now.history:
            ws.write_pointer(replace(now, generation=now.generation + 1, history=history))
        for version in old:
            ws.remove("indexes", version)
    named = {kind: _unnamed(ws, kind) for kind in ("catalog", "events")}
    for kind, versions in named.items():
        for version in versions:
            ws.remove(kind, version)
    return Pruned(len(old), len(named["catalog"]), len(named["events"]), _cut(ws, store))


def _unnamed(ws: Workspace, kind: str) -> list[str]:
    """Versions but the newest that no manifest of another kind names."""
    others = [ws.manifest(other, version) for other in KINDS if other != kind for version in ws.versions(other)]
    said = json.dumps(others)
    return [version for version in ws.versions(kind)[:-1] if f'"{version}"' not in said]


def _cut(ws: Workspace, store: str | None) -> int:
    kept = [ws.manifest(kind, version) for kind in ("indexes", "catalog") for version in ws.versions(kind)]
    offset = min((manifest.get("log_offset", 0) for manifest in kept), default=0)
    if store is None or not offset:
        return 0
    changes = open_catalog_log(store)
    try:
        return changes.cut(offset)
    finally:
        changes.close()
