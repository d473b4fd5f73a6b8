"""Full ranking against fractions worked by hand, and against a plain loop."""

import math
from dataclasses import replace

import numpy as np
import pytest

from rayrec.data.histories import Cases, Histories, leave_one_out
from rayrec.evaluation.protocol import gini, judge, measures, over_seeds, ranks


def cases(histories, wanted):
    start = np.cumsum([0, *map(len, wanted)])
    return Cases(Histories.of_rows(histories), start, np.array([w for part in wanted for w in part], np.int64))


def constant(scores):
    return lambda histories: np.tile(np.array(scores, np.float32), (len(histories), 1))


def test_ranks_by_hand_and_ties_stand_before_what_is_wanted():
    scores = np.array([0.9, 0.5, 0.5, 0.1], np.float32)
    assert ranks(scores, np.array([0])).tolist() == [0]
    assert ranks(scores, np.array([1])).tolist() == [2]
    assert ranks(scores, np.array([1, 2])).tolist() == [1, 2]
    assert ranks(scores, np.array([3, 0])).tolist() == [0, 3]
    assert ranks(np.zeros(4, np.float32), np.array([0])).tolist() == [3]
    assert ranks(np.full(4, -np.inf, np.float32), np.array([0])).tolist() == [4]


def test_measures_of_a_basket_are_the_hand_worked_fractions():
    # three wanted items at ranks 0, 3 and 11
    found = measures(np.array([0, 3, 11]), (5, 10))
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert found["mrr"] == 1
    assert found["hr@5"] == 1
    assert found["recall@5"] == pytest.approx(2 / 3)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / math.log2(5)) / ideal)
    late = measures(np.array([7]), (5, 10))
    assert (late["hr@5"], late["recall@10"], late["mrr"]) == (0, 1, 1 / 8)
    assert late["ndcg@10"] == pytest.approx(1 / math.log2(9))


def test_a_judged_run_by_hand():
    # items 0 to 4, scored 5 4 3 2 1 for everybody; the first shopper had 0, so 1 comes first for them
    asked = cases([[0], [4, 4, 4]], [[2], [0]])
    judged = judge(asked, constant([5, 4, 3, 2, 1]), n_items=5, cuts=(1, 2))
    assert judged.values["hr@1"].tolist() == [0, 1]
    assert judged.values["hr@2"].tolist() == [1, 1]
    assert judged.figures()["mrr"] == pytest.approx((1 / 2 + 1) / 2)
    assert judged.figures()["ndcg@2"] == pytest.approx((1 / math.log2(3) + 1) / 2)
    # shown first: 1 and 0; within two: {1, 2} and {0, 1}
    assert judged.shown[1].tolist() == [1, 1, 0, 0, 0]
    assert judged.shown[2].tolist() == [1, 2, 1, 0, 0]
    assert judged.figures()["coverage@2"] == pytest.approx(3 / 5)
    assert judged.figures("cold users")["hr@1"] == 0
    assert judged.figures("short histories")["hr@1"] == 1
    assert judged.ci95("hr@1") == (0, 1)


def test_what_was_had_is_shown_where_people_buy_again():
    asked = cases([[0, 1]], [[0]])
    score = constant([3, 4, 1])
    assert judge(asked, score, n_items=3, mask_seen=False, cuts=(1, 2)).values["hr@1"].tolist() == [0]
    # masked, 1 goes; 0 was had too, but is wanted
    assert judge(asked, score, n_items=3, cuts=(1, 2)).values["hr@1"].tolist() == [1]


def test_a_scorer_without_opinion_finds_nothing():
    rng = np.random.default_rng(0)
    asked = cases([[int(rng.integers(50))] for _ in range(40)], [[int(rng.integers(50))] for _ in range(40)])
    for value in (0.0, np.nan, -np.inf):
        judged = judge(asked, constant([value] * 50), n_items=50, cuts=(10,))
        assert judged.figures()["hr@10"] == 0


def test_full_ranking_equals_a_plain_loop():
    rng = np.random.default_rng(1)
    n, people = 60, 300
    histories = [rng.choice(n, rng.integers(3, 30), replace=False).tolist() for _ in range(people)]
    learned, _, test = leave_one_out(Histories.of_rows(histories))
    table = rng.normal(size=(people, n)).astype(np.float32)

    def score(asked):
        return table[asked.users.astype(int)]

    judged = judge(test, score, n_items=n, learned=learned, cuts=(10,))
    hits, gains = [], []
    for person, history in enumerate(histories):
        *seen, wanted = history
        scores = table[person].copy()
        scores[seen] = -np.inf
        place = sorted(range(n), key=lambda item: -scores[item]).index(wanted)
        hits.append(place < 10)
        gains.append(1 / math.log2(place + 2) if place < 10 else 0)
    np.testing.assert_array_equal(judged.values["hr@10"], hits)
    np.testing.assert_allclose(judged.values["ndcg@10"], gains)
    assert judged.slices["long histories"].sum() == sum(len(h) - 1 >= 20 for h in histories)


def test_a_shoppers_cases_are_averaged_before_shoppers_are():
    asked = cases([[], [0], [0, 1]], [[0], [1], [1]])
    asked = replace(asked, histories=replace(asked.histories, users=np.array(["u", "v", "u"], object)))
    judged = judge(asked, constant([0.9, 0.1, 0.5]), n_items=3, cuts=(1,), mask_seen=False)
    # u: found, then not; v: not
    assert judged.values["hr@1"].tolist() == [1, 0, 0]
    assert judged.by_shopper("hr@1").tolist() == [0.5, 0]
    assert judged.figures()["hr@1"] == 0.25
    assert judged.by_shopper("hr@1", "cold users").tolist() == [0.5, 0]


def test_cold_items_are_those_that_nobody_touched_while_learning():
    learned, _, test = leave_one_out(Histories.of_rows([[0, 1, 2], [0, 1, 3], [3, 1, 0]]))
    judged = judge(test, constant([1, 2, 3, 4]), n_items=4, learned=learned, cuts=(1,))
    # learned: the first items alone, 0 and 3; wanted: 2, 3, 0
    assert judged.slices["cold items"].tolist() == [True, False, False]


def test_scores_of_the_wrong_shape_are_told():
    with pytest.raises(ValueError, match="expected 3 each"):
        judge(cases([[0]], [[1]]), constant([1, 2]), n_items=3)


def test_gini_by_hand():
    assert gini(np.array([1, 1, 1, 1])) == 0
    assert gini(np.array([0, 0, 0, 4])) == pytest.approx(3 / 4)
    assert gini(np.array([1, 3])) == pytest.approx(1 / 4)
    assert gini(np.zeros(3, int)) == 0


def test_the_interval_over_seeds_is_students():
    mean, interval = over_seeds([1.0, 2.0, 3.0])
    assert mean == 2
    # t of .975 with two degrees of freedom is 4.3027; standard error 1 / sqrt(3)
    assert interval == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-3)
    assert over_seeds([5.0]) == (5, None)
