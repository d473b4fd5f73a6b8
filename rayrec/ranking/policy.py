"""What may be shown."""

import numpy as np

from rayrec.retrieval.filters import ItemColumns


def eligible(columns: ItemColumns, mask: np.ndarray | None) -> np.ndarray:
    """bool (N,): what a recommendation may show. A search shows sold-out items too, a suggestion never."""
    available = columns.available
    return available if mask is None else available & mask
