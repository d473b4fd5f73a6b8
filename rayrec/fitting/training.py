"""The training loop of every encoder: schedule, early stopping, adversarial steps, averaging, resume.

A task says what is trained, what a step's loss is, and how good the module is on held-out data. The loop
knows nothing of Ray: it is handed how to average gradients over workers and where to report.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from rayrec.config import TrainingConfig

State = dict[str, Any]
Report = Callable[["Progress", State], None]
"""Told after each evaluation; the state continues the run."""


class Team(Protocol):
    """The workers of one run."""

    def average(self, gradients: Sequence[torch.Tensor]) -> None:
        """Replace each by its mean over workers."""
        ...

    def agree(self, score: float) -> float:
        """The first worker's."""
        ...


class Alone:
    """A team of one."""

    def average(self, gradients: Sequence[torch.Tensor]) -> None:
        pass

    def agree(self, score: float) -> float:
        return score


class Task(Protocol):
    """Something to be fitted."""

    module: nn.Module

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser, at a peak learning rate."""
        ...

    def loss(self, step: int) -> torch.Tensor:
        """Of a step's batch. The same step draws the same batch: that is how a resumed run continues."""
        ...

    def evaluate(self) -> float:
        """On held-out data, higher is better; the module is in eval mode."""
        ...


@dataclass
class Progress:
    """After an evaluation. scores: (step, score) of all so far; best: of them, and before training at step 0."""

    step: int
    steps: int
    loss: float
    scores: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float]:
        return max(self.scores, key=lambda told: told[1])


def train(
    task: Task,
    config: TrainingConfig,
    *,
    report: Report | None = None,
    resume: State | None = None,
    team: Team | None = None,
) -> Progress:
    """Train until the last step or until `patience` evaluations bring nothing better; keep the best weights.

    With `average_last` > 1 the mean of that many best evaluated states is tried at the end, and kept if it is
    better (Izmailov et al., UAI 2018).
    """
    team = team or Alone()
    groups = task.groups(config.learning_rate)
    trained = [p for group in groups for p in group["params"]]
    kept_as = [*trained, *(b for b in task.module.buffers() if b.is_floating_point())]  # with batch norm's means
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, config))
    state = resume or {"step": 0, "scores": [(0, team.agree(judge(task)))], "kept": []}
    if resume is not None:
        _write(kept_as, state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
    else:
        state["kept"] = [(state["scores"][0][1], _read(kept_as))]
    losses: list[float] = []
    progress = Progress(state["step"], config.steps, math.nan, state["scores"])
    for step in range(state["step"], config.steps):
        task.module.train()
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout of a resumed run is that of a whole one
        task.module.zero_grad(set_to_none=True)  # of what is not trained too: embeddings, for the adversary
        loss = task.loss(step)
        loss.backward()
        if config.adversarial_epsilon:
            adversarial(task, step, config.adversarial_epsilon)
        team.average([p.grad for p in trained if p.grad is not None])
        torch.nn.utils.clip_grad_norm_(trained, config.max_gradient_norm)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % config.evaluate_every and step + 1 < config.steps:
            continue
        score = team.agree(judge(task))
        progress = Progress(step + 1, config.steps, sum(losses) / len(losses), [*progress.scores, (step + 1, score)])
        losses.clear()
        kept = sorted([*state["kept"], (score, _read(kept_as))], key=lambda told: -told[0])
        state = {
            "step": step + 1,
            "scores": progress.scores,
            "kept": kept[: max(1, config.average_last)],
            "weights": _read(kept_as),
            "optimiser": copy.deepcopy(optimiser.state_dict()),
            "schedule": schedule.state_dict(),
        }
        if report is not None:
            report(progress, state)
        if step + 1 - progress.best[0] >= config.patience * config.evaluate_every:
            break
    _keep_best(task, kept_as, state["kept"], progress, team)
    return progress


def adversarial(task: Task, step: int, epsilon: float) -> None:
    """Add the gradients at embeddings moved by epsilon * g / |g|, the worst direction.

    The fast gradient method on embeddings: Miyato et al., ICLR 2017.
    """
    moved = [
        module.weight
        for module in task.module.modules()
        if isinstance(module, nn.Embedding) and module.weight.grad is not None
    ]
    if not moved:
        raise ValueError("adversarial training needs embeddings with gradients; the task's module has none")
    steps = [epsilon * weight.grad / (weight.grad.norm() + 1e-12) for weight in moved if weight.grad is not None]
    with torch.no_grad():
        for weight, moves in zip(moved, steps, strict=True):
            weight.add_(moves)
    task.loss(step).backward()
    with torch.no_grad():
        for weight, moves in zip(moved, steps, strict=True):
            weight.sub_(moves)


def _rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then half a cosine."""
    warm = max(1, round(config.steps * config.warmup))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))


def judge(task: Task) -> float:
    """How good the task's module is now."""
    task.module.eval()
    with torch.inference_mode():
        return task.evaluate()


def _read(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [p.detach().cpu().clone() for p in parameters]


def _write(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _keep_best(
    task: Task,
    parameters: list[torch.Tensor],
    kept: list[tuple[float, list[torch.Tensor]]],
    progress: Progress,
    team: Team,
) -> None:
    best, weights = kept[0]
    if len(kept) > 1:
        mean = [torch.stack(same).mean(0) for same in zip(*(values for _, values in kept), strict=True)]
        _write(parameters, mean)
        score = team.agree(judge(task))
        if score > best:
            progress.scores.append((progress.step, score))
            return
    _write(parameters, weights)
