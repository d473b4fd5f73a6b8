"""What is learned from clicks: the known eyes of simulated shoppers, and the order that they would have chosen."""

import numpy as np
import pytest
from scipy.special import expit

from rayrec.evaluation.click_simulator import simulate
from rayrec.evaluation.metrics import bootstrap_ci
from rayrec.fitting import clicks
from rayrec.fitting.clicks import Impressions

SEEN = np.array([1.0, 0.62, 0.45, 0.35, 0.28, 0.22, 0.18, 0.15, 0.12, 0.10])
TRUE = np.array([0.4, -0.3, 0.0])


def shop(queries: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """x and how attractive each of 30 candidates is: the fused score, two signals that matter and one that does not."""
    rng = np.random.default_rng(seed)
    x = [np.hstack([rng.uniform(0.3, 1, (30, 1)), rng.random((30, 3))]) for _ in range(queries)]
    return x, [expit(-6 + 6 * (each[:, 0] + each[:, 1:] @ TRUE)) for each in x]


def logged(answers: int, *, bought: float | None = 0.3, shuffle: float = 0.1, queries: int = 60) -> Impressions:
    """bought: the chance that a click becomes a purchase; None: as attractive as it is."""
    x, attractive = shop(queries)
    buys = [each if bought is None else np.full(len(each), bought) for each in attractive]
    return simulate(x, attractive, buys, SEEN, answers, np.random.default_rng(1), shuffle=shuffle)


def of(clicked: list[int], bought: list[int], place: list[int], answer: list[int], query: list[int]) -> Impressions:
    x = np.linspace(1, 0, len(place))[:, None]
    return Impressions(
        x, np.array(place), np.array(clicked, bool), np.array(bought, bool), np.array(answer), np.array(query)
    )


@pytest.mark.parametrize("shuffle", [0.0, 0.05, 0.3])
def test_how_often_each_place_is_seen_is_recovered(shuffle: float) -> None:
    found = clicks.fit(logged(20_000, shuffle=shuffle), 1e-4)

    assert found.seen == pytest.approx(SEEN, abs=0.05)
    assert found.seen[0] == 1


def test_what_shoppers_like_is_recovered_and_without_the_correction_it_is_not() -> None:
    shown = logged(20_000, shuffle=0.05)
    corrected, naive = clicks.fit(shown, 1e-5), clicks.fit(shown, 1e-5, by_place=False)

    assert corrected.weights == pytest.approx(TRUE, abs=0.1)
    assert abs(naive.weights[0]) < 0.5 * abs(corrected.weights[0])


def test_corrected_the_order_of_unseen_queries_is_better_than_naive_and_than_what_was_shown() -> None:
    shown = logged(3_000, shuffle=0.05)
    x, attractive = shop(200, seed=7)
    ranked = {"corrected": clicks.fit(shown, 1e-4), "naive": clicks.fit(shown, 1e-4, by_place=False)}

    def liked(order: np.ndarray, truth: np.ndarray) -> float:
        return float(truth[np.argsort(-order)[:5]].mean())

    def each(name: str) -> np.ndarray:
        return np.array([liked(ranked[name].score(one), truth) for one, truth in zip(x, attractive, strict=True)])

    fused = np.array([liked(one[:, 0], truth) for one, truth in zip(x, attractive, strict=True)])
    assert bootstrap_ci(each("corrected") - each("naive"))[0] > 0
    assert bootstrap_ci(each("naive") - fused)[0] > 0


def test_what_is_clicked_but_never_bought_weighs_less() -> None:
    x, attractive = shop(60)
    bait = [np.where(each[:, 1] > 0.5, 0.0, 0.5) for each in x]
    rng = np.random.default_rng(1)
    bought, clicked = (
        simulate(x, attractive, buys, SEEN, 10_000, rng, shuffle=0.3)
        for buys in (bait, [np.full(len(each), 0.3) for each in x])
    )

    assert clicks.fit(bought, 1e-5).weights[0] < 0.5 * clicks.fit(clicked, 1e-5).weights[0]


def test_a_shop_where_only_buyers_know_is_ordered_by_what_they_buy() -> None:
    x, attractive = shop(60)
    same = [np.full(len(each), 0.3) for each in attractive]
    shown = simulate(x, same, attractive, SEEN, 20_000, np.random.default_rng(1), shuffle=0.3)

    found = clicks.fit(shown, 1e-5)

    assert found.weights == pytest.approx(TRUE, abs=0.1)


def test_the_gradient_is_that_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def check(loss, start, **_):
        rng = np.random.default_rng(0)
        at = start + rng.normal(size=len(start))
        gradient = loss(at)[1]
        for i in range(len(at)):
            step = np.zeros(len(at))
            step[i] = 1e-6
            slope = (loss(at + step)[0] - loss(at - step)[0]) / 2e-6
            assert gradient[i] == pytest.approx(slope, abs=1e-6)
            seen.append(i)
        return type("Found", (), {"x": start})

    monkeypatch.setattr(clicks, "minimize", check)
    clicks.fit(logged(300), 1e-2)

    assert len(seen) == 4 + 4 + 2 + 9


def test_signals_that_say_nothing_leave_the_order_as_it_was() -> None:
    rng = np.random.default_rng(0)
    x = [np.hstack([rng.uniform(0.3, 1, (30, 1)), rng.random((30, 3))]) for _ in range(40)]
    attractive = [expit(-6 + 6 * each[:, 0]) for each in x]
    shown = simulate(x, attractive, attractive, SEEN, 200, rng, shuffle=0.1)

    found = clicks.choose(shown, {"fused": shown.x[:, 0]})

    weights = np.zeros(3) if found.ranking is None else found.ranking.weights
    assert np.abs(weights).max() < 0.15
    assert bootstrap_ci(found.after - found.rivals["fused"])[0] <= 0


def test_a_good_ranking_gains_on_queries_it_did_not_learn_from() -> None:
    shown = logged(4_000, queries=80)
    found = clicks.choose(shown, {"fused": shown.x[:, 0], "noise": shown.x[:, 3]})

    assert found.ranking is not None
    assert len(found.queries) == len(set(found.queries)) == 80
    assert bootstrap_ci(found.after - found.rivals["fused"])[0] > 0
    assert found.rivals["noise"].mean() < found.rivals["fused"].mean()


def test_gains_by_hand() -> None:
    # one answer; a click at place 2, seen half the time, counts twice: at rank 2 of 2, 2 / log2(3), of 2 at best
    shown = of([0, 1], [0, 0], [1, 2], [0, 0], [5, 5])

    queries, ndcg = clicks.gains(shown, shown.x[:, 0], np.array([1.0, 0.5]))

    assert queries.tolist() == [5]
    assert ndcg.tolist() == pytest.approx([1 / np.log2(3)])
    assert clicks.gains(shown, -shown.x[:, 0], np.array([1.0, 0.5]))[1].tolist() == [1]


def test_a_purchase_counts_twice_a_click_and_a_rare_place_no_more_than_twenty_times() -> None:
    shown = of([1, 1], [0, 1], [1, 2], [0, 0], [0, 0])
    # wanted 1 and 2 / max(.001, .05) = 40
    dcg, ideal = 1 + 40 / np.log2(3), 40 + 1 / np.log2(3)

    assert clicks.gains(shown, shown.x[:, 0], np.array([1.0, 0.001]))[1].tolist() == pytest.approx([dcg / ideal])


def test_a_querys_answers_are_averaged_and_those_without_a_click_tell_nothing() -> None:
    shown = of([1, 0, 0, 1, 0, 0], [0] * 6, [0] * 6, [0, 0, 1, 1, 2, 2], [3, 3, 3, 3, 4, 4])

    queries, ndcg = clicks.gains(shown, shown.x[:, 0], np.ones(1))

    assert queries.tolist() == [3]
    assert ndcg.tolist() == pytest.approx([(1 + 1 / np.log2(3)) / 2])


def test_places_beyond_influence_are_taken_as_seen() -> None:
    shown = logged(2_000)
    everywhere = Impressions(
        shown.x, np.zeros_like(shown.place), shown.clicked, shown.bought, shown.answer, shown.query
    )

    assert clicks.fit(everywhere, 1e-4).seen.tolist() == [1]
    naive = clicks.fit(shown, 1e-4, by_place=False)
    assert clicks.fit(everywhere, 1e-4).weights == pytest.approx(naive.weights, abs=1e-3)
