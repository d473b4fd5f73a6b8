"""What stands between looking and answering: what was found and scored, and what is still to be looked for."""

from dataclasses import dataclass

import numpy as np

from rayrec.ranking import scoring
from rayrec.retrieval.base import Candidates


@dataclass(frozen=True)
class Scored:
    """M(q), and what each part of the score gives each candidate; of the query alone, so it can be kept."""

    candidates: Candidates
    parts: scoring.Parts


@dataclass(frozen=True)
class Near:
    """Ask for the rows of the k items nearest to vector float32 (D,), among allowed bool (N,)."""

    vector: np.ndarray
    k: int
    allowed: np.ndarray | None


@dataclass(frozen=True)
class SimilarPlan:
    """Who is asked about, and what to look for; `Scorer.similar` continues with what was found."""

    row: int
    allowed: np.ndarray | None
    near: Near


@dataclass(frozen=True)
class RecommendPlan:
    """A shopper's history and taste, and what to look for; near is None for a stranger.

    learned: what a trained model expects of them, None without one.
    """

    history: np.ndarray
    taste: scoring.Taste | None
    allowed: np.ndarray | None
    near: Near | None
    learned: scoring.Learned | None = None
