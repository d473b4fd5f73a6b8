"""The blend ranks as the service does."""

import numpy as np
import pyarrow as pa

from rayrec.data.histories import Histories
from rayrec.ranking.blend import Blend
from rayrec.retrieval.behavior import BehaviorIndex

N = 6


def make(without_had=False, expected=None):
    learned = Histories.of_rows([[0, 1], [0, 1], [2, 3], [0, 4, 0]])
    behavior = BehaviorIndex.of_histories(learned, N, 90.0)
    vectors = np.eye(N, 4, dtype=np.float32) + 0.01
    model = None if expected is None else lambda histories: np.tile(np.float32(expected), (len(histories), 1))
    return Blend(behavior, vectors, model, without_had=without_had)


def test_no_weight_is_what_is_counted_and_much_weight_is_the_model():
    asked = Histories.of_rows([[0]])
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    counted, with_model = make(), make(expected=expected)
    np.testing.assert_allclose(with_model.score(0.0)(asked)[0, :5], counted.score(0.0)(asked)[0, :5])
    assert with_model.score(100.0)(asked)[0].argmax() == 5
    assert counted.score(0.0)(asked)[0].argmax() == 0  # bought again


def test_what_was_had_is_not_shown_where_nobody_buys_again():
    scores = make(without_had=True, expected=np.ones(N)).score(1.0)(Histories.of_rows([[0, 3]]))[0]
    assert np.isneginf(scores[[0, 3]]).all()
    assert np.isfinite(scores[[1, 2]]).all()


def test_a_stranger_gets_what_is_popular():
    scores = make(expected=np.arange(N)).score(1.0)(Histories.of_rows([[]]))[0]
    assert scores.argmax() == 0


def test_shoppers_are_told_apart_whatever_the_order():
    blend = make()
    both = Histories.of_rows([[0], [2]])
    first = blend.score(0.0)(both)
    again = blend.score(0.0)(both.take(np.array([1, 0])))
    np.testing.assert_array_equal(first, again[::-1])


def test_a_shopper_is_asked_about_again_after_another_basket():
    blend = make()
    early, late = Histories.of_rows([[0]]), Histories.of_rows([[0, 2, 2, 2]])
    first = blend.score(0.0)(early)
    assert not np.array_equal(blend.score(0.0)(late), first)
    np.testing.assert_array_equal(blend.score(0.0)(early), first)


def test_behavior_of_histories_is_that_of_their_events():
    rows = [("u", "a", 1), ("u", "b", 1), ("v", "a", 2), ("v", "a", 5), ("w", "c", 6)]
    events = pa.Table.from_pylist(
        [
            {"event_id": str(i), "user_id": user, "type": "purchase", "item_id": item, "ts_us": day * 86_400_000_000}
            for i, (user, item, day) in enumerate(rows)
        ],
        schema=pa.schema(
            [
                ("event_id", pa.string()),
                ("user_id", pa.string()),
                ("session_id", pa.string()),
                ("type", pa.string()),
                ("item_id", pa.string()),
                ("query", pa.string()),
                ("ts_us", pa.int64()),
            ]
        ),
    )
    ids = pa.array(["a", "b", "c"])
    of_events = BehaviorIndex.build(events, ids, 30.0)
    of_histories = BehaviorIndex.of_histories(Histories.of(events, ids), 3, 30.0)
    np.testing.assert_allclose(of_histories.popularity, of_events.popularity)
    np.testing.assert_allclose(of_histories.repeat, of_events.repeat)
    assert (of_histories.neighbours != of_events.neighbours).nnz == 0
    assert of_histories.now_us == of_events.now_us
