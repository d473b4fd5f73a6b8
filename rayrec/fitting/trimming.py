"""A text encoder with fewer layers, taught to map queries where the whole one does.

Only queries are learned: they are short, and a shop's words are known, so few layers do. Items keep the vectors of
the whole encoder. The student starts as the teacher without the layers that it misses least, one after the other:
of MiniLM's six, without the third the cosine is .947, without the fifth .870. Its embeddings stay.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from rayrec.config import TrimConfig
from rayrec.encoders.text import TextModel, load_tokenizer, load_torch, write_beside
from rayrec.errors import SchemaError
from rayrec.fitting.losses import imitation
from rayrec.fitting.pairs import Pairs
from rayrec.fitting.text import encode, held_out

JUDGES = 400
SAMPLE = 128


class TrimTask:
    """One worker's part. space: that of the items' vectors; items: CATALOG, whose words are what is asked."""

    def __init__(
        self, config: TrimConfig, space: str, items: pa.Table, events: pa.Table | None = None, *, rank: int = 0
    ):
        self._config, self._space, self._rank = config, space, rank
        self._model = TextModel.of(config.encoder)
        self._pairs = Pairs(items, events)
        self._draws = self._pairs.among(np.arange(items.num_rows))
        self._titles = items.column("title").to_pylist()
        self._tokenizer = load_tokenizer(self._model.directory, min(config.max_tokens, self._model.max_tokens))
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(config.training.seed)
        self._teacher = load_torch(self._model).to(self._device).requires_grad_(False)
        self.module: nn.Module = self._start()
        rng = np.random.default_rng([config.training.seed, 1])
        self.judges = [q for q in dict.fromkeys(self._query(rng) for _ in range(40 * JUDGES)) if self._held(q)][:JUDGES]
        if len(self.judges) < 10:
            raise SchemaError(f"{len(self.judges)} queries could be held out, at least 10 are needed; raise held_out")
        with torch.no_grad():
            self._wanted = self._encode(self._teacher, self.judges)
        self.cosine = np.empty(0)
        """Of each judging query to the teacher's, at the last evaluation."""

    def _start(self) -> nn.Module:
        """The teacher without the layers whose absence moves a sample of queries least."""
        rng = np.random.default_rng([self._config.training.seed, 2])
        queries = [q for q in (self._query(rng) for _ in range(4 * SAMPLE)) if q and not self._held(q)][:SAMPLE]
        whole = self._teacher.backbone.config.num_hidden_layers
        check_layers(self._config.layers, whole)
        kept = list(range(whole))
        with torch.no_grad():
            wanted = self._encode(self._teacher, queries)
            while len(kept) > self._config.layers:
                without = [[layer for layer in kept if layer != left_out] for left_out in kept]
                near = [
                    float((self._encode(trimmed(self._teacher, layers), queries) * wanted).sum(1).mean())
                    for layers in without
                ]
                kept = without[int(np.argmax(near))]
        return trimmed(self._teacher, kept)

    def groups(self, rate: float) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.module.parameters() if p.requires_grad], "lr": rate}]

    def _query(self, rng: np.random.Generator) -> str:
        """A mined query, or a run of words of a title, for shoppers' words are many."""
        if rng.random() < 0.5:
            return self._draws.draw(rng).query
        words = self._titles[int(rng.integers(len(self._titles)))].split()
        first = int(rng.integers(len(words))) if words else 0
        return " ".join(words[first : first + 1 + int(rng.integers(4))]).lower()

    def _held(self, query: str) -> bool:
        return held_out(query, self._config.held_out)

    def loss(self, step: int) -> torch.Tensor:
        rng = np.random.default_rng([self._config.training.seed, step, self._rank])
        queries: list[str] = []
        while len(queries) < self._config.training.batch:
            query = self._query(rng)
            if query and not self._held(query):
                queries.append(query)
        with torch.no_grad():
            wanted = self._encode(self._teacher, queries)
        return imitation(self._encode(self.module, queries), wanted)

    def _encode(self, module: nn.Module, queries: list[str]) -> torch.Tensor:
        return encode(module, self._tokenizer, [self._model.prefixes["query"] + q for q in queries], self._device)

    def evaluate(self) -> float:
        """The mean cosine of held-out queries to the teacher's."""
        self.cosine = (self._encode(self.module, self.judges) * self._wanted).sum(1).cpu().numpy()
        return float(self.cosine.mean())

    def wanted(self) -> np.ndarray:
        """float32 (Q, D) of the judging queries, by the teacher."""
        return self._wanted.cpu().numpy()

    def vectors(self) -> np.ndarray:
        """The same by the student as it is now."""
        with torch.no_grad():
            return self._encode(self.module.eval(), self.judges).cpu().numpy()

    def answers(self) -> list[set[int]]:
        """The rows that answer each judging query."""
        return [self._pairs.answering(query) for query in self.judges]

    def save(self, directory: Path) -> Path:
        """Write the student in the transformers layout; its own directory."""
        student = directory / f"{self._space.rpartition('-')[0]}-{self._config.layers}-layers"
        self.module.backbone.save_pretrained(student)
        write_beside(self._model, student, space=self._space, how=f"{self._config.layers}l")
        return student


def check_layers(layers: int, whole: int) -> None:
    if not 1 <= layers < whole:
        raise SchemaError(f"layers: expected 1 to {whole - 1} of the model's {whole}, got {layers}")


def trimmed(module: Any, kept: Sequence[int]) -> Any:
    """A copy of a loaded text model with some of its layers, in their order; embeddings do not learn."""
    student = copy.deepcopy(module)
    config = student.backbone.config
    whole = config.num_hidden_layers
    stacks = [
        (parent, name, child)
        for parent in student.backbone.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == whole
    ]
    if len(stacks) != 1:
        raise SchemaError(f"{config.model_type}: {len(stacks)} stacks of {whole} layers; it cannot be trimmed")
    parent, name, stack = stacks[0]
    setattr(parent, name, nn.ModuleList([stack[i] for i in kept]))
    config.num_hidden_layers = len(kept)
    student.requires_grad_(True)
    for embedding in student.backbone.modules():
        if isinstance(embedding, nn.Embedding):
            embedding.requires_grad_(False)
    for name, parameter in student.named_parameters():
        if ".pooler." in name:  # its output is not used
            parameter.requires_grad_(False)
    return student
