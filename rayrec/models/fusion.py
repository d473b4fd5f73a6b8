"""One vector per item from its parts: who it is (id), text, image, attributes, price.

An item that nobody has touched has no id: its vector is made of the other parts, and id dropout sees to it that
they can stand alone. So new items need no training.
"""

import torch
from torch import nn

from rayrec.config import RecommenderConfig
from rayrec.models.features import PRICE_FEATURES, Content

PARTS = ("id", "text", "image", "attributes", "price")


class ItemFusion(nn.Module):
    """f(id, text, image, attributes, price) by a named strategy, float32 (M, dim).

    weighted: alpha id + beta (the rest), both tuned on validation data; concat: a linear map of all parts side by
    side; gated: each part through a gate that sees all; attention: a softmax over the parts that are there.
    """

    def __init__(self, config: RecommenderConfig, text_dim: int, image_dim: int, tokens: int):
        super().__init__()
        d = config.dim
        self.strategy = config.strategy
        self.id_dropout = config.id_dropout
        self.names = tuple(
            part
            for part, there in zip(PARTS, (True, text_dim, image_dim, tokens, config.price), strict=True)
            if there and (part == "id" or config.strategy != "id")
        )
        maps: dict[str, nn.Module] = {}
        if "text" in self.names:
            maps["text"] = nn.Sequential(nn.Dropout(config.content_dropout), nn.Linear(text_dim, d))
        if "image" in self.names:
            maps["image"] = nn.Sequential(nn.Dropout(config.content_dropout), nn.Linear(image_dim, d))
        if "attributes" in self.names:
            maps["attributes"] = nn.Embedding(tokens + 1, d, padding_idx=0)
            nn.init.normal_(maps["attributes"].weight[1:], std=0.02)
        if "price" in self.names:
            maps["price"] = nn.Linear(PRICE_FEATURES, d)
            nn.init.normal_(maps["price"].weight, std=0.01)  # else it drowns the others at first
            nn.init.zeros_(maps["price"].bias)
        self.maps = nn.ModuleDict(maps)
        self.register_buffer("alpha", torch.ones(()))
        self.register_buffer("beta", torch.ones(()))
        self.register_buffer("newcomers", torch.ones(()))
        parts = len(self.names)
        if self.strategy == "concat":
            self.mix = nn.Linear(parts * d, d, bias=False)
            with torch.no_grad():  # starts as the sum of the parts
                self.mix.weight.copy_(torch.eye(d).repeat(1, parts))
        elif self.strategy == "gated":
            self.mix = nn.Linear(parts * d, parts * d)
            nn.init.zeros_(self.mix.weight)
            nn.init.constant_(self.mix.bias, 2.0)
        elif self.strategy == "attention":
            self.mix = nn.Linear(d, 1, bias=False)
            nn.init.zeros_(self.mix.weight)

    def forward(self, ids: torch.Tensor, known: torch.Tensor, content: Content) -> torch.Tensor:
        """ids: (M, dim) of the id table; known: (M, 1), 0 where an item has no id of its own.

        Without an id a vector is short, and what is short is never first: `newcomers` lengthens those, once trained.
        """
        if self.training:
            return self._fuse(ids, known, content)
        return self._fuse(ids, known, content) * (known + (1 - known) * self.newcomers)

    def _fuse(self, ids: torch.Tensor, known: torch.Tensor, content: Content) -> torch.Tensor:
        if self.training and self.id_dropout and len(self.names) > 1:
            known = known * (torch.rand_like(known) >= self.id_dropout)
        parts, there = [ids * known], [known]
        for name in self.names[1:]:
            part, present = self._part(name, content, known)
            parts.append(part * present)
            there.append(present)
        if self.strategy in ("weighted", "id"):
            return self.alpha * parts[0] + self.beta * sum(parts[1:], torch.zeros_like(parts[0]))
        side_by_side = torch.cat(parts, dim=1)
        if self.strategy == "concat":
            return self.mix(side_by_side)
        stacked = torch.stack(parts, dim=1)
        if self.strategy == "gated":
            return (torch.sigmoid(self.mix(side_by_side)).view(stacked.shape) * stacked).sum(1)
        present = torch.cat(there, dim=1)
        shares = torch.softmax(self.mix(torch.tanh(stacked)).squeeze(2) + (present - 1) * 1e4, dim=1)
        return len(self.names) * (shares.unsqueeze(2) * stacked).sum(1)

    def _part(self, name: str, content: Content, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(vectors (M, dim), whether the item has this part (M, 1))."""
        if name == "text":
            return self.maps["text"](content.text), torch.ones_like(known)
        if name == "image":
            return self.maps["image"](content.image), content.has_image
        if name == "price":
            return self.maps["price"](content.price), content.price[:, -1:]
        count = (content.attributes > 0).sum(1, keepdim=True).to(known.dtype)
        total = self.maps["attributes"](content.attributes).sum(1)
        return total / count.clamp(min=1), (count > 0).to(known.dtype)
