"""The gate does no harm, and the page says what the report says."""

from html.parser import HTMLParser

import numpy as np
import pytest

from rayrec.data.histories import Cases, Histories
from rayrec.evaluation.protocol import judge
from rayrec.evaluation.report import document, gate, page

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
