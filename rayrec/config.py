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
    "norwegian", "portuguese", "romanian", "russian", "spanish", "swedish", "tamil", "turkish",
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
    max_pixels: int = Field(50_000_000, ge=1, le=250_000_000, description="of one picture; one costs up to 20 bytes")
    timeout_s: float = Field(10, gt=0, le=600, description="for the whole of fetching one picture, redirects included")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="of http(s) URLs: img.example.com, .example.com (any below it), or img.example.com:8080"
    )
    allowed_roots: tuple[str, ...] = Field((), description="local directories, and s3:// or gs:// prefixes")


class EncoderConfig(Config):
    """model: a local transformers directory, or one that comes with pip: `minilm` (English) or `e5` (100 languages).

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


class EmbedConfig(Config):
    """source: the catalog; None embeds the newest catalog version of the workspace."""

    source: SourceConfig | None = None
    encoder: EncoderConfig = EncoderConfig()
    workers: int | None = Field(None, ge=1, description="None: one per CPU (or GPU) of the cluster")
    cpus_per_worker: float = Field(0.5, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    block_rows: int = Field(256, ge=1, description="rows a killed worker can lose")


class IndexConfig(Config):
    """events: shopper behaviour; None takes the newest events version of the workspace, if there is one."""

    events: SourceConfig | None = None
    encoder: EncoderConfig = EncoderConfig()
    dense: Literal["auto", "flat", "hnsw", "ivfpq"] = "auto"
    shards: int | None = Field(None, ge=1, description="None: one per 500,000 items")
    language: Language = "english"
    half_life_days: float = Field(90.0, gt=0, description="age at which a purchase counts half")
    promote: bool = True


class FusionWeights(Config):
    """Reciprocal rank fusion: sum over lists of weight / (k + rank). Cormack et al., SIGIR 2009, eq. 1.

    dense 0.3, lexical 0.7 and k 60 won or tied on every catalog tried (benchmarks/LOG.md); a shop with
    rated queries fits its own.
    """

    dense: float = Field(0.3, ge=0, le=1)
    k: float = Field(60.0, gt=0)


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
    max_body_bytes: int = Field(64 << 10, ge=1_024)
    max_depth: int = Field(16, ge=2, description="of nested JSON")
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
