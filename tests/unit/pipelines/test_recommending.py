"""How much a model weighs: by hand."""

import numpy as np
import pytest

from rayrec.pipelines.recommending import kept_or_better


def test_a_weight_is_kept_unless_another_is_better_clear_of_zero() -> None:
    rng = np.random.default_rng(0)
    kept = rng.random(300)
    noisy = kept + 0.002 + 0.3 * rng.normal(size=300)
    better = kept + 0.05 + 0.1 * rng.normal(size=300)
    assert kept_or_better({1.0: [kept], 4.0: [noisy]}, 1.0, 4.0) == 1.0
    assert kept_or_better({1.0: [kept], 4.0: [better]}, 1.0, 4.0) == 4.0
    assert kept_or_better({1.0: [kept]}, 1.0, 1.0) == 1.0


@pytest.mark.parametrize(("new", "chosen"), [(0.3, 4.0), (0.1, 1.0)])
def test_a_small_part_counts_as_much_as_a_large_one(new: float, chosen: float) -> None:
    """It loses .2 on a thousand old shoppers; on ten new ones it gains .3, or .1."""
    old, few = np.full(1_000, 0.5), np.full(10, 0.5)
    reached = {1.0: [old, few], 4.0: [old - 0.2, few + new]}
    assert kept_or_better(reached, 1.0, 4.0) == chosen
