"""Bodies and answers of the HTTP API, as OpenAPI describes them; tests hold answers to these."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from rayrec.request import MAX_PAGE_SIZE, MAX_QUERY_CHARS

_ID = Annotated[str, Field(min_length=1, max_length=512)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


_WORDS = {"type": "array", "items": {"type": "string"}}
_BOUNDS = {
    "type": "object",
    "properties": {name: {"type": "number"} for name in ("gte", "gt", "lte", "lt")},
    "minProperties": 1,
    "additionalProperties": False,
}
# the engine checks filters, and names what is wrong better than a union of types could; this only describes them
Filters = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                **dict.fromkeys(("brand", "category", "currency", "item_id"), _WORDS),
                **dict.fromkeys(("price_cents", "updated_us"), _BOUNDS),
                "available": {"type": "boolean"},
            },
            "patternProperties": {r"^attributes\..+$": _WORDS},
            "additionalProperties": False,
        }
    ),
]


class SearchBody(Strict):
    """A search by words, by a photo, or by both together. Without either, everything, popular first."""

    query: str = Field("", max_length=MAX_QUERY_CHARS, examples=["frozen pizza"])
    image: str | None = Field(
        None,
        min_length=1,
        description="a photo to search with: a JPEG, PNG, WebP, GIF or BMP file in base64, bare or as a data: URL; "
        "by default up to 6 MiB and 24 million pixels. Only for an index with pictures",
        json_schema_extra={"contentEncoding": "base64"},
    )
    user_id: _ID | None = Field(None, description="who asks: a ranking that was fitted to clicks minds their taste")
    session_id: _ID | None = None
    filters: Filters | None = Field(
        None,
        description="AND across fields, OR within one: words as lists, numbers as bounds, available as a boolean",
        examples=[{"brand": ["Private"], "price_cents": {"gte": 100, "lt": 500}, "category": ["Grocery"]}],
    )
    facets: list[str] = Field([], max_length=16, examples=[["brand", "category", "price_cents"]])
    sort: Literal["relevance", "price_asc", "price_desc", "newest", "popular"] = "relevance"
    page: int = Field(1, ge=1, le=100_000)
    page_size: int = Field(24, ge=1, le=MAX_PAGE_SIZE)
    cursor: str | None = Field(None, max_length=512, description="of the answer before; wins over page")
    mode: Literal["hybrid", "lexical", "dense"] = "hybrid"
    explain: bool = Field(False, description="say for each hit why it is there")
    min_offset: int = Field(0, ge=0, lt=2**53, description="of a change of the catalog that the answer has to know")


class RecommendBody(Strict):
    """What a shopper may want next; without a user or recent items, what is popular."""

    user_id: _ID | None = Field(None, examples=["900"])
    session_id: _ID | None = None
    recent_item_ids: list[_ID] = Field([], max_length=100, description="just looked at, oldest first")
    filters: Filters | None = None
    k: int = Field(24, ge=1, le=MAX_PAGE_SIZE)
    explain: bool = False


def _valid_text(value: Any) -> Any:
    texts = value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else [value]
    for text in texts:
        if isinstance(text, str) and text != text.encode("utf-8", "ignore").decode():
            raise ValueError("not valid Unicode text")
    return value


def first_fault(error: ValidationError) -> str:
    """What is wrong first, without what was sent."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


class EventBody(Strict):
    """What a shopper did. A view, click, cart or purchase names its item, a search its query."""

    event_id: _ID | None = Field(None, description="sent again, it counts once; without one it always counts")
    type: Literal["view", "click", "add_to_cart", "purchase", "search"]
    ts_us: int | None = Field(
        None, ge=0, lt=2**53, description="microseconds UTC; None: now. Late ones find their place"
    )
    user_id: _ID | None = None
    session_id: _ID | None = Field(None, description="of a shopper not known yet; see /v1/identify")
    item_id: _ID | None = None
    query: str | None = Field(None, min_length=1, max_length=MAX_QUERY_CHARS)
    price_cents: int | None = Field(None, ge=0, lt=2**53)
    quantity: int | None = Field(None, ge=0, lt=2**31)
    request_id: str | None = Field(
        None, max_length=64, description="of the answer that this reacts to, or of a search's"
    )
    position: int | None = Field(None, ge=0, lt=2**31, description="the item's place in that answer, from 1")
    shown: list[_ID] | None = Field(None, max_length=MAX_PAGE_SIZE, description="of a search: its items, in order")

    @model_validator(mode="after")
    def _names_its_subject(self) -> "EventBody":
        subject = "query" if self.type == "search" else "item_id"
        if getattr(self, subject) is None:
            raise ValueError(f"{subject}: required of a {self.type}")
        return self

    _is_text = field_validator("*")(_valid_text)


class EventsBody(Strict):
    events: list[Any] = Field(
        max_length=10_000,
        description="each an EventBody; the good are kept, each bad one is answered for itself",
        json_schema_extra={"items": EventBody.model_json_schema()},
        examples=[[{"event_id": "e1", "type": "click", "user_id": "900", "item_id": "32553"}]],
    )


_WHOLE = Annotated[int, Field(ge=0, lt=2**53)]
_LONG = Annotated[str, Field(max_length=20_000)]
_WORD = Annotated[str, Field(min_length=1, max_length=1_000)]


class _ItemFields(Strict):
    """What an item may say or not."""

    description: _LONG | None = None
    brand: _WORD | None = None
    category: list[_WORD] | None = Field(None, max_length=32, description="from the widest to the narrowest")
    price_cents: _WHOLE | None = None
    currency: str | None = Field(None, min_length=1, max_length=16)
    image_uri: str | None = Field(None, min_length=1, max_length=2_048, description="read by the next embed job")
    available: bool | None = None
    updated_us: _WHOLE | None = Field(None, description="microseconds UTC; not given: now")

    _is_text = field_validator("*")(_valid_text)


class ItemBody(_ItemFields):
    """An item as it is from now on, whatever it was before."""

    item_id: _ID
    title: _WORD
    attributes: dict[_WORD, _WORD] | None = Field(None, max_length=256)


class ItemPatch(_ItemFields):
    """Fields that are to be others; null takes one away, those not named stay. Attributes are merged by key."""

    title: _WORD = Field("", description="an item always has one")
    attributes: dict[_WORD, _WORD | None] | None = Field(None, max_length=256, description="null removes a key")


class ItemsBody(Strict):
    items: list[Any] = Field(
        max_length=1_000,
        description="each an ItemBody; the good are taken, each bad one is answered for itself",
        json_schema_extra={"items": ItemBody.model_json_schema()},
        examples=[[{"item_id": "m1", "title": "Blue mug", "price_cents": 1299, "category": ["Kitchen", "Mugs"]}]],
    )


class ChangesAnswer(BaseModel):
    """offset: in the log of changes, of the newest that was taken; null where none was. A search with it as min_offset
    knows the change."""

    request_id: str
    accepted: int
    rejected: list["Rejected"]
    offset: int | None


class IdentifyBody(Strict):
    session_id: _ID
    user_id: _ID


class Rejected(BaseModel):
    index: int
    code: str
    message: str


class EventsAnswer(BaseModel):
    """offset: in the log, of the newest that was taken; null where none was."""

    request_id: str
    accepted: int
    duplicates: int
    rejected: list[Rejected]
    offset: int | None


class IdentifyAnswer(BaseModel):
    """moved: events of the session that became the user's."""

    request_id: str
    moved: int


class Removed(BaseModel):
    place: str
    removed: int


class ForgetAnswer(BaseModel):
    """A receipt, kept as receipts/<receipt_id>.json too; it names nobody.

    until_us: events of the shopper at or before it stay barred, later ones are of a stranger; in_answers_after_s: when
    the last replica minds nothing of them any more.
    """

    request_id: str
    receipt_id: str
    at_us: int
    until_us: int
    in_answers_after_s: float
    places: list[Removed]


class Item(BaseModel):
    item_id: str
    title: str
    description: str | None
    brand: str | None
    category: list[str | None] | None
    price_cents: int | None
    currency: str | None
    image_uri: str | None
    attributes: dict[str, str | None]
    available: bool | None
    updated_us: int | None


class Reason(BaseModel):
    part: str
    weight: float
    text: str


class HitModel(BaseModel):
    item_id: str
    score: float
    item: Item
    reasons: list[Reason] | None = None


class CoverageModel(BaseModel):
    lexical: Literal["ok", "skipped", "failed"]
    dense: Literal["ok", "skipped", "failed"]
    image: Literal["ok", "skipped", "failed"]
    behavior: Literal["ok", "skipped", "failed"]
    rerank: Literal["ok", "skipped", "failed"]
    degraded: bool
    why: str | None


class VersionsModel(BaseModel):
    index: str
    model: str | None
    log_offset: int
    replica: str


class AnswerModel(BaseModel):
    request_id: str
    hits: list[HitModel]
    total: int
    total_is_exact: bool
    facets: dict[str, Any]
    page: int
    cursor: str | None
    took_ms: float
    coverage: CoverageModel
    versions: VersionsModel


class ItemAnswer(BaseModel):
    request_id: str
    item: Item


class Suggestion(BaseModel):
    text: str


class SuggestAnswer(BaseModel):
    request_id: str
    suggestions: list[Suggestion]
    took_ms: float


class PageAnswer(BaseModel):
    request_id: str
    name: str
    facets: list[str]
    shoppers: list[str]
    photo_search: bool


class ErrorDetail(BaseModel):
    code: str
    message: str
    field: str | None
    hint: str | None
    request_id: str


class ErrorModel(BaseModel):
    error: ErrorDetail
