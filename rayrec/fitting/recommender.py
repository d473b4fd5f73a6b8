"""What the fusion model learns: after each event of a shopper, the item that comes next.

>>> task = RecommenderTask(config, model, content, learned, valid)      # doctest: +SKIP
>>> train(task, config.training)                                        # doctest: +SKIP
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from rayrec.config import TrainConfig, TrainingConfig
from rayrec.data.histories import Cases, Histories
from rayrec.errors import SchemaError
from rayrec.evaluation.protocol import Judged, Score, judge
from rayrec.fitting.losses import gbce, softmax
from rayrec.models.features import Batch, Content, collate, side_by_side
from rayrec.models.recommender import Recommender, Tensors, to_tensors
from rayrec.schema import EVENT_TYPES

FULL_UP_TO = 5_000
BETAS = (0.5, 0.75, 1.0, 1.25, 1.5)
NEWCOMERS = (1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0)
_SORTED_TOGETHER = 64


class RecommenderTask:
    """One worker's part of a run over all histories.

    content: of all N items, as arrays; queries: float32 (Q, E), vectors of learned.texts. A step's batch is the
    same whatever the number of workers, and each takes its share of it. taught: bool, of learned.places: events that
    are foreseen, the others only come before them; None: all are.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Recommender,
        content: Content,
        learned: Histories,
        valid: Cases,
        queries: np.ndarray | None = None,
        *,
        taught: np.ndarray | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        self._config, self._rank, self._world = config, rank, world
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.half = self._device != "cpu"  # bf16; products so small gain nothing by it on a CPU
        self.module: nn.Module = model.to(self._device)
        self._model = model
        self._content = to_tensors(content, self._device)
        self.judges = valid.sample(config.judges, config.training.seed)
        asked = np.zeros((1, model.asked.in_features), np.float32) if queries is None else queries
        self._queries = torch.from_numpy(asked).to(self._device)
        cut = windows(learned, config.model.length)
        self._windows = cut.take(np.flatnonzero(cut.lengths > 1))
        self._weights = np.array([config.loss.weights.get(kind, 0.0) for kind in EVENT_TYPES])
        self._taught = taught
        counting = (self._windows.rows >= 0) & (self._weights[self._windows.kinds] > 0)
        if taught is not None:
            counting &= taught[self._windows.sources]
        h = np.repeat(np.arange(len(self._windows)), self._windows.lengths)
        counting[self._windows.start[:-1]] = False  # nothing foresees the first
        useful = np.unique(h[counting])
        if config.loss.target == "next_basket":
            baskets, start = self._windows.baskets, self._windows.start
            useful = useful[baskets[start[useful]] != baskets[start[useful + 1] - 1]]
        self._windows = self._windows.take(useful)
        if not len(useful):
            what = "two baskets" if config.loss.target == "next_basket" else "two events"
            raise SchemaError(f"no shopper has {what} of a kind that counts; there is nothing to learn from")
        self._known = np.flatnonzero(model.known.cpu().numpy()[:, 0])
        touched = np.bincount(learned.rows[learned.rows >= 0], minlength=len(model.known))
        self._share = touched / touched.sum()
        kind = config.loss.kind
        self._kind = kind if kind != "auto" else "full" if len(self._known) <= FULL_UP_TO else "sampled"
        self._plans: dict[int, list[np.ndarray]] = {}
        self.steps_an_epoch = len(self._plan(0))
        self.positions = int((self._windows.lengths - 1).sum())
        """Events that an epoch foresees."""

    def training(self) -> TrainingConfig:
        """The loop's config, with epochs turned into steps."""
        config = self._config
        if config.epochs is None:
            return config.training
        steps = self.steps_an_epoch
        return config.training.model_copy(update={"steps": steps * config.epochs, "evaluate_every": steps})

    def groups(self, rate: float) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.module.parameters() if p.requires_grad], "lr": rate}]

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """Windows of each batch: about as many events, of like length, in random order."""
        if epoch not in self._plans:
            self._plans.clear()
            rng = np.random.default_rng([self._config.training.seed, epoch])
            lengths = self._windows.lengths - 1
            order = rng.permutation(len(lengths))
            budget = self._config.training.batch * self._world
            near = max(1, round(_SORTED_TOGETHER * budget / max(1.0, lengths.mean())))
            batches: list[np.ndarray] = []
            for first in range(0, len(order), near):
                some = order[first : first + near]
                some = some[np.argsort(lengths[some], kind="stable")]
                ends = np.cumsum(lengths[some]) // budget
                batches += np.split(some, np.flatnonzero(np.diff(ends)) + 1)
            self._plans[epoch] = [batches[i] for i in rng.permutation(len(batches))]
        return self._plans[epoch]

    def loss(self, step: int) -> torch.Tensor:
        """Of this worker's share, so scaled that the mean over workers is that of the whole batch."""
        epoch, place = divmod(step, self.steps_an_epoch)
        plan = self._plan(epoch)
        chosen = plan[place % len(plan)]
        length = self._config.model.length
        cut = self._windows.take(chosen)
        whole = collate(cut, length + 1)
        counts = None if self._taught is None else side_by_side(cut, self._taught[cut.sources], length + 1)
        target, weight = self._wanted(step, whole, counts)
        rows, negatives, log_q = self._compared(step, target[weight > 0], whole.rows)
        place_of = np.full(len(self._share), -1)
        place_of[rows] = np.arange(len(rows))
        mine = slice(self._rank, None, self._world)
        there = weight[mine, :length] > 0
        batch = Tensors(whole.part(mine, length), self._device)
        batch.rows = torch.where(batch.rows >= 0, self._tensor(place_of)[batch.rows], -1)
        with torch.autocast(self._device, torch.bfloat16, enabled=self.half):
            table = self._model.table(self._content, self._tensor(rows))
            expected = self._model.shoppers(batch, table, self._queries)
        table, vectors = table.float(), expected[self._tensor(there)].float()
        wanted = self._tensor(place_of[target[mine, :length][there]])
        weights = self._tensor(weight[mine, :length][there].astype(np.float32))
        total = float(weight.sum())
        scale = self._world / total if total else 0.0  # a next basket of searches alone
        own, others = table[wanted], table[self._tensor(place_of[negatives])]
        among = np.full(len(place_of), -1)
        among[negatives] = np.arange(len(negatives))
        place = self._tensor(among[target[mine, :length][there]])
        if self._kind == "gbce":
            rate = min(1.0, len(negatives) / max(1, len(self._known) - 1))
            return scale * gbce(vectors, own, others, place, weights, rate, self._config.loss.calibration)
        return scale * softmax(vectors, own, others, place, weights, log_q)

    def _wanted(self, step: int, batch: Batch, counts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if self._config.loss.target == "next_item":
            return next_items(batch.rows, batch.kinds, self._weights, counts)
        rng = np.random.default_rng([self._config.training.seed, step, 2])
        return next_basket_items(batch.rows, batch.kinds, batch.baskets, self._weights, rng, counts)

    def _compared(
        self, step: int, wanted: np.ndarray, seen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, torch.Tensor | None]:
        """(rows whose vectors a step needs, those that are negatives, log of how likely each was to be one)."""
        if self._kind == "full":
            return self._known, self._known, None
        config = self._config.loss
        rng = np.random.default_rng([self._config.training.seed, step, 1])
        negatives = self._known[rng.integers(0, len(self._known), config.negatives)]
        if config.of_batch:
            negatives = np.concatenate([wanted, negatives])
        negatives = np.unique(negatives)
        log_q = None
        if config.log_q:
            never = np.full(len(negatives), (1 - 1 / len(self._known)) ** config.negatives)
            if config.of_batch:
                never *= (1 - self._share[negatives]) ** len(wanted)
            log_q = self._tensor(np.log(1 - never).astype(np.float32))
        return np.unique(np.concatenate([seen[seen >= 0], negatives])), negatives, log_q

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)

    def evaluate(self) -> float:
        return self.judge(self.judges).figures()[self._config.metric]

    def judge(self, cases: Cases) -> Judged:
        """How the module does now, over the whole catalog."""
        return judge(cases, self.scorer(), n_items=len(self._share), mask_seen=self._config.mask_seen)

    @torch.no_grad()
    def scorer(self) -> Score:
        """Scores of all items by the module as it is now."""
        self.module.eval()
        table = self._model.table(self._content)

        @torch.no_grad()
        def score(histories: Histories) -> np.ndarray:
            if not histories.lengths.any():
                return np.zeros((len(histories), len(table)), np.float32)
            batch = Tensors(collate(histories, self._config.model.length), self._device)
            seen = self._model.shoppers(batch, table, self._queries)
            last = seen[torch.arange(len(seen), device=self._device), (batch.lengths - 1).clamp(min=0)]
            return (last @ table.T).cpu().numpy()

        return score

    def tune(self) -> None:
        """What the judging cases say best: beta of the strategy `weighted`, and how long newcomers' vectors are."""
        fusion = self._model.fusion
        if len(fusion.names) < 2:
            return
        if fusion.strategy == "weighted":
            reached = {beta: self._with(fusion.beta, beta, self.judges) for beta in BETAS}
            fusion.beta.fill_(max(BETAS, key=lambda beta: (reached[beta], -abs(beta - 1))))
        self._tune_newcomers(fusion.newcomers)

    def _tune_newcomers(self, newcomers: torch.Tensor) -> None:
        """The longest that costs others no more than `newcomer_cost`, when a tenth of the items are taken for new."""
        rng = np.random.default_rng([self._config.training.seed, 3])
        pretended = rng.permutation(self._known)[: len(self._known) // 10]
        of_case = np.repeat(np.arange(len(self.judges)), np.diff(self.judges.wanted_start))
        others = np.setdiff1d(np.arange(len(self.judges)), of_case[np.isin(self.judges.wanted, pretended)])
        cases = self.judges.take(others)
        if not len(cases):
            return
        known = self._model.known
        known[pretended] = 0
        least = (1 - self._config.model.newcomer_cost) * self._with(newcomers, 1.0, cases)
        allowed = [length for length in NEWCOMERS if self._with(newcomers, length, cases) >= least]
        known[pretended] = 1
        newcomers.fill_(max(allowed, default=1.0))

    def _with(self, setting: torch.Tensor, value: float, cases: Cases) -> float:
        setting.fill_(value)
        return self.judge(cases).figures()[self._config.metric]


def windows(histories: Histories, length: int) -> Histories:
    """Histories cut into runs of at most length + 1 events, from the end; the last of one is the first of the next."""
    pieces = np.maximum(1, -(-(histories.lengths - 1) // length))
    of = np.repeat(np.arange(len(histories)), pieces)
    from_end = np.concatenate([np.arange(n)[::-1] for n in pieces]) if len(pieces) else np.empty(0, np.int64)
    end = histories.start[of + 1] - from_end * length
    first = np.maximum(histories.start[of], end - length - 1)
    return histories.window(of, first, np.maximum(first, end))


def next_items(
    rows: np.ndarray, kinds: np.ndarray, weights: np.ndarray, taught: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(the row of the next item after each event, how much it counts); -1 and 0 where there is none.

    rows, kinds int64 (B, L) of a Batch; weights float (kinds,) of EVENT_TYPES; taught bool (B, L): what counts at all.
    """
    worth = _worth(kinds, weights, taught)
    target, weight = np.full(rows.shape, -1), np.zeros(rows.shape)
    following, counts = np.full(len(rows), -1), np.zeros(len(rows))
    for place in range(rows.shape[1] - 1, -1, -1):
        target[:, place], weight[:, place] = following, counts
        there = rows[:, place] >= 0
        following = np.where(there, rows[:, place], following)
        counts = np.where(there, worth[:, place], counts)
    weight[kinds == 0] = 0
    return target, weight


def next_basket_items(
    rows: np.ndarray,
    kinds: np.ndarray,
    baskets: np.ndarray,
    weights: np.ndarray,
    rng: np.random.Generator,
    taught: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As `next_items`, but of each event a random item of the shopper's next basket: what they come back for."""
    people, length = rows.shape
    start, end = np.zeros(people, np.int64), np.zeros(people, np.int64)  # of the basket after the present one
    own_start, own_end = np.full(people, length), np.full(people, length)
    target, weight = np.full(rows.shape, -1), np.zeros(rows.shape)
    draws = rng.random(rows.shape)
    worth = _worth(kinds, weights, taught)
    everyone = np.arange(people)
    for place in range(length - 1, -1, -1):
        there = rows[:, place] >= 0
        inside = (
            there & (own_start < length) & (baskets[:, place] == baskets[everyone, np.minimum(own_start, length - 1)])
        )
        opens = there & ~inside
        start, end = np.where(opens, own_start, start), np.where(opens, own_end, end)
        own_end = np.where(opens, place + 1, own_end)
        own_start = np.where(there, place, own_start)
        chosen = np.minimum(start + (draws[:, place] * (end - start)).astype(np.int64), length - 1)
        found = (end > start) & (kinds[:, place] > 0) & (rows[everyone, chosen] >= 0)
        target[:, place] = np.where(found, rows[everyone, chosen], -1)
        weight[:, place] = np.where(found, worth[everyone, chosen], 0.0)
    return target, weight


def _worth(kinds: np.ndarray, weights: np.ndarray, taught: np.ndarray | None) -> np.ndarray:
    """How much it counts to foresee each event, float (B, L)."""
    worth = weights[np.maximum(kinds - 1, 0)]
    return worth if taught is None else worth * taught
