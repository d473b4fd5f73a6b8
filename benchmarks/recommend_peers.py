"""The peers of bench_recommend: ALS and BPR of implicit, SASRec of RecTools, popularity."""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from benchmarks.recommend_sets import Set
from rayrec.data.histories import Histories
from rayrec.evaluation.protocol import Score


@dataclass
class Trained:
    """A model, and what it took; 0 where that was not counted."""

    score: Score
    train_s: float
    events_per_s: float
    peak_mib: float
    epochs: int


def matrix(histories: Histories, n: int) -> sp.csr_matrix:
    h = np.repeat(np.arange(len(histories)), histories.lengths)
    found = sp.csr_matrix((np.ones(len(h), np.float32), (h, histories.rows)), shape=(len(histories), n))
    found.sum_duplicates()
    return found


def als(data: Set, budget_s: float) -> Trained:
    """implicit's ALS, the best of a small grid on the validation cases."""
    from implicit.als import AlternatingLeastSquares

    started = time.perf_counter()
    learned = matrix(data.learned, data.n)
    best: tuple[float, Any] = (-1.0, None)
    for factors in (64, 128):
        for regularization in (0.01, 0.1, 1.0):
            for alpha in (1.0, 10.0):
                if time.perf_counter() - started > budget_s:
                    break
                model = AlternatingLeastSquares(
                    factors=factors, regularization=regularization, alpha=alpha, iterations=15, random_state=0
                )
                with threadpool_limits(1, "blas"):  # as implicit asks for
                    model.fit(learned, show_progress=False)
                score = factor_scores(model, data.n)
                reached = data.judge(score, data.valid.sample(2_000, 0)).figures()[data.metric]
                best = max(best, (reached, score), key=lambda told: told[0])
    return Trained(best[1], round(time.perf_counter() - started, 1), 0, 0, 0)


def factor_scores(model: Any, n: int) -> Score:
    factors = np.asarray(model.item_factors)

    def score(histories: Histories) -> np.ndarray:
        users = model.recalculate_user(np.arange(len(histories)), matrix(histories, n))
        return users @ factors.T

    return score


def bpr(data: Set, budget_s: float) -> Trained:
    """implicit's BPR; a shopper is known by name."""
    from implicit.bpr import BayesianPersonalizedRanking

    started = time.perf_counter()
    learned = matrix(data.learned, data.n)
    row_of = {user: row for row, user in enumerate(data.learned.users)}
    best: tuple[float, Any] = (-1.0, None)
    for factors in (64, 128):
        for rate in (0.01, 0.05):
            if time.perf_counter() - started > budget_s:
                break
            model = BayesianPersonalizedRanking(
                factors=factors, learning_rate=rate, regularization=0.01, iterations=100, random_state=0
            )
            model.fit(learned, show_progress=False)
            users, items = np.asarray(model.user_factors), np.asarray(model.item_factors)

            def score(histories: Histories, users: np.ndarray = users, items: np.ndarray = items) -> np.ndarray:
                return users[[row_of[user] for user in histories.users]] @ items.T

            reached = data.judge(score, data.valid.sample(2_000, 0)).figures()[data.metric]
            best = max(best, (reached, score), key=lambda told: told[0])
    return Trained(best[1], round(time.perf_counter() - started, 1), 0, 0, 0)


def rectools(data: Set, python: str, budget_s: float) -> Trained:
    """RecTools' SASRec of the same size, in another interpreter, stopped at the wall clock."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        test = data.test.histories
        np.savez(
            folder / "in.npz",
            learned_start=data.learned.start,
            learned_rows=data.learned.rows,
            valid_start=data.valid.histories.start,
            valid_rows=data.valid.histories.rows,
            valid_wanted=data.valid.wanted,
            test_start=test.start,
            test_rows=test.rows,
        )
        script = Path(__file__).with_name("peer_rectools.py")
        done = subprocess.run(
            [python, str(script), str(folder), str(budget_s)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"RecTools failed: {done.stderr[-2000:]}")
        said = json.loads(done.stdout.strip().splitlines()[-1])
        top = np.load(folder / "top.npy")
    place = {user: case for case, user in enumerate(test.users)}

    def score(histories: Histories) -> np.ndarray:
        out = np.full((len(histories), data.n), -np.inf, np.float32)
        for h, user in enumerate(histories.users):
            shown = top[place[user]]
            shown = shown[shown >= 0]
            out[h, shown] = -np.arange(len(shown))
        return out

    return Trained(score, said["train_s"], said["events_per_s"], said["peak_mib"], said["epochs"])


def peers_of(data: Set, rectools_python: str | None, budget_s: float) -> dict[str, Callable[[], Trained]]:
    popularity = np.bincount(data.learned.rows, minlength=data.n).astype(np.float32)
    found: dict[str, Callable[[], Trained]] = {
        "popularity": lambda: Trained(lambda h: np.tile(popularity, (len(h), 1)), 0, 0, 0, 0),
        "als": lambda: als(data, budget_s),
        "bpr": lambda: bpr(data, budget_s),
    }
    if rectools_python:
        found["rectools_sasrec"] = lambda: rectools(data, rectools_python, budget_s)
    return found
