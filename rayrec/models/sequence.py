"""What a shopper wants next, from what they did: a causal transformer over item and query vectors.

The SASRec family (Kang and McAuley, ICDM 2018): position t sees events up to t, and its output is scored against
item vectors by a dot product.
"""

import torch
from torch import nn
from torch.nn import functional as F

from rayrec.config import RecommenderConfig
from rayrec.models.features import GAPS, KINDS


class Block(nn.Module):
    """Attention and a feed-forward layer, normalised before (Xiong et al., ICML 2020).

    With gates, what each adds passes a learned sigmoid of its input (LiGR; Hertel et al., 2025).
    """

    def __init__(self, config: RecommenderConfig):
        super().__init__()
        d = config.dim
        self.heads, self.dropout = config.heads, config.dropout
        self.before_attention, self.before_feed = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.widen, self.narrow = nn.Linear(d, config.feed_forward * d), nn.Linear(config.feed_forward * d, d)
        self.drop = nn.Dropout(config.dropout)
        self.gates = nn.ModuleList([nn.Linear(d, d), nn.Linear(d, d)]) if config.gates else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, length, d = x.shape
        qkv = self.qkv(self.before_attention(x)).view(b, length, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        # padding comes last, so the causal mask hides it from every real position
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        x = x + self._gate(0, x, self.drop(self.out(seen.transpose(1, 2).reshape(b, length, d))))
        fed = self.narrow(self.drop(F.gelu(self.widen(self.before_feed(x)))))
        return x + self._gate(1, x, self.drop(fed))

    def _gate(self, number: int, x: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        return added if self.gates is None else torch.sigmoid(self.gates[number](x)) * added


class SequenceModel(nn.Module):
    """(B, L, dim) vectors of events -> (B, L, dim): what the shopper wants after each."""

    def __init__(self, config: RecommenderConfig):
        super().__init__()
        self.positions = nn.Embedding(config.length, config.dim)
        self.kinds = nn.Embedding(KINDS, config.dim, padding_idx=0)
        self.gaps = nn.Embedding(GAPS, config.dim, padding_idx=0)
        nn.init.normal_(self.positions.weight, std=0.02)
        nn.init.zeros_(self.kinds.weight)
        nn.init.zeros_(self.gaps.weight)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.normal = nn.LayerNorm(config.dim)

    def forward(self, events: torch.Tensor, kinds: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
        places = torch.arange(events.shape[1], device=events.device)
        x = self.drop(events + self.positions(places) + self.kinds(kinds) + self.gaps(gaps))
        for block in self.blocks:
            x = block(x)
        return self.normal(x)
