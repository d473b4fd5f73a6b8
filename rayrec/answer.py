"""What the engine answers with, and the cursor that carries a search from page to page."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

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


def make_cursor(index: str, request: str, page: int) -> str:
    payload = json.dumps({"i": index, "r": request, "p": page}, separators=(",", ":"))
    return base64.urlsafe_b64encode(payload.encode()).decode().rstrip("=")


def read_cursor(cursor: str, index: str, request: str) -> int:
    """The page a cursor asks for. Raises InvalidRequest if it is of another index version or request."""
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        version, asked, page = values["i"], values["r"], values["p"]
        if not isinstance(page, int) or page < 1:
            raise ValueError("page")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidRequest("invalid_cursor", "cursor: not one of ours", field="cursor") from error
    if version != index:
        raise InvalidRequest(
            "stale_cursor",
            f"cursor: made on index {version}, now {index} answers",
            field="cursor",
            hint="ask for page 1 again",
        )
    if asked != request:
        raise InvalidRequest(
            "invalid_cursor",
            "cursor: made for another request",
            field="cursor",
            hint="send the same query, filters, sort, mode and page_size as before",
        )
    return page
