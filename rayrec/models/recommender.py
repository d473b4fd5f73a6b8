"""Items and shoppers in one space: fusion of what an item is, and a sequence model of what a shopper did."""

from dataclasses import fields

import numpy as np
import torch
from torch import nn

from rayrec.config import RecommenderConfig
from rayrec.models.features import Batch, Content, FeatureSchema
from rayrec.models.fusion import ItemFusion
from rayrec.models.sequence import SequenceModel


class Recommender(nn.Module):
    """known: bool (N,), rows that have an id of their own, because somebody touched them; query_dim: of query vectors.

    A shopper's vector (dim,) scores items by a dot product with their vectors.
    """

    known: torch.Tensor

    def __init__(self, config: RecommenderConfig, schema: FeatureSchema, known: np.ndarray, query_dim: int):
        super().__init__()
        self.config = config
        self.ids = nn.Embedding(len(known), config.dim)
        nn.init.normal_(self.ids.weight, std=0.02)
        self.register_buffer("known", torch.from_numpy(known.astype(np.float32))[:, None])
        self.fusion = ItemFusion(config, schema.text_dim, schema.image_dim, len(schema.tokens))
        self.sequence = SequenceModel(config)
        self.asked = nn.Linear(query_dim, config.dim)

    def table(self, content: Content, rows: torch.Tensor | None = None) -> torch.Tensor:
        """(M, dim) of the given rows, or of all items; content: of all."""
        if rows is None:
            return self.fusion(self.ids.weight, self.known, content)
        return self.fusion(self.ids(rows), self.known[rows], content.take(rows))

    def shoppers(self, batch: "Tensors", table: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """(B, L, dim): what is wanted after each event. batch.rows are places in `table`; queries: (Q, query_dim)."""
        events = table[batch.rows.clamp(min=0)] * (batch.rows >= 0).unsqueeze(2)
        searched = batch.queries >= 0
        if bool(searched.any()):
            events = events.masked_scatter(
                searched.unsqueeze(2), self.asked(queries[batch.queries[searched]]).to(events.dtype)
            )
        return self.sequence(events, batch.kinds, batch.gaps)


class Tensors:
    """A Batch as tensors."""

    def __init__(self, batch: Batch, device: str):
        def moved(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(device)

        self.rows, self.queries = moved(batch.rows), moved(batch.queries)
        self.kinds, self.gaps, self.lengths = moved(batch.kinds), moved(batch.gaps), moved(batch.lengths)


def to_tensors(content: Content, device: str) -> Content:
    return Content(*(torch.from_numpy(getattr(content, field.name)).to(device) for field in fields(content)))
