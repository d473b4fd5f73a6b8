"""The gate does no harm, and the page says what the report says."""

from html.parser import HTMLParser

import numpy as np
import pytest

from rayrec.data.histories import Cases, Histories
from rayrec.evaluation.protocol import judge
from rayrec.evaluation.report import document, document_of, gate, gate_update, page

RNG = np.random.default_rng(0)


def test_what_beats_everybody_clear_of_zero_is_promoted():
    base = RNG.random(400)
    verdict = gate(
        "ndcg@10", base + 0.1 + 0.05 * RNG.normal(size=400), {"popularity": base, "present model": base - 0.1}
    )
    assert verdict.promoted
    assert [gain.opponent for gain in verdict.gains] == ["popularity", "present model"]
    assert verdict.gains[0].gain == pytest.approx(0.1, abs=0.02)
    assert verdict.gains[0].ci95[0] > 0.08


@pytest.mark.parametrize("gain", [0.0, -0.1, 0.005])
def test_what_does_not_beat_each_clear_of_zero_is_not(gain):
    base = RNG.random(200)
    ours = base + gain + 0.3 * RNG.normal(size=200)
    assert not gate("hr@10", ours, {"weak": base - 0.5, "present model": base}).promoted


def test_without_opponents_nothing_is_promoted():
    assert not gate("hr@10", np.ones(3), {}).promoted


def halves(value: float, n: int = 100) -> np.ndarray:
    return np.full(n, value)


@pytest.mark.parametrize(
    ("old", "lost", "promoted"),
    [(0.5, 0.0, True), (0.49, 0.02, True), (0.489, 0.022, False), (0.6, -0.2, True), (0.0, 1.0, False)],
)
def test_an_update_may_lose_two_hundredths_of_the_old_metric_and_no_more(old, lost, promoted):
    verdict = gate_update("ndcg@10", (halves(0.3), halves(0.2)), (halves(old), halves(0.5)), 0.02)
    assert verdict.promoted is promoted
    assert verdict.forgetting.lost == pytest.approx(lost)
    assert verdict.forgetting.ci95 == pytest.approx((lost, lost))  # all shoppers are alike
    assert ("forgets" in verdict.reason) is not promoted


@pytest.mark.parametrize("new", [0.2, 0.19])
def test_an_update_that_gains_nothing_on_new_events_is_refused(new):
    verdict = gate_update("ndcg@10", (halves(new), halves(0.2)), (halves(0.9), halves(0.5)), 0.02)
    assert not verdict.promoted
    assert "no gain on new events" in verdict.reason


def test_the_interval_of_what_is_forgotten_is_told_as_a_share():
    theirs = np.tile([0.4, 0.6], 200)
    ours = theirs - np.tile([0.0, 0.0, 0.05, 0.05], 100)  # 0.025 of 0.5
    verdict = gate_update("ndcg@10", (theirs + 0.1, theirs), (ours, theirs), 0.02)
    assert verdict.forgetting.lost == pytest.approx(0.05)
    # standard error: deviation .025 over 400 shoppers, .00125 of .5
    assert verdict.forgetting.ci95 == pytest.approx((0.05 - 1.96 * 0.0025, 0.05 + 1.96 * 0.0025), abs=5e-4)


def test_where_the_present_model_found_nothing_nothing_can_be_forgotten():
    verdict = gate_update("hr@10", (halves(0.3), halves(0.2)), (halves(0.0), halves(0.0)), 0.02)
    assert verdict.promoted
    assert verdict.forgetting.lost == 0


def test_both_slices_and_what_was_forgotten_are_on_the_page():
    cases = Cases(Histories.of_rows([[0], [1, 2, 3], [4]]), np.arange(4), np.array([1, 4, 2]))
    ours = judge(cases, lambda h: np.tile(np.arange(6, 0, -1.0), (len(h), 1)), n_items=6, cuts=(1, 3))
    theirs = judge(cases, lambda h: np.tile(np.arange(6) * 1.0, (len(h), 1)), n_items=6, cuts=(1, 3))
    judged = {"updated model": ours, "present model": theirs}
    report = document_of({"new events": judged, "old events": judged}, "ndcg@3")
    of_model = report["models"]["updated model"]
    assert of_model["new events"] == document(judged, "ndcg@3")["models"]["updated model"]["all"]
    assert "old events: cold users" in of_model
    both = (ours.values["ndcg@3"], theirs.values["ndcg@3"])
    text = page("Update", report, gate_update("ndcg@3", both, both, 0.02).to_dict())
    assert text.count("<svg") == 2
    assert "New events: cold users" in text
    assert "lost (95 % interval)" in text


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "path", "use", "rect"):
            self.open.append(tag)

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("metric", ["ndcg@3", "recall@3"])
def test_the_page_has_the_reports_figures_plots_and_the_verdict(metric):
    cases = Cases(Histories.of_rows([[0], [1, 2, 3], [4]]), np.arange(4), np.array([1, 4, 2]))
    n = 6
    judged = {
        "ours": judge(cases, lambda h: np.tile(np.arange(n, 0, -1.0), (len(h), 1)), n_items=n, cuts=(1, 3)),
        "<other>": judge(cases, lambda h: np.tile(np.arange(n) * 1.0, (len(h), 1)), n_items=n, cuts=(1, 3)),
    }
    report = document(judged, metric)
    assert report["models"]["ours"]["all"]["cases"] == 3
    assert report["models"]["ours"]["all"][metric] == pytest.approx(judged["ours"].figures()[metric], abs=1e-5)
    assert set(report["models"]["ours"]) == {"all", "cold users", "short histories"}
    verdict = gate(metric, judged["ours"].values[metric], {"<other>": judged["<other>"].values[metric]})
    text = page("A <shop>", report, verdict.to_dict())
    reader = Reader()
    reader.feed(text)
    assert reader.open.count("svg") == 2
    assert "A <shop>" in reader.text
    assert "<other>" in reader.text
    assert f"Gate: {'promoted' if verdict.promoted else 'not promoted'}" in reader.text
    assert str(report["models"]["ours"]["cold users"][metric]) in reader.text
