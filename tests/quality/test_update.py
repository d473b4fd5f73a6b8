"""A model that learns what came since is better on it and forgets nothing; one that learns that alone is refused."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from rayrec.config import RecommenderConfig, TrainConfig, TrainingConfig
from rayrec.data.held_out import HeldOut, cases_of
from rayrec.data.histories import DAY_US, Histories, leave_one_out
from rayrec.evaluation.report import UpdateVerdict, gate_update
from rayrec.fitting.recommender import RecommenderTask
from rayrec.fitting.training import train
from rayrec.fitting.updates import Lesson
from rayrec.models.features import FeatureSchema
from rayrec.models.recommender import Recommender
from rayrec.schema import ITEMS

N, OLD, DIM, PEOPLE = 60, 40, 8, 300
METRIC = "ndcg@10"


def config(rate: float, epochs: int, patience: int = 99) -> TrainConfig:
    return TrainConfig(
        model=RecommenderConfig(dim=16, length=10, dropout=0, content_dropout=0, id_dropout=0),
        training=TrainingConfig(
            batch=64, learning_rate=rate, warmup=0, weight_decay=0, max_gradient_norm=10, patience=patience, dropout=0
        ),
        epochs=epochs,
    )


@dataclass(frozen=True)
class Planted:
    """Old shoppers go round the old items one by one, new ones round items that nobody had touched."""

    model: Recommender
    content: object
    histories: Histories
    known: np.ndarray
    held: HeldOut


def sequences(seed: int) -> tuple[Histories, np.ndarray]:
    """(everybody's events, which of them are the old shoppers')."""
    rng = np.random.default_rng(seed)
    old = [(int(rng.integers(OLD)) + np.arange(rng.integers(5, 9))) % OLD for _ in range(PEOPLE)]
    new = [OLD + (int(rng.integers(N - OLD)) + np.arange(rng.integers(5, 9))) % (N - OLD) for _ in range(PEOPLE)]
    all_of = Histories.of_rows([*old, *new])
    places = np.arange(len(all_of.rows))
    known = places < sum(map(len, old))
    later = np.where(known, all_of.ts_us, all_of.ts_us + 30 * DAY_US)
    fields = (all_of.rows, all_of.kinds, later, all_of.baskets, all_of.queries)
    return Histories(all_of.users, all_of.start, *fields, places=places), known


@pytest.fixture(scope="module")
def planted() -> Planted:
    histories, known = sequences(0)
    before = histories.take(np.arange(PEOPLE))
    learned, valid, test = leave_one_out(before)
    held = HeldOut.of_split(len(known), before, learned, valid, test)
    records = [{"item_id": f"{i:02}", "title": f"{i}", "price_cents": 100} for i in range(N)]
    schema = FeatureSchema.fit(pa.Table.from_pylist(records, schema=ITEMS), DIM, 0, min_count=2, max_tokens=9)
    text = np.random.default_rng(1).normal(size=(N, DIM)).astype(np.float32)
    content = schema.content(pa.Table.from_pylist(records, schema=ITEMS), text, None)
    touched = np.bincount(learned.rows, minlength=N) > 0
    torch.manual_seed(0)
    task = RecommenderTask(
        config(1e-2, 12), Recommender(config(1, 1).model, schema, touched, 4), content, learned, valid
    )
    train(task, task.training())
    return Planted(task._model, content, histories, known, held)


def updated(planted: Planted, how: TrainConfig, replay: float, *, stops_by_old: bool = True) -> UpdateVerdict:
    """As the update job does, without Ray and the bundle; the gate's verdict at its default.

    stops_by_old: old cases help to choose the best epoch, as they do.
    """
    lesson = Lesson.of(planted.histories, planted.known, planted.held, how, replay=replay, held_out=0.6, seed=0)
    if not stops_by_old:
        lesson = replace(lesson, valid=cases_of(lesson.histories, lesson.fresh.valid))
    model = copy.deepcopy(planted.model)
    touched = np.bincount(lesson.learned(before=False).rows, minlength=N) > 0
    unknown = model.known[:, 0] == 0
    with torch.no_grad():
        model.ids.weight[unknown] = 0
        model.known[torch.from_numpy(touched)] = 1
    task = RecommenderTask(how, model, planted.content, lesson.histories, lesson.valid, taught=lesson.taught)
    present = RecommenderTask(how, planted.model, planted.content, lesson.histories, lesson.valid, taught=lesson.taught)
    before = {name: present.judge(cases) for name, cases in (("new", lesson.new_test), ("old", lesson.old_test))}
    train(task, task.training())
    after = {name: task.judge(cases) for name, cases in (("new", lesson.new_test), ("old", lesson.old_test))}
    new, old = ((after[part].by_shopper(METRIC), before[part].by_shopper(METRIC)) for part in ("new", "old"))
    verdict = gate_update(METRIC, new, old, 0.02)
    print(verdict)
    return verdict


def test_new_items_are_learned_and_old_ones_are_not_forgotten(planted: Planted) -> None:
    verdict = updated(planted, config(5e-3, 8), replay=1.0)
    assert verdict.promoted
    assert verdict.gains[0].gain > 0.3
    assert verdict.forgetting.opponents > 0.9
    assert verdict.forgetting.lost <= 0.02


def test_without_a_replay_at_a_high_rate_it_forgets_and_is_refused(planted: Planted) -> None:
    """Its best epoch chosen by new cases alone: the gate is all that stands between it and the shop."""
    verdict = updated(planted, config(5e-2, 12), replay=0.0, stops_by_old=False)
    assert verdict.gains[0].ci95[0] > 0  # it did learn
    assert verdict.forgetting.lost > 0.1
    assert not verdict.promoted
    assert "forgets" in verdict.reason
