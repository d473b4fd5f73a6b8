"""Counts of many replicas are one sum: also of those that are gone, but not their gauges."""

from rayrec.serving.telemetry import MetricsHub, Telemetry


def _lines(text: str) -> dict[str, float]:
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def _replica(requests: int, in_flight: int) -> Telemetry:
    telemetry = Telemetry()
    telemetry.requests.labels("/v1/search", "200").inc(requests)
    telemetry.in_flight.set(in_flight)
    for _ in range(requests):
        telemetry.latency.labels("/v1/search").observe(0.004)
    return telemetry


def test_counters_histograms_and_gauges_add_up_over_replicas():
    hub = MetricsHub()
    hub.report("a", _replica(3, 1).snapshot())
    hub.report("b", _replica(4, 2).snapshot())
    found = _lines(hub.text())
    assert found['rayrec_requests_total{route="/v1/search",status="200"}'] == 7
    assert found["rayrec_in_flight"] == 3
    assert found['rayrec_request_seconds_bucket{le="0.005",route="/v1/search"}'] == 7
    assert found['rayrec_request_seconds_bucket{le="0.0025",route="/v1/search"}'] == 0
    assert found['rayrec_request_seconds_count{route="/v1/search"}'] == 7


def test_a_newer_report_replaces_the_older_one():
    hub = MetricsHub()
    telemetry = _replica(3, 0)
    hub.report("a", telemetry.snapshot())
    telemetry.requests.labels("/v1/search", "200").inc(2)
    hub.report("a", telemetry.snapshot())
    assert _lines(hub.text())['rayrec_requests_total{route="/v1/search",status="200"}'] == 5


def test_a_dead_replicas_counts_stay_and_its_gauges_go():
    clock = [0.0]
    hub = MetricsHub(clock=lambda: clock[0])
    hub.report("dead", _replica(3, 5).snapshot())
    for clock[0] in (20.0, 5_000.0):  # noticed, then forgotten and added to those that are gone
        hub.report("alive", _replica(4, 1).snapshot())
        found = _lines(hub.text())
        assert found['rayrec_requests_total{route="/v1/search",status="200"}'] == 7
        assert found["rayrec_in_flight"] == 1
