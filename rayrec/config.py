"""One validated config per job. Unknown keys are refused; each config is saved into what its job publishes.

>>> EmbedConfig.model_validate({"source": {"path": "items.csv"}}).source.path
'items.csv'
"""

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rayrec.errors import NotFound, SchemaError

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def load(cls: type[C], path: str | Path | None, overrides: dict[str, Any] | None = None) -> C:
        """Read YAML (or JSON) at `path`; `overrides` (top-level keys) win. Raises SchemaError, NotFound."""
        values: Any = {}
        if path is not None:
            try:
                values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            except FileNotFoundError as error:
                raise NotFound(f"config file {path} does not exist") from error
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                reason = " ".join(str(error).split())
                raise SchemaError(f"config file {path} is not YAML: {reason}") from error
            except OSError as error:
                raise SchemaError(f"config file {path} cannot be read: {error.strerror}") from error
            if values is None:  # an empty file
                values = {}
            if not isinstance(values, dict):
                raise SchemaError(f"config file {path}: expected a mapping, got {type(values).__name__}")
        try:
            return cls.model_validate({**values, **(overrides or {})})
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()]
            raise SchemaError(f"{path or cls.__name__}: " + "; ".join(lines)) from error


Language = Literal[
    "arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian", "italian",
    "norwegian", "portuguese", "romanian", "russian", "spanish", "swedish", "tamil", "turkish", "zh",
]  # fmt: skip


class SourceConfig(Config):
    """A file or directory of rows, on any filesystem, or a data set that arrives as a package.

    columns maps our column name to the source's, e.g. {"item_id": "id", "description": "short_description"}.
    """

    path: str
    format: Literal["auto", "parquet", "csv", "jsonl", "complete_journey"] = "auto"
    columns: dict[str, str] = Field(default_factory=dict)
    category_separator: str = Field(">", min_length=1)
    max_text_chars: int = Field(20_000, ge=1)
    max_items: int | None = Field(None, ge=1, description="complete_journey: keep the most bought items")


class PicturesConfig(Config):
    """Where pictures may come from, and how much of one is read. By default from nowhere."""

    max_bytes: int = Field(20 << 20, ge=1, le=1 << 30, description="of one file")
    max_pixels: int = Field(50_000_000, ge=1, le=250_000_000, description="of one picture; takes up to 23 bytes each")
    timeout_s: float = Field(10, gt=0, le=600, description="for the whole of fetching one picture, redirects included")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="of http(s) URLs: img.example.com, .example.com (any below it), or img.example.com:8080"
    )
    allowed_roots: tuple[str, ...] = Field((), description="local directories, and s3:// or gs:// prefixes")


class EncoderConfig(Config):
    """model: a local transformers directory, or one that comes with pip: `minilm` (English) or `e5` (100 languages).

    `fitted` is the newest that `rayrec fit text` promoted in the workspace.

    runtime `auto` is torch in bf16 where a worker has a CUDA device and onnxruntime elsewhere. precision is that of
    onnxruntime: int8 must agree with fp32 on the catalog, or is refused.
    """

    model: str = "minilm"
    runtime: Literal["auto", "onnx", "torch"] = "auto"
    precision: Literal["fp32", "int8"] = "fp32"
    max_tokens: int = Field(128, ge=4, description="longer texts are cut here, or at the model's own limit")
    batch_size: int = Field(16, ge=1)
    query_prefix: str | None = Field(None, max_length=200, description="before each query; None: the model's own")
    passage_prefix: str | None = Field(None, max_length=200, description="before each item; None: the model's own")


class ImagesConfig(Config):
    """Items' pictures: an image encoder of the text encoder's space, and where pictures may be read from.

    model: `fitted` for the newest that `rayrec fit images` promoted here, or one's version or directory. A picture
    counts as unchanged while its uri is.
    """

    model: str = "fitted"
    weight: float | None = Field(None, ge=0, description="of the picture beside the text; None: as it was fitted")
    pictures: PicturesConfig = PicturesConfig()


class EmbedConfig(Config):
    """source: the catalog; None embeds the newest catalog version of the workspace. images: also their pictures.

    store: where the service keeps changes of the catalog, which an import does not undo; None: the workspace's own.
    """

    source: SourceConfig | None = None
    store: str | None = Field(None, description="sqlite:///path or redis://..., as in the service's config")
    encoder: EncoderConfig = EncoderConfig()
    images: ImagesConfig | None = None
    workers: int | None = Field(None, ge=1, description="None: one per CPU (or GPU) of the cluster")
    cpus_per_worker: float = Field(0.5, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    block_rows: int = Field(256, ge=1, description="rows a killed worker can lose")


class IndexConfig(Config):
    """events: shopper behaviour; None takes the newest events version of the workspace, if there is one.

    What the service took since then is added first. store: where it keeps that; None: the workspace's own file.
    """

    events: SourceConfig | None = None
    store: str | None = Field(None, description="sqlite:///path or redis://..., as in the service's config")
    encoder: EncoderConfig = EncoderConfig()
    images: ImagesConfig | None = None
    dense: Literal["auto", "flat", "hnsw", "ivfpq"] = "auto"
    shards: int | None = Field(None, ge=1, description="None: one per 500,000 items")
    language: Language = "english"
    half_life_days: float = Field(90.0, gt=0, description="age at which a purchase counts half")
    retention_days: float | None = Field(None, gt=0, description="older events are removed, everywhere, at first")
    promote: bool = True


class TrainingConfig(Config):
    """The loop that fits any encoder. A run is a function of its config and data: the seed draws everything."""

    steps: int = Field(300, ge=1)
    batch: int = Field(64, ge=2, description="pairs a step and worker")
    learning_rate: float = Field(3e-4, gt=0, description="the highest; after a warm-up it falls as a cosine")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(0.01, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    evaluate_every: int = Field(50, ge=1, description="steps; a checkpoint each")
    patience: int = Field(3, ge=1, description="evaluations without a better one that end the run")
    average_last: int = Field(1, ge=1, description="also try the mean of this many best states")
    adversarial_epsilon: float = Field(0.0, ge=0, description="FGM: how far embeddings are moved against the loss")
    seed: int = 0


class FitTextConfig(Config):
    """Fit the text encoder to the shop: LoRA on pairs mined from its catalog and events.

    side: `query` leaves the items' vectors as they are and moves queries to them, against the whole catalog: a step
    costs a tenth, and nothing is embedded again; `both` moves items too, against those of the batch and hard ones.
    sources: how often each kind of pair is drawn, of title, category, attribute, description, searched and together;
    None: title, category and searched, which read like queries, as far as the shop has data for them.
    """

    encoder: EncoderConfig = EncoderConfig()
    training: TrainingConfig = TrainingConfig(steps=60, batch=128, learning_rate=2e-4, evaluate_every=20)
    side: Literal["query", "both"] = "query"
    sources: dict[str, float] | None = None
    rank: int = Field(16, ge=1, description="of the adapter")
    share: float = Field(0.5, gt=0, le=1, description="of the adapter that is kept: the rest stays pretrained")
    frozen_layers: int = Field(0, ge=0, description="lowest layers that get no adapter: cheaper steps")
    temperature: float = Field(0.05, gt=0)
    hard_negatives: int = Field(1, ge=0, description="both: items a pair that share a word and do not fit")
    max_tokens: int = Field(64, ge=4, description="both: of an item, while fitting")
    word_dropout: float = Field(0.0, ge=0, lt=1, description="share of a query's words left out")
    synonyms: dict[str, list[str]] = Field(default_factory=dict, description="word: words to put in its place")
    synonym_share: float = Field(0.3, ge=0, le=1)
    held_out: float = Field(0.1, gt=0, lt=1, description="share of queries that are never learned from, and judge")
    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(0.5, gt=0)
    gpus_per_worker: float = Field(0, ge=0)


class TrimConfig(Config):
    """Fewer layers for queries: a student of the text encoder, or of the fitted one, taught on the shop's words.

    Published in int8; refused if it does not rank as the whole encoder does.
    """

    encoder: EncoderConfig = EncoderConfig()
    training: TrainingConfig = TrainingConfig(
        steps=600, batch=128, learning_rate=3e-4, evaluate_every=100, patience=3, dropout=0
    )
    layers: int = Field(5, ge=1, description="that stay")
    max_tokens: int = Field(32, ge=4, description="of a query, while learning")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of queries that judge")
    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(0.5, gt=0)
    gpus_per_worker: float = Field(0, ge=0)


class FitImagesConfig(Config):
    """Fit an image model into the text encoder's space: picture <-> description of the catalog's items.

    encoder: the text encoder whose space it is. photos: a table of image_uri and item_id, shoppers' or shelf photos of
    items, beside the catalog's own pictures; validation_photos: those that judge, else a part is held out.
    """

    encoder: EncoderConfig = EncoderConfig()
    backbone: str = Field("efficientnet-lite0", description="or a torchvision name, or a transformers directory")
    weights: str | None = Field(None, description="file of the backbone's weights; None: the package's or cache's own")
    side: int | None = Field(None, ge=32, description="pixels; None: what the weights were trained at")
    pictures: PicturesConfig = PicturesConfig()
    photos: str | None = None
    validation_photos: str | None = None
    training: TrainingConfig = TrainingConfig(
        steps=1_000, batch=32, learning_rate=2e-4, weight_decay=0.02, evaluate_every=100, patience=5
    )
    trained_share: float = Field(
        0.8, ge=0, le=1, description="of the backbone's layers, from the last; 0: projection alone"
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="share that judges the fit")
    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(0.5, gt=0)
    gpus_per_worker: float = Field(0, ge=0)


class RecommenderConfig(Config):
    """The fusion model's form.

    strategy: how an item's parts become one vector: `id` alone, `weighted` sum, `concat`, `gated`, `attention`.
    """

    strategy: Literal["id", "weighted", "concat", "gated", "attention"] = "weighted"
    dim: int = Field(64, ge=4)
    blocks: int = Field(1, ge=1)
    heads: int = Field(1, ge=1)
    feed_forward: int = Field(1, ge=1, description="its width, in dims")
    length: int = Field(50, ge=1, description="events of a shopper that it sees, the last ones")
    gates: bool = Field(False, description="LiGR: what a block adds passes a learned gate")
    dropout: float = Field(0.5, ge=0, lt=1)
    content_dropout: float = Field(0.2, ge=0, lt=1, description="of text and image vectors")
    id_dropout: float = Field(0.1, ge=0, lt=1, description="share of items a step that learn without their id")
    newcomer_cost: float = Field(
        0.02, ge=0, lt=1, description="share of the metric given up so that items nobody touched yet are shown too"
    )
    price: bool = True
    min_count: int = Field(5, ge=1, description="items that must share an attribute for it to count")
    max_tokens: int = Field(20_000, ge=0, description="attributes that are kept, the most frequent")

    @model_validator(mode="after")
    def _divides(self) -> "RecommenderConfig":
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        return self


class LossConfig(Config):
    """What a shopper's next item is told from.

    full: every item, exact; sampled: the items of the batch and shared random ones; gbce: the same by generalised
    binary cross entropy. auto: full up to 5,000 items.
    """

    kind: Literal["auto", "full", "sampled", "gbce"] = "auto"
    target: Literal["next_item", "next_basket"] = Field(
        "next_item", description="next_basket: any item of it, where a visit's order says nothing"
    )
    negatives: int = Field(2_048, ge=1, description="random ones, shared by a step")
    of_batch: bool = Field(True, description="what others of the batch wanted is a negative too")
    log_q: bool = Field(False, description="sampled: correct for how often an item is a negative")
    calibration: float = Field(0.75, ge=0, le=1, description="gbce: t")
    weights: dict[str, float] = Field(
        default_factory=lambda: {"view": 0.1, "click": 0.2, "add_to_cart": 0.5, "purchase": 1.0},
        description="how much it counts to foresee each kind of event",
    )


class TrainConfig(Config):
    """Train the fusion model on shoppers' events. Of training, `batch` counts events that are foreseen, a worker.

    epochs sets steps, and an evaluation and a checkpoint each; training.steps and evaluate_every count if it is None.
    """

    encoder: EncoderConfig = EncoderConfig()
    images: ImagesConfig | None = None
    model: RecommenderConfig = RecommenderConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig(
        batch=1_024, learning_rate=2e-3, warmup=0, weight_decay=0, max_gradient_norm=10, patience=8, dropout=0
    )
    epochs: int | None = Field(40, ge=1)
    split: Literal["leave_one_out", "time"] = "leave_one_out"
    metric: str = Field("ndcg@10", description="by which the best epoch is chosen")
    mask_seen: bool = Field(True, description="in judging: what a shopper had is not shown again")
    judges: int = Field(6_000, ge=10, description="validation cases that choose the best epoch")
    tracker: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(0.5, gt=0)
    gpus_per_worker: float = Field(0, ge=0)


class UpdateConfig(Config):
    """Go on training the model that answers, on events that came since. What is not here is as it was trained.

    Judged on new and old held-out events; promoted if it is better on the new and forgets little of the old.
    """

    store: str | None = Field(None, description="sqlite:///path or redis://..., as in the service's config")
    least: int = Field(1_000, ge=1, description="new events, below which it waits for more")
    replay: float = Field(1.0, ge=0, description="old events that are learned again for each new one")
    held_out: float = Field(0.5, gt=0, lt=1, description="share of shoppers with new events whose last ones judge")
    epochs: int = Field(5, ge=1)
    learning_rate: float | None = Field(None, gt=0, description="None: a quarter of what it was trained with")
    patience: int = Field(2, ge=1, description="epochs without a better one that end the run")
    max_forgetting: float = Field(0.02, ge=0, lt=1, description="share of the metric on old events it may lose")
    seed: int = 0
    tracker: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(0.5, gt=0)
    gpus_per_worker: float = Field(0, ge=0)


class FitRankingConfig(Config):
    """What a search weighs beside the fused ranks, learned from what shoppers clicked and bought.

    source `clicks`: searches of the events that tell what was shown, and the clicks and purchases that name their
    request_id. `baskets`: where no clicks are kept, the names of categories as if they were searched for, and what
    shoppers bought of them next (as in Ai et al., SIGIR 2017). `auto`: clicks if there are enough.
    """

    source: Literal["auto", "clicks", "baskets"] = "auto"
    answers: int = Field(2_000, ge=1, description="that are learned from and judged by, drawn at random")
    shown: int = Field(50, ge=2, description="baskets: the best of each answer that count as seen")
    least: int = Field(100, ge=10, description="answers with a click, below which nothing is learned")
    held_back: float = Field(0.2, gt=0, lt=1, description="share of the time, the newest, that is learned from")
    seed: int = 0


Signal = Literal["bm25", "cosine", "image", "popularity", "price", "repeat", "taste", "learned"]
"""what ranking/signals.py tells of a candidate"""


class FusionWeights(Config):
    """Reciprocal rank fusion: sum over lists of weight / (k + rank). Cormack et al., SIGIR 2009, eq. 1.

    dense 0.25 and k 60 do no harm on any catalog tried, and are better than words alone on each (benchmarks/LOG.md);
    a shop with rated queries fits its own. signals: what else a search weighs, as `rayrec fit ranking` learned it.
    """

    dense: float = Field(0.25, ge=0, le=1)
    k: float = Field(60.0, gt=0)
    signals: dict[Signal, float] = Field(default_factory=dict)


class ReplicasConfig(Config):
    """How many replicas of one deployment, and what each asks of the cluster.

    min < max autoscales on requests in flight; target: those in flight that one replica is to have.
    """

    min: int = Field(1, ge=1)
    max: int = Field(1, ge=1)
    target: float = Field(8.0, gt=0, description="requests in flight per replica that autoscaling aims at")
    cpus: float = Field(0.25, ge=0, description="of Ray's count")
    gpus: float = Field(0, ge=0)
    upscale_delay_s: float = Field(3.0, ge=0)
    downscale_delay_s: float = Field(60.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> "ReplicasConfig":
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}")
        return self


class ServeConfig(Config):
    """The service. See jobs/serve.yaml for each key in its place.

    topology: `fused` runs the whole engine in each gateway replica (one hop: best on small machines); `split`
    gives encoder, retriever shards and scorer processes of their own that scale apart.
    """

    workspace: str
    topology: Literal["fused", "split"] = "fused"
    shards: int = Field(1, ge=1, description="split: retriever deployments, one per shard of the index")
    gateway: ReplicasConfig = ReplicasConfig(target=16)
    encoder: ReplicasConfig = ReplicasConfig()
    retriever: ReplicasConfig = ReplicasConfig()
    scorer: ReplicasConfig = ReplicasConfig()
    deadline_ms: int = Field(5_000, ge=10, description="a request over it is answered 503")
    encode_budget_ms: int = Field(1_000, ge=1, description="a query that takes longer to encode is answered by words")
    max_in_flight: int = Field(128, ge=4, description="per gateway replica; beyond it 429")
    max_body_bytes: int = Field(64 << 10, ge=1_024, description="but for a search's image")
    max_image_bytes: int = Field(6 << 20, ge=1, le=1 << 30, description="of the picture file that a search brings")
    max_image_pixels: int = Field(24_000_000, ge=1, le=250_000_000, description="takes up to 23 bytes each, for one")
    max_depth: int = Field(16, ge=2, description="of nested JSON")
    store: str | None = Field(
        None,
        description="where events are kept: sqlite:///path on one machine, redis://... for many; None: a file in the "
        "workspace, if that is a local directory and the cluster one node",
    )
    max_events_bytes: int = Field(1 << 20, ge=1_024, description="of the body of POST /v1/events and PUT /v1/items")
    max_pending_events: int = Field(5_000, ge=1, description="not durable yet, per gateway replica; beyond it 429")
    max_clock_skew_s: float = Field(300.0, ge=0, description="an event further ahead than this is refused")
    max_pending_items: int = Field(2_000, ge=1, description="changes of items not durable yet, likewise")
    tail_ms: float = Field(25.0, gt=0, description="how often replicas look for changes of the catalog")
    forget_deadline_s: float = Field(600.0, gt=0, description="in place of deadline_ms for DELETE /v1/users/{id}")
    max_batch: int = Field(16, ge=1, description="queries that are encoded together")
    cached_vectors: int = Field(2_048, ge=0, description="queries whose vector a replica keeps")
    candidate_cache_mib: int = Field(32, ge=0, description="per fused replica, for the candidates of recent queries")
    poll_s: float = Field(1.0, gt=0, description="how often replicas look for a promoted version and for keys")
    keep_previous_s: float = Field(60.0, ge=0, description="how long cursors of the version before still answer")
    local_only: bool = Field(True, description="bound to loopback: health and metrics need no key")
    allowed_hosts: tuple[str, ...] = Field(("127.0.0.1", "localhost", "[::1]"), description="names the page answers to")
    page: bool = Field(True, description="serve the web page at /")
    page_name: str = "rayrec"
    page_shoppers: tuple[str, ...] = Field((), description="users that the page offers to look as")
