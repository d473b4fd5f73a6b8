"""Metrics of every replica, and their sum.

Each process counts in a registry of its own and sends what it counted every second or two to the one
`MetricsHub`, which adds up: counters and histograms for good, also of replicas that are gone; gauges of those
that still report. So `/metrics` is the same whichever replica answers it.
"""

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_BATCH = (1, 2, 4, 8, 16, 32)
_STALE_S = 15.0
_FORGET_S = 3_600.0  # a replica silent for so long is added to those that are gone

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]
Snapshot = dict[str, tuple[str, str, Samples]]
"""metric family -> (type, help, sample -> value)"""


class Telemetry:
    """What one process counts. Labels are names of ours (routes, stages, versions), never what a shopper sent."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter("rayrec_requests", "Requests answered.", ["route", "status"], registry=r)
        self.latency = Histogram(
            "rayrec_request_seconds", "From request to answer.", ["route"], buckets=_SECONDS, registry=r
        )
        self.stage = Histogram(
            "rayrec_stage_seconds", "Time in one stage of an answer.", ["stage"], buckets=_SECONDS, registry=r
        )
        self.batch = Histogram("rayrec_batch_size", "Calls worked on together.", ["stage"], buckets=_BATCH, registry=r)
        self.cache = Counter("rayrec_cache", "Look-ups in a cache.", ["cache", "result"], registry=r)
        self.coverage = Counter(
            "rayrec_coverage", "Answers by what became of each part.", ["route", "part", "state"], registry=r
        )
        self.degraded = Counter(
            "rayrec_degraded", "Answers that had to do without a part, and refusals.", ["route", "step"], registry=r
        )
        self.events = Counter("rayrec_events", "Events sent, by what became of each.", ["state"], registry=r)
        self.changes = Counter(
            "rayrec_changes", "Changes of the catalog sent, by what became of each.", ["state"], registry=r
        )
        self.log_offset = Gauge(
            "rayrec_log_offset", "Up to which a replica has taken up changes of the catalog.", ["part"], registry=r
        )
        self.tail_failures = Counter(
            "rayrec_tail_failures", "Times that changes could not be taken up.", ["part"], registry=r
        )
        self.in_flight = Gauge("rayrec_in_flight", "Requests being answered.", registry=r)
        self.version = Gauge(
            "rayrec_version_replicas", "Replicas that answer with a version.", ["part", "index", "model"], registry=r
        )
        self.load_failures = Counter(
            "rayrec_version_load_failures", "Versions that could not go live.", ["part"], registry=r
        )

    def snapshot(self) -> Snapshot:
        return {
            family.name: (
                family.type,
                family.documentation,
                {
                    (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                    for sample in family.samples
                    if not sample.name.endswith("_created")
                },
            )
            for family in self.registry.collect()
        }


class MetricsHub:
    """Adds up what replicas report; a plain class, one replica of it runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reports: dict[str, tuple[float, Snapshot]] = {}
        self._gone: Snapshot = {}

    def report(self, replica: str, snapshot: Snapshot) -> None:
        """Take a replica's counts since its start; they replace those it sent before."""
        now = self._clock()
        self._reports[replica] = (now, snapshot)
        for name in [name for name, (told, _) in self._reports.items() if now - told > _FORGET_S]:
            self._gone = summed([(self._gone, False), (self._reports.pop(name)[1], False)])

    def text(self) -> str:
        """All replicas together, in Prometheus' text format."""
        now = self._clock()
        told = [(snapshot, now - at < _STALE_S) for at, snapshot in self._reports.values()]
        return exposition(summed([(self._gone, False), *told]))


def summed(snapshots: Iterable[tuple[Snapshot, bool]]) -> Snapshot:
    """The sum of (snapshot, whether its replica is alive); gauges count only the living."""
    families: Snapshot = {}
    for snapshot, alive in snapshots:
        for name, (kind, text, samples) in snapshot.items():
            _, _, sums = families.setdefault(name, (kind, text, {}))
            if alive or kind != "gauge":
                for sample, value in samples.items():
                    sums[sample] = sums.get(sample, 0.0) + value
    return families


def exposition(snapshot: Snapshot) -> str:
    """A snapshot in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Families(snapshot))
    return generate_latest(registry).decode()


class _Families(Collector):
    def __init__(self, snapshot: Snapshot):
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        for name, (kind, text, samples) in sorted(self._snapshot.items()):
            family = Metric(name, text, kind)
            for (sample, labels), value in samples.items():
                family.add_sample(sample, dict(labels), value)
            yield family
