"""The loop on a task whose every step can be followed: a point that is pulled to a target."""

import numpy as np
import pytest

from rayrec.config import TrainingConfig

torch = pytest.importorskip("torch")
from rayrec.fitting.training import train  # noqa: E402


class Pull:
    """Loss: squared distance to (3, -1) with noise of the step; score: minus the distance, or what `scores` says."""

    def __init__(self, scores=None):
        self.module = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.zeros_(self.module.weight)
        self._scores = list(scores or [])
        self.asked = 0

    def groups(self, rate):
        return [{"params": list(self.module.parameters()), "lr": rate}]

    def loss(self, step):
        noise = torch.from_numpy(np.random.default_rng(step).normal(size=2).astype(np.float32))
        return ((self.module.weight[0] - torch.tensor([3.0, -1.0]) - 0.1 * noise) ** 2).sum()

    def evaluate(self):
        self.asked += 1
        assert not self.module.training
        if self._scores:
            return self._scores.pop(0)
        return -float((self.module.weight.detach()[0] - torch.tensor([3.0, -1.0])).norm())


def config(**values):
    return TrainingConfig(**{"steps": 60, "learning_rate": 0.3, "evaluate_every": 10, "weight_decay": 0, **values})


def test_it_gets_there_and_keeps_the_best():
    task = Pull()
    progress = train(task, config(patience=99))
    assert progress.best[1] > -0.1
    assert -float((task.module.weight.detach()[0] - torch.tensor([3.0, -1.0])).norm()) == pytest.approx(
        progress.best[1]
    )


def test_it_stops_when_nothing_gets_better_and_goes_back_to_the_best():
    task = Pull(scores=[0.1, 0.5, 0.4, 0.3, 0.9])
    weights = []
    progress = train(task, config(patience=2), report=lambda p, s: weights.append(s["weights"][0].clone()))
    assert [score for _, score in progress.scores] == [0.1, 0.5, 0.4, 0.3]  # .9 is never asked for
    assert progress.best == (10, 0.5)
    torch.testing.assert_close(task.module.weight.data, weights[0])


def test_a_run_that_only_gets_worse_leaves_the_weights_as_they_were():
    task = Pull(scores=[0.9, 0.5, 0.4])
    train(task, config(patience=2))
    assert task.module.weight.abs().sum() == 0


def test_the_mean_of_the_best_states_is_kept_if_it_is_better():
    for last, kept_mean in ((0.95, True), (0.2, False)):
        task = Pull(scores=[0.1, 0.5, 0.8, last])
        seen = []
        train(task, config(steps=20, average_last=2), report=lambda p, s, seen=seen: seen.append(s["weights"][0]))
        wanted = (seen[0] + seen[1]) / 2 if kept_mean else seen[1]
        torch.testing.assert_close(task.module.weight.data, wanted)


def test_a_resumed_run_equals_a_whole_one():
    whole, states = Pull(), []
    train(whole, config(patience=99), report=lambda p, s: states.append(s))
    resumed = Pull()
    progress = train(resumed, config(patience=99), resume=states[2])
    torch.testing.assert_close(resumed.module.weight, whole.module.weight)
    assert [step for step, _ in progress.scores] == [0, 10, 20, 30, 40, 50, 60]


def test_the_rate_warms_up_and_falls_to_nothing():
    from rayrec.fitting.training import _rate

    shape = [_rate(step, config(steps=100, warmup=0.1)) for step in range(100)]
    assert shape[0] == pytest.approx(0.1)
    assert max(shape) == shape[9] == shape[10] == 1.0
    assert shape[55] == pytest.approx(0.5, abs=0.01)
    assert shape[99] < 0.001


class Words:
    """Two embeddings, of which only the head is trained."""

    def __init__(self):
        torch.manual_seed(0)
        self.module = torch.nn.Sequential(torch.nn.Embedding(2, 3), torch.nn.Linear(3, 1))
        self.losses = []

    def groups(self, rate):
        return [{"params": list(self.module[1].parameters())}]

    def loss(self, step):
        out = self.module(torch.tensor([0, 1])).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(out, torch.tensor([0.0, 1.0]))
        self.losses.append(float(loss.detach()))
        return loss

    def evaluate(self):
        return 0.0


def test_the_adversary_moves_embeddings_to_where_the_loss_is_higher_and_puts_them_back():
    task = Words()
    before = task.module[0].weight.detach().clone()
    train(task, config(steps=4, adversarial_epsilon=0.5))
    plain, moved = task.losses[0::2], task.losses[1::2]
    assert len(plain) == len(moved) == 4
    assert all(there > here for here, there in zip(plain, moved, strict=True))
    torch.testing.assert_close(task.module[0].weight.detach(), before)


def test_an_adversary_without_embeddings_is_refused():
    with pytest.raises(ValueError, match="needs embeddings"):
        train(Pull(), config(adversarial_epsilon=0.1))
