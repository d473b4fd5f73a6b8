import math

import pytest

torch = pytest.importorskip("torch")
from rayrec.fitting.losses import contrastive, imitation  # noqa: E402

NONE = torch.zeros(2, 2, dtype=torch.bool)


def test_contrastive_is_the_mean_of_both_directions_by_hand():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    items = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # at temperature 1 the scores are [[1, .6], [0, .8]]
    forward = (-math.log(math.e / (math.e + math.exp(0.6))) - math.log(math.exp(0.8) / (1 + math.exp(0.8)))) / 2
    back = (-math.log(math.e / (math.e + 1)) - math.log(math.exp(0.8) / (math.exp(0.6) + math.exp(0.8)))) / 2
    found = contrastive(queries, items, NONE, 1.0)
    assert float(found) == pytest.approx((forward + 0.5 * back) / 1.5, abs=1e-6)


def test_an_item_that_fits_too_is_no_negative():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # a third like the first, a hard negative by accident
    fits = torch.zeros(2, 3, dtype=torch.bool)
    wrong = contrastive(queries, items, fits, 0.05)
    fits[0, 2] = True
    assert float(contrastive(queries, items, fits, 0.05)) < 0.01 < float(wrong)


def test_an_own_item_counts_even_if_it_is_told_to_fit():
    queries = items = torch.eye(2)
    everything = torch.ones(2, 2, dtype=torch.bool)
    assert float(contrastive(queries, items, everything, 0.05)) == pytest.approx(0, abs=1e-6)


def test_hard_negatives_raise_the_loss():
    queries = torch.eye(2)
    with_hard = torch.cat([torch.eye(2), torch.tensor([[0.99, 0.14]])])
    fits = torch.zeros(2, 3, dtype=torch.bool)
    assert contrastive(queries, with_hard, fits, 0.05) > contrastive(queries, torch.eye(2), NONE, 0.05)


def test_imitation_is_nothing_for_the_teacher_itself_and_sees_a_rotation_of_one():
    teacher = torch.nn.functional.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert float(imitation(teacher, teacher)) == pytest.approx(0, abs=1e-6)
    moved = teacher.clone()
    moved[0] = -moved[0]
    # one of eight opposite: 1 - cosine is 2 for it; its similarities to seven others turn their sign, twice each
    others = teacher[0] @ teacher[1:].T
    wanted = 2 / 8 + float((2 * (2 * others) ** 2).sum()) / 64
    assert float(imitation(moved, teacher)) == pytest.approx(wanted, rel=1e-4)
