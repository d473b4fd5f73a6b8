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


class _Softmax(torch.autograd.Function):
    """Cross entropy of wanted items against others, without the (B, S) logits in memory.

    A few rows at a time, whose gradient is made while their logits are in the cache.
    """

    @staticmethod
    def forward(ctx, vectors, own, others, place, weight, log_q):  # type: ignore[no-untyped-def]
        to_vectors, to_own, to_others = torch.empty_like(vectors), torch.empty_like(own), torch.zeros_like(others)
        loss = vectors.new_zeros(())
        rows = max(32, _LOGITS // len(others))
        for first in range(0, len(vectors), rows):
            part = slice(first, first + rows)
            some, wanted, share = vectors[part], own[part], weight[part, None]
            logits = some @ others.T
            if log_q is not None:
                logits -= log_q
            among = torch.nonzero(place[part] >= 0).squeeze(1)
            logits[among, place[part][among]] = -torch.inf
            score = (some * wanted).sum(1, keepdim=True)
            highest = torch.maximum(logits.amax(1, keepdim=True), score)
            logits.sub_(highest).exp_()
            score = (score - highest).exp_()
            total = logits.sum(1, keepdim=True) + score
            loss -= (share * (score / total).log()).sum()
            logits.mul_(share / total)
            less = share * (score / total - 1)
            to_vectors[part] = torch.addmm(less * wanted, logits, others)
            to_own[part] = less * some
            to_others.addmm_(logits.T, some)
        ctx.save_for_backward(to_vectors, to_own, to_others)
        return loss

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return *(saved * gradient for saved in ctx.saved_tensors), None, None, None


_LOGITS = 1 << 18


def softmax(
    vectors: torch.Tensor,
    own: torch.Tensor,
    others: torch.Tensor,
    place: torch.Tensor,
    weight: torch.Tensor,
    log_q: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted sum of cross entropies of the wanted item against others (Jean et al., ACL 2015).

    vectors (B, D); own (B, D) of what is wanted; others (S, D), distinct items: all of a catalog, or a sample;
    place int64 (B,): of the wanted item among the others, where it is none of them, or -1; weight (B,). log_q (S,):
    logarithm of how often each is among the others; taken off its score, it makes the loss of a sample an estimate of
    that over all (Yi et al., RecSys 2019).
    """
    return _Softmax.apply(vectors, own, others, place, weight, log_q)


def gbce(
    vectors: torch.Tensor,
    own: torch.Tensor,
    others: torch.Tensor,
    place: torch.Tensor,
    weight: torch.Tensor,
    rate: float,
    calibration: float,
) -> torch.Tensor:
    """Generalised binary cross entropy (Petrov and Macdonald, RecSys 2023, gSASRec, eq. 13), weighted sum.

    Arguments as of `softmax`; rate: the share of items that a position is told are not wanted. calibration t in
    [0, 1]: 0 is plain binary cross entropy, 1 undoes what sampling negatives does to confidence.
    """
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    scores = vectors @ others.T
    itself = torch.nn.functional.one_hot(place + 1, len(others) + 1)[:, 1:].bool()
    others_lost = F.softplus(scores.masked_fill(itself, -torch.inf)).sum(1)
    return (weight * (others_lost - beta * F.logsigmoid((vectors * own).sum(1)))).sum()
