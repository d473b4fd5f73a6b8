"""Losses of contrastive fitting."""

import torch
from torch.nn import functional as F


def contrastive(
    queries: torch.Tensor, items: torch.Tensor, fits: torch.Tensor, temperature: float | torch.Tensor
) -> torch.Tensor:
    """InfoNCE with in-batch and hard negatives (van den Oord et al., 2018, eq. 4), both ways.

    queries: unit (B, D); items: unit (B + H, D), row i < B is the answer of query i, the others are negatives;
    fits: bool (B, B + H), items that answer a query too, and so are no negatives of it. Item to query counts
    half: a query has one item to find, an item has many queries.
    """
    scores = queries @ items.T / temperature
    own = torch.eye(len(queries), len(items), dtype=torch.bool, device=scores.device)
    scores = scores.masked_fill(fits & ~own, -torch.inf)
    target = torch.arange(len(queries), device=scores.device)
    return (F.cross_entropy(scores, target) + 0.5 * F.cross_entropy(scores[:, : len(queries)].T, target)) / 1.5


def all_positives(
    queries: torch.Tensor, items: torch.Tensor, fits: torch.Tensor, temperature: float | torch.Tensor
) -> torch.Tensor:
    """InfoNCE against a whole catalog, for queries that many items answer (Khosla et al., NeurIPS 2020, eq. 2).

    queries: unit (B, D); items: unit (N, D); fits: bool (B, N), the items that answer each query, at least one.
    """
    shares = F.log_softmax(queries @ items.T / temperature, dim=1)
    return -((shares * fits).sum(1) / fits.sum(1)).mean()


def imitation(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """How far unit vectors (B, D) are from a teacher's: 1 - cosine, and the error of their similarities to each other.

    The second term keeps neighbourhoods, which is what a ranking is made of (Park et al., CVPR 2019, relational
    knowledge distillation).
    """
    apart = 1 - (student * teacher).sum(-1).mean()
    return apart + F.mse_loss(student @ student.T, teacher @ teacher.T)
