"""Stand-ins that cost nothing: an encoder of hashed words, a small shop, its shoppers, and an engine around them."""

import hashlib
import io
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.config import FusionWeights
from rayrec.data import catalog
from rayrec.encoders.base import Encoder, EncoderId, Role
from rayrec.encoders.image import ImageEncoder, Preprocess
from rayrec.engine import Engine
from rayrec.retrieval.behavior import BehaviorIndex
from rayrec.retrieval.shards import Shards, attribute_words, build_shard, shard_name, shard_rows
from rayrec.schema import EVENTS, ITEMS
from rayrec.workspace import Workspace

DAY_US = 86_400_000_000
NOW_US = 1_700_000_000_000_000

BRANDS = ["Acme", "Borealis", "Cobalt", "Dahlia"]
COLORS = ["red", "green", "blue"]
CATEGORIES = [
    ["Grocery", "Snacks", "Chips"],
    ["Grocery", "Snacks", "Nuts"],
    ["Grocery", "Frozen"],
    ["Electronics", "Cables"],
    ["Electronics", "Audio", "Headphones"],
]
NOUNS = {
    "Chips": ["salted chips", "paprika crisps"],
    "Nuts": ["roasted nuts", "cashew mix"],
    "Frozen": ["frozen pizza", "frozen berries"],
    "Cables": ["usb cable", "hdmi cable"],
    "Headphones": ["wireless headphones", "studio headphones"],
}
SEEN = {"red": "pizza", "green": "cable", "blue": "nuts"}
"""what the fake image encoder sees in a picture of one colour"""
ADJECTIVES = ["small", "large", "organic", "classic", "compact"]


class FakeEncoder:
    """A bag of words: each word has a fixed random direction, a text is the unit sum of its words'."""

    def __init__(self, dim: int = 48):
        self.id = EncoderId("fake", "numpy")
        self.dim = dim

    def encode(self, texts: Sequence[str], role: Role = "passage") -> np.ndarray:
        vectors = np.array([self._sum(text) for text in texts], np.float32).reshape(len(texts), self.dim)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def _sum(self, text: str) -> np.ndarray:
        words = text.lower().replace(".", " ").split()
        return np.sum([_direction(word, self.dim) for word in words] or [np.zeros(self.dim)], axis=0)


def _direction(word: str, dim: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).normal(size=dim)


class BrokenEncoder(FakeEncoder):
    """Fails while `broken`."""

    broken = True

    def encode(self, texts: Sequence[str], role: Role = "passage") -> np.ndarray:
        if self.broken:
            raise RuntimeError("out of memory")
        return super().encode(texts)


class FakeImageEncoder:
    """Sees of a picture what colour it is most of, and in that a thing; its vector is that of the word."""

    def __init__(self, dim: int = 48):
        self.id = EncoderId("fake", "photos-numpy")
        self.dim = dim
        self.preprocess = Preprocess(16, (16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def encode(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        means = [self.preprocess.pixels(picture).reshape(-1, 3).mean(0) for picture in pictures]
        return FakeEncoder(self.dim).encode([SEEN[COLORS[int(np.argmax(mean))]] for mean in means])


class BrokenImageEncoder(FakeImageEncoder):
    """Fails while `broken`."""

    broken = True

    def encode(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        if self.broken:
            raise RuntimeError("out of memory")
        return super().encode(pictures)


def make_photo(color: str, size: tuple[int, int] = (60, 40), form: str = "PNG") -> bytes:
    """A picture file, of one colour all over."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, form)
    return file.getvalue()


def make_items(records: Iterable[dict[str, Any]]) -> pa.Table:
    """CATALOG of records that name only what matters to a test; item_id and title default to each other."""
    rows = [{"title": r.get("item_id"), "item_id": r.get("title"), **r} for r in records]
    return catalog.seal(pa.Table.from_pylist(rows, schema=ITEMS))


def make_catalog(n: int = 240, seed: int = 0) -> pa.Table:
    """CATALOG of a small shop; a few items lack brand, category, price, attributes, availability or date."""
    rng = np.random.default_rng(seed)

    def maybe(value: Any, share: float = 0.1) -> Any:
        return None if rng.random() < share else value

    records = []
    for i in range(n):
        category = CATEGORIES[rng.integers(len(CATEGORIES))]
        brand = BRANDS[rng.integers(len(BRANDS))]
        color = COLORS[rng.integers(len(COLORS))]
        depth = int(rng.integers(2, len(category) + 1))
        records.append(
            {
                "item_id": f"i{i:04d}",
                "title": " ".join([brand, rng.choice(ADJECTIVES), rng.choice(NOUNS[category[-1]])]),
                "description": maybe(f"A {rng.choice(ADJECTIVES)} choice", 0.5),
                "brand": maybe(brand),
                "category": maybe(category[:depth]),
                "price_cents": maybe(int(rng.integers(1, 40)) * 50),
                "attributes": maybe([("color", color), ("size", str(rng.integers(1, 4)))]),
                "available": maybe(bool(rng.random() < 0.85)),
                "updated_us": maybe(NOW_US - int(rng.integers(0, 30)) * DAY_US),
            }
        )
    return make_items(records)


def make_events(records: Iterable[dict[str, Any]]) -> pa.Table:
    """EVENTS of records that name only what matters; by default purchases at NOW_US, in the order given."""
    rows = [
        {"event_id": f"e{i:06d}", "type": "purchase", "ts_us": NOW_US, **record} for i, record in enumerate(records)
    ]
    return pa.Table.from_pylist(rows, schema=EVENTS)


def make_shoppers(items: pa.Table, seed: int = 0, baskets: int = 400) -> tuple[pa.Table, dict[str, str]]:
    """(EVENTS, companions): baskets of popular items, into which each key of companions brings its value.

    Companions are available, both ways, and of the less popular half.
    """
    rng = np.random.default_rng(seed)
    ids = items.filter(items.column("available")).column("item_id").to_pylist()
    rng.shuffle(ids)
    half = len(ids) // 2
    chance = 1.0 / np.arange(1, half + 1)
    pairs = list(zip(ids[half : half + 20 : 2], ids[half + 1 : half + 20 : 2], strict=True))
    records = []
    for basket in range(baskets):
        bought = list(rng.choice(ids[:half], 3, replace=False, p=chance / chance.sum()))
        if rng.random() < 0.5:
            bought += pairs[rng.integers(len(pairs))]
        user, ts_us = f"u{rng.integers(60):02d}", NOW_US - (baskets - basket) * DAY_US // 8
        records += [{"user_id": user, "session_id": f"s{basket}", "item_id": i, "ts_us": ts_us} for i in bought]
    both = [*pairs, *((b, a) for a, b in pairs)]
    return make_events(records), dict(both)


def build_engine(
    directory: Path,
    items: pa.Table,
    events: pa.Table | None = None,
    *,
    shards: int = 1,
    dense: str = "flat",
    encoder: Encoder | None = None,
    image_encoder: ImageEncoder | None = None,
) -> Engine:
    """An engine on an index version written to `directory`, as the index job writes one, but in this process."""
    encoder = encoder or FakeEncoder()
    texts = catalog.item_texts(items)
    vectors = FakeEncoder(encoder.dim).encode(texts)
    words = attribute_words(items.column("attributes"))
    for shard in range(shards):
        mine = shard_rows(items.num_rows, shard, shards)
        build_shard(
            directory / shard_name(shard),
            vectors[mine],
            [texts[i] for i in mine],
            [words[i] for i in mine],
            dense=dense,
            language="english",
        )
    ids = items.column("item_id").combine_chunks()
    BehaviorIndex.build(events if events is not None else EVENTS.empty_table(), ids, 90.0).save(directory / "behavior")
    pq.write_table(items.select(ITEMS.names), directory / "items.parquet")
    loaded = Shards.load(directory, shards)
    return Engine(loaded, encoder, index="v1", weights=FusionWeights(), image_encoder=image_encoder)


def make_tiny_model(directory: Path, kind: str, seed: int = 0) -> Path:
    """A random `bert` or `gpt2` of 32 dimensions and 64 positions, in the transformers layout."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    words = ["usb", "c", "cable", "frozen", "pizza", "thin", "crust", "with", "four", "cheeses", "red", "blue", "shoe"]
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind == "bert":
        marks = [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        model = BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes))
    else:
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 2, "eos_token_id": 3}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(vocabulary), **sizes))
    model.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def publish_index(ws: Workspace, items: pa.Table, events: pa.Table, *, shards: int = 1, images: bool = False) -> str:
    """A published version like the index job's, of the fake encoders' space, built in this process. Its name."""
    with ws.stage("indexes") as staged:
        with tempfile.TemporaryDirectory() as local:
            build_engine(Path(local), items, events, shards=shards)
            staged.upload(Path(local), "")
        encoder = {
            "space": FakeEncoder().id.space,
            "id": str(FakeEncoder().id),
            "query_id": str(FakeEncoder().id),
            "export": None,
            "dim": FakeEncoder().dim,
            "images": {"export": "fake", "id": str(FakeImageEncoder().id), "weight": 0.0} if images else None,
        }
        counts = {"items": items.num_rows, "events": events.num_rows}
        return staged.publish(
            {
                "config": {"half_life_days": 90.0},
                "encoder": encoder,
                "shards": shards,
                "log_offset": 0,
                "counts": counts,
            }
        )


def publish_model(
    ws: Workspace,
    items: pa.Table,
    *,
    weight: float = 5.0,
    without_had: bool = True,
    learned_until_us: int | None = None,
    signals: dict[str, float] | None = None,
) -> str:
    """A fusion model with random weights over the fake encoder's vectors, published like the training job's.

    signals: what searches weigh.
    """
    import torch

    from rayrec.config import RecommenderConfig
    from rayrec.models import bundle
    from rayrec.models.features import FeatureSchema
    from rayrec.models.recommender import Recommender

    torch.manual_seed(0)
    schema = FeatureSchema.fit(items, FakeEncoder().dim, 0, min_count=2, max_tokens=50)
    known = np.ones(items.num_rows, bool)
    model = Recommender(RecommenderConfig(dim=8, length=10), schema, known, FakeEncoder().dim)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    space = FakeEncoder().id.space
    with tempfile.TemporaryDirectory() as local, ws.stage("models") as staged:
        bundle.write(model, schema, space, items.column("item_id").combine_chunks(), Path(local))
        staged.upload(Path(local), "")
        return staged.publish(
            {
                "encoder": {"space": space},
                "fusion": FusionWeights(signals=signals or {}).model_dump(),
                "recommender": {"weight": weight, "without_had": without_had, "learned_until_us": learned_until_us},
            }
        )
