"""Losses of fitting: contrastive ones of encoders, and those of what a shopper wants next."""

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


class _FullSoftmax(torch.autograd.Function):
    """Cross entropy over a whole table without its (B, N) logits in memory.

    A few rows at a time, whose gradient is made while their logits are in the cache.
    """

    @staticmethod
    def forward(ctx, vectors, table, target, weight):  # type: ignore[no-untyped-def]
        to_vectors, to_table = torch.empty_like(vectors), torch.zeros_like(table)
        loss = vectors.new_zeros(())
        rows = max(32, _LOGITS // len(table))
        for first in range(0, len(vectors), rows):
            part = slice(first, first + rows)
            some, wanted, share = vectors[part], target[part, None], weight[part, None]
            logits = some @ table.T
            highest = logits.amax(1, keepdim=True)
            own = logits.gather(1, wanted) - highest
            total = logits.sub_(highest).exp_().sum(1, keepdim=True)
            loss += (share * (total.log() - own)).sum()
            logits.mul_(share / total).scatter_add_(1, wanted, -share)
            to_vectors[part] = logits @ table
            to_table.addmm_(logits.T, some)
        ctx.save_for_backward(to_vectors, to_table)
        return loss

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        to_vectors, to_table = ctx.saved_tensors
        return to_vectors * gradient, to_table * gradient, None, None


_LOGITS = 1 << 21


def full_softmax(
    vectors: torch.Tensor, table: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Weighted sum of cross entropies over all items. vectors (B, D), table (N, D), target int64 (B,), weight (B,)."""
    return _FullSoftmax.apply(vectors, table, target, weight)


def sampled_softmax(
    vectors: torch.Tensor,
    table: torch.Tensor,
    target: torch.Tensor,
    negatives: torch.Tensor,
    weight: torch.Tensor,
    log_q: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted sum of cross entropies of the wanted item against some others (Jean et al., ACL 2015).

    negatives: int64 (S,) places in the table; one that is wanted at a position is none there. log_q (S,): logarithm
    of how often each is expected among the negatives; taken off its score, it makes the loss an estimate of the full
    softmax (Yi et al., RecSys 2019).
    """
    scores = vectors @ table[negatives].T
    if log_q is not None:
        scores = scores - log_q
    scores = scores.masked_fill(negatives[None] == target[:, None], -torch.inf)
    own = (vectors * table[target]).sum(1)
    total = torch.logaddexp(own, scores.logsumexp(1))
    return (weight * (total - own)).sum()


def gbce(
    vectors: torch.Tensor,
    table: torch.Tensor,
    target: torch.Tensor,
    negatives: torch.Tensor,
    weight: torch.Tensor,
    rate: float,
    calibration: float,
) -> torch.Tensor:
    """Generalised binary cross entropy (Petrov and Macdonald, RecSys 2023, gSASRec, eq. 13), weighted sum.

    rate: the share of items that a position is told are not wanted. calibration t in [0, 1]: 0 is plain binary cross
    entropy, 1 undoes what sampling negatives does to confidence.
    """
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    own = (vectors * table[target]).sum(1)
    scores = (vectors @ table[negatives].T).masked_fill(negatives[None] == target[:, None], -torch.inf)
    return (weight * (F.softplus(scores).sum(1) - beta * F.logsigmoid(own))).sum()
