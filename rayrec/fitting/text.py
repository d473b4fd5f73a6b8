"""LoRA on a text encoder, and what comes of it: an adapter, and the merged model in the transformers layout.

>>> task = TextTask(config, items, vectors)  # doctest: +SKIP
>>> train(task, config.training)             # doctest: +SKIP
>>> task.save(Path("out"))                   # doctest: +SKIP
"""

import hashlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from rayrec.config import FitTextConfig
from rayrec.encoders.base import Role, by_length
from rayrec.encoders.text import TextModel, load_tokenizer, load_torch, pad, write_beside
from rayrec.errors import SchemaError
from rayrec.evaluation.metrics import ndcg
from rayrec.fitting import augment
from rayrec.fitting.losses import all_positives, contrastive
from rayrec.fitting.pairs import Pair, Pairs, words

ADAPTER = "adapter"
CANDIDATES = 50_000
JUDGED_ITEMS, JUDGED_QUERIES = 2_000, 400
SHORT = ("title", "category", "searched")
"""Sources of what reads like a query."""


class TextTask:
    """One worker's part of a fit. rank: which of the workers.

    items: CATALOG; vectors: float32 (N, D), what its items have in the index. Queries are held out by their words:
    a held-out query is never trained on, and these alone judge, by nDCG@10 over the catalog (or a sample of it).
    """

    def __init__(
        self,
        config: FitTextConfig,
        items: pa.Table,
        vectors: np.ndarray,
        events: pa.Table | None = None,
        *,
        rank: int = 0,
    ):
        self._config = config
        self._rank = rank
        self._model = TextModel.of(config.encoder)
        self._pairs = Pairs(items, events, config.sources or dict.fromkeys(SHORT, 1.0))
        self._draws = self._pairs.among(np.arange(items.num_rows))
        longest = self._model.max_tokens if config.side == "query" else min(config.max_tokens, self._model.max_tokens)
        self._tokenizer = load_tokenizer(self._model.directory, longest)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(config.training.seed)
        self.module = self._adapted().to(self._device)
        rng = np.random.default_rng([config.training.seed, 1])
        self._judges = self._held_out_queries(rng)
        self._judged = self._sample(items.num_rows, rng)
        self._vectors = torch.from_numpy(vectors).to(self._device)
        self.ndcg = np.empty(0)
        """Of each judging query, at the last evaluation."""

    # -- what is trained --------------------------------------------------------------------------

    def _adapted(self) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        config = self._config
        module = load_torch(self._model)
        linear = {name: m for name, m in module.backbone.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
        targets = [name for name in linear if _layer(name) >= config.frozen_layers]
        if not targets:
            raise SchemaError(f"frozen_layers: {config.frozen_layers} leaves no layer of {config.encoder.model} to fit")
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=2 * config.rank,
            lora_dropout=config.training.dropout,
            target_modules=targets,
            fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in linear.values()),
        )
        with warnings.catch_warnings():
            # peft asks transformers for an attribute by its old name (peft 0.21, transformers 5.24)
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            module.backbone = get_peft_model(module.backbone, lora)
        if (
            config.training.adversarial_epsilon
        ):  # the adversary moves embeddings by their gradients; they stay as they are
            for embedding in module.backbone.modules():
                if isinstance(embedding, nn.Embedding):
                    embedding.weight.requires_grad_(True)
        return module

    def groups(self, rate: float) -> list[dict[str, Any]]:
        trained = [p for name, p in self.module.named_parameters() if "lora_" in name]
        return [{"params": trained, "lr": rate}]

    # -- a step -----------------------------------------------------------------------------------

    def loss(self, step: int) -> torch.Tensor:
        rng = np.random.default_rng([self._config.training.seed, step, self._rank])
        pairs = [self._draw(rng) for _ in range(self._config.training.batch)]
        queries = self._encode([self._augmented(pair.query, rng) for pair in pairs], "query")
        return (
            self._to_catalog(pairs, queries, rng)
            if self._config.side == "query"
            else self._to_batch(pairs, queries, rng)
        )

    def _draw(self, rng: np.random.Generator) -> Pair:
        """A pair whose query is not held out."""
        for _ in range(1_000):
            pair = self._draws.draw(rng)
            if not self._held(pair.query):
                return pair
        raise SchemaError(f"held_out: {self._config.held_out} leaves no query to learn from; lower it")

    def _held(self, query: str) -> bool:
        return held_out(query, self._config.held_out)

    def _to_catalog(self, pairs: list[Pair], queries: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        n = len(self._vectors)
        rows = np.arange(n)
        if n > CANDIDATES:
            others = rng.choice(n, CANDIDATES, replace=False)
            rows = np.unique(np.concatenate([[pair.row for pair in pairs], others]))
        fits = np.zeros((len(pairs), len(rows)), bool)
        for place, pair in enumerate(pairs):
            answers = np.fromiter(self._pairs.answering(pair.query) | {pair.row}, np.int64)
            at = np.searchsorted(rows, answers).clip(max=len(rows) - 1)
            fits[place, at[rows[at] == answers]] = True
        items = self._vectors if len(rows) == n else self._vectors[torch.from_numpy(rows).to(self._device)]
        return all_positives(queries, items, torch.from_numpy(fits).to(self._device), self._config.temperature)

    def _to_batch(self, pairs: list[Pair], queries: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        hard = [self._draws.hard(pair, rng) for pair in pairs for _ in range(self._config.hard_negatives)]
        rows = [pair.row for pair in pairs] + hard
        fits = np.array([[self._pairs.answers(pair.query, row) for row in rows] for pair in pairs])
        items = self._encode([self._pairs.texts[row] for row in rows], "passage")
        return contrastive(queries, items, torch.from_numpy(fits).to(self._device), self._config.temperature)

    def _augmented(self, query: str, rng: np.random.Generator) -> str:
        config = self._config
        if config.synonyms:
            query = augment.replace_words(query, config.synonyms, config.synonym_share, rng)
        return augment.drop_words(query, config.word_dropout, rng) if config.word_dropout else query

    def _encode(self, texts: list[str], role: Role) -> torch.Tensor:
        """Unit (B, D), with gradients while training."""
        return encode(self.module, self._tokenizer, [self._model.prefixes[role] + t for t in texts], self._device)

    # -- held-out queries -------------------------------------------------------------------------

    def _held_out_queries(self, rng: np.random.Generator) -> list[tuple[str, set[int]]]:
        """(query, rows that answer it) of up to JUDGED_QUERIES held-out queries."""
        found: dict[str, set[int]] = {}
        for _ in range(round(20 * JUDGED_QUERIES / self._config.held_out)):
            query = self._draws.draw(rng).query
            if self._held(query) and query not in found:
                found[query] = self._pairs.answering(query)
                if len(found) == JUDGED_QUERIES:
                    break
        if len(found) < 10:
            raise SchemaError(f"{len(found)} queries could be held out, at least 10 are needed; raise held_out")
        return list(found.items())

    def _sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """The rows that are searched in judging: all whose vectors are there, else a few of each query's and others."""
        if self._config.side == "query" and n <= CANDIDATES:
            return np.arange(n)
        size = CANDIDATES if self._config.side == "query" else JUDGED_ITEMS
        wanted = [row for _, rows in self._judges for row in sorted(rows)[:3]]
        return np.unique(np.concatenate([wanted, rng.choice(n, min(n, size), replace=False)]).astype(np.int64))

    def evaluate(self) -> float:
        """nDCG@10 of the held-out queries."""
        rows = self._judged
        if self._config.side == "query":
            items = self._vectors[torch.from_numpy(rows).to(self._device)]
        else:
            items = self._encode([self._pairs.texts[row] for row in rows], "passage")
        queries = self._encode([query for query, _ in self._judges], "query")
        best = rows[torch.topk(queries @ items.T, min(10, len(rows)), dim=1).indices.cpu().numpy()]
        there = set(rows.tolist())
        self.ndcg = np.array(
            [
                ndcg([str(row) for row in top], {str(row): 1.0 for row in fits & there})
                for top, (_, fits) in zip(best, self._judges, strict=True)
            ]
        )
        return float(self.ndcg.mean())

    # -- the result -------------------------------------------------------------------------------

    def soften(self) -> None:
        """Keep only `share` of what was learned. A model between the pretrained and the fitted one does better on
        queries of other kinds than either (Wortsman et al., CVPR 2022)."""
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                if "lora_B" in name:  # the adapter is B A x, so a share of B is a share of it
                    parameter.mul_(self._config.share)

    def save(self, directory: Path) -> Path:
        """Write the adapter and the merged model into `directory`; the merged model's own directory, named by it."""
        self.module.backbone.save_pretrained(directory / ADAPTER)
        merged = directory / f"{self._model.space.rpartition('-')[0]}-fitted"
        self.module.backbone.merge_and_unload().save_pretrained(merged)
        write_beside(
            self._model, merged, space=self._model.space if self._config.side == "query" else None, how="query"
        )
        return merged


def encode(module: nn.Module, tokenizer: Any, texts: Sequence[str], device: str, batch: int = 32) -> torch.Tensor:
    """Unit (B, D) with gradients; in batches of like length, for padding costs as much as words."""
    encodings = tokenizer.encode_batch(list(texts))
    batches = by_length([len(e.ids) for e in encodings], batch)
    found = []
    for rows in batches:
        ids, mask = (torch.from_numpy(a).to(device) for a in pad([encodings[i] for i in rows]))
        with torch.autocast(device, torch.bfloat16, enabled=half_pays(device)):
            found.append(module(ids, mask).float())
    back = np.argsort(np.concatenate(batches))
    return torch.cat(found)[torch.from_numpy(back).to(device)]


def held_out(query: str, share: float) -> bool:
    """Whether a query is of the share that judges: by its words, so that it is so in every run."""
    digest = hashlib.blake2b(" ".join(words(query)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") < share * 2**32


def _layer(name: str) -> int:
    """The layer that a module's name says it belongs to; -1 outside of layers (a pooler, a head)."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else -1


def half_pays(device: str) -> bool:
    """Whether bf16 is faster than fp32: on GPUs, and on CPUs with instructions for it (1.8 times there)."""
    return device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
