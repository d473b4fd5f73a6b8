"""What an update of a trained model learns and by what it is judged: new events, and a sample of old ones beside them.

Without old ones a model that goes on learning forgets (McCloskey and Cohen, 1989); replaying some of what it learned
before is the plainest remedy, and among the best (Chaudhry et al., 2019, "On tiny episodic memories").

>>> found = Lesson.of(histories, known, old, config, replay=1.0, held_out=0.5, seed=0)        # doctest: +SKIP
>>> task = RecommenderTask(config, model, content, histories, found.valid, taught=found.taught)   # doctest: +SKIP
"""

from dataclasses import dataclass

import numpy as np

from rayrec.config import TrainConfig
from rayrec.data.held_out import HeldOut, cases_of, held_out_of_new
from rayrec.data.histories import Cases, Histories
from rayrec.fitting.recommender import windows
from rayrec.schema import EVENT_TYPES


@dataclass(frozen=True)
class Lesson:
    """Over the E rows of the table of events that `histories` are of.

    known: bool (E,), what the present model knew; old, fresh: what is held out of that, and of the rest; taught: bool
    (E,), what is foreseen in training. valid: as many old cases as new ones, for both count in the end.
    """

    histories: Histories
    known: np.ndarray
    old: HeldOut
    fresh: HeldOut
    taught: np.ndarray
    replayed: int
    valid: Cases

    @classmethod
    def of(
        cls,
        histories: Histories,
        known: np.ndarray,
        old: HeldOut,
        config: TrainConfig,
        *,
        replay: float,
        held_out: float,
        seed: int,
    ) -> "Lesson":
        """replay: old events for each new one; held_out: share of shoppers with new events that judge."""
        fresh = held_out_of_new(histories, ~known, held_out, baskets=config.split == "time")
        counts = np.zeros(len(known), bool)
        weights = np.array([config.loss.weights.get(kind, 0.0) for kind in EVENT_TYPES])
        counts[histories.sources] = (histories.rows >= 0) & (weights[histories.kinds] > 0)
        new = counts & ~known & ~fresh.held
        n = round(replay * int(new.sum()))
        again = replayed(histories, counts & known & ~old.held, config.model.length, n, seed)
        some = _some(old.valid, len(np.unique(fresh.valid[fresh.valid >= 0])), seed)
        both = HeldOut(old.held, some, old.test).joined(fresh).valid
        return cls(histories, known, old, fresh, new | again, int(again.sum()), cases_of(histories, both))

    @property
    def held(self) -> np.ndarray:
        return self.old.held | self.fresh.held

    def learned(self, *, before: bool) -> Histories:
        """What the updated model may know, or what the present one did: without what is held out."""
        allowed = ~self.held & (self.known | (not before))
        return self.histories.where(allowed[self.histories.sources])

    def valid_by_slice(self) -> list[tuple[bool, Cases]]:
        """(whether it is old, validation cases), all that there are."""
        found = [(old, cases_of(self.histories, part.valid)) for old, part in ((True, self.old), (False, self.fresh))]
        return [(old, cases) for old, cases in found if len(cases)]

    @property
    def new_test(self) -> Cases:
        return cases_of(self.histories, self.fresh.test)

    @property
    def old_test(self) -> Cases:
        return cases_of(self.histories, self.old.test)

    def lacking(self, least: int) -> str | None:
        """What there is too little of to judge by, if anything."""
        for name, numbers in (("new", self.fresh.test), ("new", self.fresh.valid), ("old", self.old.test)):
            if (cases := len(cases_of(self.histories, numbers))) < least:
                return f"{cases} {name} cases to judge by, at least {least} are needed"
        return (
            None if self.taught.any() else "nothing to learn: every new event is held out, or of a kind without weight"
        )


def replayed(histories: Histories, old: np.ndarray, length: int, n: int, seed: int) -> np.ndarray:
    """n of the events `old`, bool (E,) of histories.places, or all that can be foreseen; bool (E,).

    Whole windows are drawn, for a step costs as much whether one of a window's events is foreseen or all.
    """
    cut = windows(histories, length)
    h = np.repeat(np.arange(len(cut)), cut.lengths)
    foreseen = old[cut.sources]
    foreseen[cut.start[:-1][cut.lengths > 0]] = False  # nothing comes before the first
    at = np.flatnonzero(foreseen)
    rank = np.random.default_rng([seed, 4]).permutation(len(cut))
    chosen = at[np.argsort(rank[h[at]], kind="stable")][:n]
    again = np.zeros(len(old), bool)
    again[cut.sources[chosen]] = True
    return again


def _some(numbers: np.ndarray, n: int, seed: int) -> np.ndarray:
    """n of the cases that are numbered, the others -1."""
    cases = np.unique(numbers[numbers >= 0])
    kept = np.random.default_rng([seed, 5]).permutation(cases)[:n]
    return np.where(np.isin(numbers, kept), numbers, -1)
