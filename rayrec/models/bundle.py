"""A trained fusion model at rest, and answering without torch.

    model.json           form, features, embedding space, what items it knows
    weights.safetensors  everything that was learned
    items.onnx           parts of items -> vectors
    shopper.onnx         events of a shopper -> a vector
    items.parquet        item_id and known, in the order of the id table

>>> model = BundledModel.load(directory, space="minilm-90f8073c50")      # doctest: +SKIP
>>> table = model.items(items, text, image)                              # doctest: +SKIP
>>> scores = model.shoppers(histories, table, queries) @ table.T         # doctest: +SKIP
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.config import RecommenderConfig
from rayrec.data.histories import Histories
from rayrec.encoders.base import onnx_session
from rayrec.errors import IncompatibleArtifact
from rayrec.models.features import FeatureSchema, collate

FORMAT = 1
_BLOCK = 4_096
_OPSET = 17


def write(model: Any, schema: FeatureSchema, space: str, item_ids: pa.Array, directory: Path) -> None:
    """Save a `Recommender` trained on the items named. space: of the text (and image) vectors it was given."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    model = model.eval().cpu()
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, directory / "weights.safetensors"
    )
    known = model.known[:, 0].numpy() > 0
    pq.write_table(pa.table({"item_id": item_ids, "known": pa.array(known)}), directory / "items.parquet")
    said = {
        "format": FORMAT,
        "config": model.config.model_dump(mode="json"),
        "features": schema.to_dict(),
        "features_digest": schema.digest,
        "space": space,
        "query_dim": model.asked.in_features,
        "items": len(known),
        "known": int(known.sum()),
    }
    (directory / "model.json").write_text(json.dumps(said, indent=1))
    _export(model, schema, directory)


def _read(directory: Path) -> tuple[dict[str, Any], FeatureSchema, pa.Table]:
    try:
        said = json.loads((directory / "model.json").read_text())
        schema = FeatureSchema.from_dict(said["features"])
        items = pq.read_table(directory / "items.parquet")
        if said["format"] != FORMAT:
            raise ValueError(f"format {said['format']}, this rayrec reads {FORMAT}")
        if items.num_rows != said["items"]:
            raise ValueError(f"items.parquet has {items.num_rows} items, model.json says {said['items']}")
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise IncompatibleArtifact(f"{directory}: not a usable model ({error})") from error
    if schema.digest != said["features_digest"]:
        raise IncompatibleArtifact(
            f"{directory}: made with features {said['features_digest']}, here they mean {schema.digest}; train it again"
        )
    return said, schema, items


def restore(directory: Path, space: str, item_ids: pa.Array, touched: np.ndarray) -> tuple[Any, FeatureSchema]:
    """(the `Recommender` that was saved, over the items named; its features), to go on training it.

    touched: bool (N,), items that it may learn an id of, beside those it knows. Theirs start at zero, so that they are
    at first where their other parts put them. Raises IncompatibleArtifact.
    """
    import torch
    from safetensors.torch import load_file

    from rayrec.models.recommender import Recommender

    said, schema, items = _read(directory)
    _check_space(directory, said, space)
    place = pc.fill_null(pc.index_in(item_ids, value_set=items.column("item_id").combine_chunks()), -1).to_numpy()
    knew = (place >= 0) & items.column("known").to_numpy()[place]
    model = Recommender(
        RecommenderConfig.model_validate(said["config"]), schema, knew | touched, int(said["query_dim"])
    )
    try:
        weights = load_file(directory / "weights.safetensors")
        ids = torch.zeros(len(item_ids), model.config.dim)
        ids[torch.from_numpy(knew)] = weights["ids.weight"][torch.from_numpy(place[knew])]
        model.load_state_dict({**weights, "ids.weight": ids, "known": model.known})
    except Exception as error:  # safetensors and torch raise their own undeclared kinds
        raise IncompatibleArtifact(f"{directory}: not a usable model ({error})") from error
    return model, schema


def _check_space(directory: Path, said: dict[str, Any], space: str) -> None:
    if said["space"] != space:
        raise IncompatibleArtifact(f"{directory}: trained on space {said['space']}, the index holds {space}")


def _export(model: Any, schema: FeatureSchema, directory: Path) -> None:
    import warnings

    import torch

    from rayrec.models.features import PRICE_FEATURES, TOKENS_AN_ITEM, Content

    class Items(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fusion = model.fusion

        def forward(self, ids: Any, known: Any, text: Any, image: Any, has_image: Any, tokens: Any, price: Any) -> Any:
            return self.fusion(ids, known, Content(text, image, has_image, tokens, price))

    class Shopper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sequence, self.asked = model.sequence, model.asked

        def forward(self, items: Any, queries: Any, searched: Any, kinds: Any, gaps: Any, last: Any) -> Any:
            seen = self.sequence(items + searched * self.asked(queries), kinds, gaps)
            return seen.gather(1, last.view(-1, 1, 1).expand(-1, 1, seen.shape[2])).squeeze(1)

    m, b, length, d = 3, 2, 4, model.config.dim
    tokens = TOKENS_AN_ITEM if schema.tokens else 0
    parts = {
        "ids": torch.randn(m, d),
        "known": torch.ones(m, 1),
        "text": torch.randn(m, schema.text_dim),
        "image": torch.randn(m, schema.image_dim),
        "has_image": torch.ones(m, 1),
        "tokens": torch.zeros(m, tokens, dtype=torch.long),
        "price": torch.randn(m, PRICE_FEATURES),
    }
    events = {
        "items": torch.randn(b, length, d),
        "queries": torch.randn(b, length, model.asked.in_features),
        "searched": torch.zeros(b, length, 1),
        "kinds": torch.ones(b, length, dtype=torch.long),
        "gaps": torch.ones(b, length, dtype=torch.long),
        "last": torch.zeros(b, dtype=torch.long),
    }
    for name, module, inputs, second in (("items", Items(), parts, {}), ("shopper", Shopper(), events, {1: "events"})):
        axes = {key: {0: "batch", **(second if key != "last" else {})} for key in inputs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracer notes; the export is compared with torch in tests
            torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                str(directory / f"{name}.onnx"),
                input_names=list(inputs),
                output_names=["vectors"],
                dynamic_axes={**axes, "vectors": {0: "batch"}},
                opset_version=_OPSET,
                dynamo=False,
            )


class BundledModel:
    """A bundle, loaded for answering. Thread-safe."""

    def __init__(self, directory: Path, said: dict[str, Any], schema: FeatureSchema, items: pa.Table, threads: int):
        from safetensors.numpy import load_file

        self.schema = schema
        self.config = RecommenderConfig.model_validate(said["config"])
        self.query_dim = int(said["query_dim"])
        self._item_ids = items.column("item_id").combine_chunks()
        self._known = items.column("known").to_numpy()
        try:
            self._ids = load_file(directory / "weights.safetensors")["ids.weight"]
            self._items = onnx_session(directory / "items.onnx", threads)
            self._shopper = onnx_session(directory / "shopper.onnx", threads)
        except Exception as error:  # each library raises its own undeclared kinds
            raise IncompatibleArtifact(f"{directory}: not a usable model ({error})") from error

    @classmethod
    def load(cls, directory: Path, *, space: str, threads: int = 1) -> "BundledModel":
        """Raises IncompatibleArtifact if a file is damaged, or it was trained on vectors of another space."""
        said, schema, items = _read(directory)
        _check_space(directory, said, space)
        return cls(directory, said, schema, items, threads)

    def items(self, items: pa.Table, text: np.ndarray, image: np.ndarray | None) -> np.ndarray:
        """float32 (M, dim) of ITEMS, known ones or new. text float32 (M, D); image likewise, None if none has one."""
        place = pc.fill_null(pc.index_in(items.column("item_id"), value_set=self._item_ids), -1)
        at = place.to_numpy().astype(np.int64)
        out = np.empty((items.num_rows, self.config.dim), np.float32)
        for first in range(0, items.num_rows, _BLOCK):
            part = slice(first, first + _BLOCK)
            content = self.schema.content(
                items.slice(first, _BLOCK), text[part], None if image is None else image[part]
            )
            known = ((at[part] >= 0) & self._known[at[part]]).astype(np.float32)[:, None]
            given = {
                "ids": self._ids[at[part]] * known,
                "known": known,
                "text": content.text,
                "image": content.image,
                "has_image": content.has_image,
                "tokens": content.attributes,
                "price": content.price,
            }
            out[part] = _run(self._items, given)
        return out

    def shoppers(self, histories: Histories, table: np.ndarray, queries: np.ndarray | None = None) -> np.ndarray:
        """float32 (H, dim): what each wants now, zeros of who did nothing.

        table: float32 (N, dim) of `items`; queries: float32 (Q, query_dim) of histories.texts.
        """
        out = np.zeros((len(histories), self.config.dim), np.float32)
        there = np.flatnonzero(histories.lengths)
        for block in np.array_split(there, max(1, len(there) // 256)):
            if not len(block):
                continue
            batch = collate(histories.take(block), self.config.length)
            searched = batch.queries >= 0
            asked = np.zeros((*batch.rows.shape, self.query_dim), np.float32)
            if queries is not None:
                asked[searched] = queries[batch.queries[searched]]
            given = {
                "items": table[batch.rows] * (batch.rows >= 0)[..., None],
                "queries": asked,
                "searched": searched.astype(np.float32)[..., None],
                "kinds": batch.kinds,
                "gaps": batch.gaps,
                "last": batch.lengths - 1,
            }
            out[block] = _run(self._shopper, given)
        return out


def _run(session: Any, given: dict[str, np.ndarray]) -> np.ndarray:
    wanted = {entry.name for entry in session.get_inputs()}  # what a form does not use is not in its graph
    return session.run(None, {name: value for name, value in given.items() if name in wanted})[0]
