import math

import pytest

torch = pytest.importorskip("torch")
from rayrec.fitting.losses import (  # noqa: E402
    contrastive,
    gbce,
    imitation,
    softmax,
)

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


def drawn(positions=7, items=5, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(positions, dim, generator=generator, requires_grad=True)
    table = torch.randn(items, dim, generator=generator, requires_grad=True)
    target = torch.randint(0, items, (positions,), generator=generator)
    return vectors, table, target, torch.rand(positions, generator=generator)


@pytest.mark.parametrize("at_once", [1, 32 * 5, 1 << 21])
def test_softmax_over_all_items_and_its_gradients_are_those_of_cross_entropy(at_once, monkeypatch):
    monkeypatch.setattr("rayrec.fitting.losses._LOGITS", at_once)
    vectors, table, target, weight = drawn(positions=70)
    found = 3 * softmax(vectors, table[target], table, target, weight)
    wanted = 3 * (weight * torch.nn.functional.cross_entropy(vectors @ table.T, target, reduction="none")).sum()
    torch.testing.assert_close(found, wanted)
    ours = torch.autograd.grad(found, (vectors, table))
    theirs = torch.autograd.grad(wanted, (vectors, table))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_softmax_against_a_sample_by_hand():
    vectors, own = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [0.5]])
    others, log_q = torch.tensor([[1.0], [3.0]]), torch.log(torch.tensor([0.5, 0.25]))
    place, weight = torch.tensor([1, -1]), torch.tensor([1.0, 0.5])
    # the second of the others is what the first wants, so it is none against it
    first = -math.log(math.exp(3) / (math.exp(3) + math.exp(1) / 0.5))
    second = -math.log(math.exp(1) / (math.exp(1) + math.exp(2) / 0.5 + math.exp(6) / 0.25))
    found = softmax(vectors, own, others, place, weight, log_q)
    assert float(found) == pytest.approx(first + 0.5 * second, rel=1e-5)


def test_the_correction_makes_unequal_sampling_an_estimate_of_all_items():
    vectors, table, target, weight = (t.detach() for t in drawn(positions=40, items=60, seed=1))
    full = float(softmax(vectors, table[target], table, target, weight))
    chance = torch.linspace(0.1, 0.9, 60)
    generator = torch.Generator().manual_seed(2)

    def mean(corrected):
        found = []
        for _ in range(400):
            chosen = torch.nonzero(torch.rand(60, generator=generator) < chance).squeeze(1)
            place = torch.full((60,), -1)
            place[chosen] = torch.arange(len(chosen))
            log_q = torch.log(chance[chosen]) if corrected else None
            found.append(float(softmax(vectors, table[target], table[chosen], place[target], weight, log_q)))
        return sum(found) / len(found)

    assert mean(True) == pytest.approx(full, rel=0.05)
    assert mean(False) < 0.9 * full


def test_gbce_by_hand():
    vectors, own, others = torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([[-1.0], [2.0]])
    place, weight = torch.tensor([1]), torch.tensor([0.5])

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    # half of the other items are drawn; t 1: beta is the rate itself, t 0: plain
    for calibration, beta in ((0.0, 1.0), (1.0, 0.5)):
        wanted = -0.5 * (beta * math.log(sigmoid(2)) + math.log(1 - sigmoid(-1)))
        assert float(gbce(vectors, own, others, place, weight, 0.5, calibration)) == pytest.approx(wanted, rel=1e-5)
