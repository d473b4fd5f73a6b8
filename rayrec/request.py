"""What is asked: each kind of request as a checked, immutable value that travels between processes.

>>> SearchRequest("usb c cable", page_size=10).query
'usb c cable'
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayrec.errors import InvalidRequest
from rayrec.photo import Photo

MODES = ("hybrid", "lexical", "dense")
MAX_PAGE_SIZE = 1_000
MAX_QUERY_CHARS = 1_000


@dataclass(frozen=True)
class Recent:
    """What a shopper did a moment ago, since the index was built: with an item, or a search for a query.

    type: of EVENT_TYPES; ts_us: UTC; offset: in the log of events, so that later pages mind what the first one did;
    vector: float32 (D,), the query's, without which a search is passed over.
    """

    item_id: str | None
    type: str
    ts_us: int
    offset: int = 0
    query: str | None = None
    vector: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class SearchRequest:
    """Items for a query, a photo, or both together; all items, popular first, without either.

    filters: AND across fields, OR within one; facets: fields to count, each as if its own filter were open, so
    a count is the total of choosing that value. cursor: of the answer before, wins over page. mode: lexical and
    dense order by words or vectors alone. user_id: who asks, recent: what they did just now; their taste counts for the
    order, never for what is found. min_offset: of a change of the catalog that the answer has to know, for which the
    service waits; as_of: of the last one that counts, so that later pages are of the first one's catalog. forgotten_us:
    until when nothing that they did may count. Raises InvalidRequest.
    """

    query: str = ""
    filters: Mapping[str, Any] | None = None
    facets: Sequence[str] = ()
    sort: str = "relevance"
    page: int = 1
    page_size: int = 24
    cursor: str | None = None
    mode: str = "hybrid"
    explain: bool = False
    image: Photo | None = None
    user_id: str | None = None
    recent: Sequence[Recent] = ()
    min_offset: int = 0
    as_of: int | None = None
    forgotten_us: int = -1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidRequest(
                "invalid_mode", f"mode: no such mode {self.mode!r}", field="mode", hint=", ".join(MODES)
            )
        if self.page < 1:
            raise InvalidRequest("invalid_page", f"page: expected 1 or more, got {self.page}", field="page")
        if not self.query.isascii() and self.query != self.query.encode("utf-8", "ignore").decode():
            raise InvalidRequest("invalid_query", "query: not valid Unicode text", field="query")
        if len(self.query) > MAX_QUERY_CHARS:
            raise InvalidRequest("query_too_long", f"query: over {MAX_QUERY_CHARS} characters", field="query")
        _check_count("page_size", self.page_size)
        object.__setattr__(self, "query", " ".join(self.query.split()))
        if self.image is not None and self.mode == "lexical" and not self.query:
            message = "mode: lexical compares words, and an image has none"
            raise InvalidRequest("invalid_mode", message, field="mode", hint="use hybrid or dense, or add a query")

    @property
    def wants_vector(self) -> bool:
        """Of the query."""
        return bool(self.query) and self.mode != "lexical"

    @property
    def photo(self) -> Photo | None:
        """The image, if its vector is wanted: words alone look at none."""
        return None if self.mode == "lexical" else self.image


@dataclass(frozen=True)
class SimilarRequest:
    """Items like one item, in content or because they are bought together."""

    item_id: str
    k: int = 24
    filters: Mapping[str, Any] | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        _check_count("k", self.k)


@dataclass(frozen=True)
class RecommendRequest:
    """Items for a shopper, from their history, what they did just now (`recent`), and `recent_item_ids`, viewed after
    that (both oldest first); else what is popular. Recent items that the catalog does not know are passed over.
    forgotten_us: until when nothing that they did may count.
    """

    user_id: str | None = None
    recent_item_ids: Sequence[str] = ()
    k: int = 24
    filters: Mapping[str, Any] | None = None
    explain: bool = False
    recent: Sequence[Recent] = ()
    forgotten_us: int = -1

    def __post_init__(self) -> None:
        _check_count("k", self.k)


def _check_count(field: str, wanted: int) -> None:
    if not 1 <= wanted <= MAX_PAGE_SIZE:
        message = f"{field}: expected 1 to {MAX_PAGE_SIZE}, got {wanted}"
        raise InvalidRequest(f"invalid_{field}", message, field=field)
