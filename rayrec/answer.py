"""What the engine answers with, and the cursor that carries a search from page to page."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayrec.encoders.item import fuse
from rayrec.errors import InvalidRequest


@dataclass(frozen=True)
class Hit:
    """One item of an answer. reasons: [{part, weight, text}] if they were asked for."""

    item_id: str
    score: float
    item: dict[str, Any]
    reasons: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Coverage:
    """Which parts took part in an answer: "ok", "skipped" or "failed"; and why not, if one failed."""

    lexical: str = "skipped"
    dense: str = "skipped"
    image: str = "skipped"
    behavior: str = "skipped"
    rerank: str = "skipped"
    degraded: bool = False
    why: str | None = None

    @property
    def ordered_by(self) -> str:
        """The parts that decide a search's order, as its cursor carries them."""
        return " ".join(
            part for part in ("lexical", "dense", "image", "behavior", "rerank") if getattr(self, part) == "ok"
        )


@dataclass(frozen=True)
class Lack:
    """Why a query or photo has no vector though its request wanted one. state: "failed", or "skipped" on purpose."""

    state: str
    why: str


@dataclass(frozen=True)
class Encoded:
    """What a search has for a vector: float32 (D,), the query's, the photo's, or the unit sum of both; None of neither.

    dense, image: what became of the query's and of the photo's: "ok", "skipped" or "failed". why: of what is lacking.
    """

    vector: np.ndarray | None = None
    dense: str = "skipped"
    image: str = "skipped"
    why: str | None = None

    @classmethod
    def of(cls, query: np.ndarray | Lack | None, photo: np.ndarray | Lack | None) -> "Encoded":
        """Each a unit vector (D,), why there is none, or None where none was wanted."""
        vectors = [part for part in (query, photo) if isinstance(part, np.ndarray)]
        vector = vectors[0] if vectors else None
        if len(vectors) == 2:
            vector = fuse(vectors[0][None], vectors[1][None], 1.0)[0]
        whys = dict.fromkeys(part.why for part in (query, photo) if isinstance(part, Lack))
        return cls(vector, _state(query), _state(photo), "; ".join(whys) or None)


def _state(part: np.ndarray | Lack | None) -> str:
    if isinstance(part, Lack):
        return part.state
    return "skipped" if part is None else "ok"


@dataclass(frozen=True)
class Answer:
    """Hits and all that belongs to them; the fields are those that the HTTP API will answer with.

    cursor: opaque, asks for the next page; None on the last. took_ms: time in the engine.
    """

    request_id: str
    hits: list[Hit]
    total: int
    total_is_exact: bool
    facets: dict[str, Any]
    page: int
    cursor: str | None
    took_ms: float
    coverage: Coverage
    versions: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; reasons left out where none were asked for."""
        hits = []
        for hit in self.hits:  # by hand: dataclasses.asdict copies every item deeply, which costs more than scoring
            values = {"item_id": hit.item_id, "score": hit.score, "item": hit.item}
            hits.append(values if hit.reasons is None else {**values, "reasons": hit.reasons})
        return {**vars(self), "hits": hits, "coverage": dict(vars(self.coverage))}


def fingerprint(*parts: Any) -> str:
    """A short stable hash of a request's parts."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def make_cursor(index: str, request: str, page: int, parts: str, state: int = 0, offset: int = 0) -> str:
    """state: offset of the newest event of the shopper that the order minds; offset: of the newest change of the
    catalog that the answer knows.
    """
    values = {"i": index, "r": request, "p": page, "c": parts, "s": state, "l": offset}
    payload = json.dumps(values, separators=(",", ":"))
    return base64.urlsafe_b64encode(payload.encode()).decode().rstrip("=")


def cursor_index(cursor: str) -> str | None:
    """The index version that a cursor pins; None if it is not one of ours, which `read_cursor` says better."""
    try:
        index = _payload(cursor)["i"]
    except _NOT_OURS:
        return None
    return index if isinstance(index, str) else None


def cursor_state(cursor: str) -> int:
    """The state that a cursor pins; 0 if it is not one of ours, which `read_cursor` says better."""
    try:
        return int(_payload(cursor)["s"])
    except _NOT_OURS:
        return 0


def cursor_offset(cursor: str) -> int:
    """The change of the catalog that who answers a cursor has to know; as of `cursor_state`."""
    try:
        return int(_payload(cursor)["l"])
    except _NOT_OURS:
        return 0


_NOT_OURS = (ValueError, KeyError, TypeError, OverflowError, RecursionError)


def _payload(cursor: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))


def read_cursor(cursor: str, index: str, request: str, parts: str) -> int:
    """The page a cursor asks for.

    Raises InvalidRequest if it is of another request, or stale: of another index version, or of answers with other
    parts, whose order differs, so that a page of one never follows a page of the other.
    """
    try:
        values = _payload(cursor)
        version, asked, page, made_by = values["i"], values["r"], values["p"], values["c"]
        if not isinstance(page, int) or page < 1:
            raise ValueError("page")
    except _NOT_OURS as error:
        raise InvalidRequest("invalid_cursor", "cursor: not one of ours", field="cursor") from error
    if asked != request:
        raise InvalidRequest(
            "invalid_cursor",
            "cursor: made for another request",
            field="cursor",
            hint="send the same query, image, filters, sort, mode and page_size as before",
        )
    if version != index or made_by != parts:
        made = f"on index {version}, now {index} answers" if version != index else "by other parts than answer now"
        raise InvalidRequest("stale_cursor", f"cursor: made {made}", field="cursor", hint="ask for page 1 again")
    return page
