"""A trained fusion model over one index's catalog, as answers use it."""

from collections.abc import Sequence

import numpy as np

from rayrec.data import catalog
from rayrec.data.histories import Histories
from rayrec.models.bundle import BundledModel
from rayrec.ranking import scoring
from rayrec.retrieval.base import Column, Update
from rayrec.retrieval.shards import Shards
from rayrec.workspace import Workspace


class TrainedModel:
    """A bundle over an index's catalog: item vectors made once, shoppers' vectors on demand.

    weight: of its part beside what is counted; without_had: items that a shopper had are not shown.
    """

    def __init__(self, model: BundledModel, table: np.ndarray, weight: float, *, without_had: bool):
        self._model, self._table, self._weight = model, Column(table), weight
        self.without_had = without_had

    @classmethod
    def load(cls, ws: Workspace, version: str | None, shards: Shards, space: str) -> "TrainedModel | None":
        """None for a version without a trained model. Raises NotFound, IncompatibleArtifact."""
        said = None if version is None else ws.manifest("models", version).get("recommender")
        if version is None or said is None:
            return None
        model = BundledModel.load(ws.local_copy("models", version), space=space)
        table = model.items(shards.columns.items, *shards.contents())
        return cls(model, table, said["weight"], without_had=said["without_had"])

    def update(self, updates: Sequence[Update]) -> None:
        """Take up new contents. Of what only its price became another, the vector stays as it is."""
        for update in updates:
            if update.row >= len(self._table.values):
                self._table.put(update.row, 0)
        fresh = [update for update in updates if update.record is not None and update.text is not None]
        if not fresh:
            return
        text = np.stack([update.text for update in fresh if update.text is not None])
        pictures = [update.picture for update in fresh if update.picture is not None]
        items = catalog.table([update.record for update in fresh if update.record is not None])
        made = self._model.items(items, text, np.stack(pictures) if len(pictures) == len(fresh) else None)
        for update, vector in zip(fresh, made, strict=True):
            self._table.put(update.row, vector)

    def expects(self, events: Histories, asked: np.ndarray) -> scoring.Learned:
        """Of one shopper; asked: vectors of events.texts."""
        shopper = self._model.shoppers(events, self._table.values, asked if len(asked) else None)[0]
        return scoring.Learned(self._table.values @ shopper, self._weight)
