"""The HTTP API: typed bodies in, answers out, OpenAPI of both at /docs.

Answers leave as bytes that are made once; their models are what OpenAPI shows, and tests hold answers to them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from importlib import resources
from importlib.metadata import version
from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from rayrec.config import ServeConfig
from rayrec.errors import Forbidden, RayrecError
from rayrec.request import MAX_PAGE_SIZE, RecommendRequest, SearchRequest, SimilarRequest
from rayrec.serving.auth import COOKIE, SESSION_S, Keys
from rayrec.serving.edge import Edge, error_body, error_response, scopes_of
from rayrec.serving.events import of_store
from rayrec.serving.gateway import Gateway
from rayrec.serving.models import (
    AnswerModel,
    ChangesAnswer,
    ErrorModel,
    EventsAnswer,
    EventsBody,
    ForgetAnswer,
    IdentifyAnswer,
    IdentifyBody,
    ItemAnswer,
    ItemPatch,
    ItemsBody,
    PageAnswer,
    RecommendBody,
    SearchBody,
    SuggestAnswer,
)
from rayrec.serving.photos import from_text

_ItemId = Annotated[str, Path(min_length=1, max_length=512)]
MetricsText = Callable[[], Awaitable[str]]

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_DOCS_FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorModel, "description": "A request that cannot be answered as it was put"},
    401: {"model": ErrorModel, "description": "No valid key"},
    403: {"model": ErrorModel, "description": "A key without the scope"},
    404: {"model": ErrorModel, "description": "Nothing there"},
    405: {"model": ErrorModel, "description": "Not this method"},
    409: {"model": ErrorModel, "description": "A cursor of a version that no longer answers"},
    413: {"model": ErrorModel, "description": "A body too large or too deep"},
    422: {"model": ErrorModel, "description": "A body that does not fit its description, or an image that is none"},
    429: {"model": ErrorModel, "description": "Beyond capacity; see Retry-After"},
    503: {"model": ErrorModel, "description": "Not answered in time; see Retry-After"},
}


# for the description alone: who asks was found out at the edge
_KEY = HTTPBearer(auto_error=False, description="A key of `rayrec keys create`; the page has its session instead.")


def needs(wanted: str) -> Any:
    """A dependency that lets a caller of scope `wanted` through."""

    async def check(request: Request, _: Annotated[Any, Depends(_KEY)]) -> None:
        if wanted not in scopes_of(request.scope):
            raise Forbidden(f"needs a key of scope {wanted}")

    return Depends(check)


def create_app(gateway: Gateway, keys: Keys, metrics: MetricsText) -> FastAPI:
    """The API around a gateway. metrics: the text of all replicas together."""
    config = gateway.config
    app = FastAPI(title="rayrec", version=version("rayrec"), docs_url=None, redoc_url=None)
    app.add_middleware(Edge, config=config, keys=keys, telemetry=gateway.telemetry)
    _add_errors(app)
    _add_answers(app, gateway)
    _add_events(app, gateway)
    _add_catalog(app, gateway)
    _add_users(app, gateway)
    _add_operations(app, metrics)
    _add_docs(app)
    if config.page:
        _add_page(app, config, keys)
    return app


def _json(request: Request, values: dict[str, Any]) -> Response:
    content = orjson.dumps({**values, "request_id": request.state.request_id})
    return Response(content, media_type="application/json")


def _add_answers(app: FastAPI, gateway: Gateway) -> None:
    options: dict[str, Any] = {"dependencies": [needs("read")], "responses": _ERRORS, "response_class": Response}

    def answers(model: type[BaseModel], summary: str) -> dict[str, Any]:
        return {**options, "summary": summary, "responses": {**_ERRORS, 200: {"model": model}}}

    @app.post("/v1/search", **answers(AnswerModel, "Items for words or a photo, with filters, facets and pages"))
    async def search(request: Request, body: SearchBody) -> Response:
        asked = body.model_dump(exclude={"session_id", "image"})
        image = None if body.image is None else await asyncio.to_thread(from_text, body.image)
        return _json(request, await gateway.search(SearchRequest(**asked, image=image), body.session_id))

    @app.get("/v1/suggest", **answers(SuggestAnswer, "Completions while typing"))
    async def suggest(
        request: Request,
        q: Annotated[str, Query(max_length=200, examples=["piz"])],
        k: Annotated[int, Query(ge=1, le=50)] = 8,
    ) -> Response:
        return _json(request, await gateway.suggest(q, k))

    @app.get("/v1/items/{item_id:path}/similar", **answers(AnswerModel, "Items like one item"))
    async def similar(
        request: Request,
        item_id: Annotated[str, Path(max_length=512)],
        k: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE)] = 24,
        explain: bool = False,
    ) -> Response:
        return _json(request, await gateway.similar(SimilarRequest(item_id, k, explain=explain)))

    @app.get("/v1/items/{item_id:path}", **answers(ItemAnswer, "One item"))
    async def item(request: Request, item_id: Annotated[str, Path(max_length=512)]) -> Response:
        return _json(request, await gateway.item(item_id))

    @app.post("/v1/recommend", **answers(AnswerModel, "What a shopper may want next"))
    async def recommend(request: Request, body: RecommendBody) -> Response:
        asked = body.model_dump(exclude={"session_id"})
        return _json(request, await gateway.recommend(RecommendRequest(**asked), body.session_id))

    @app.get("/v1/page", **answers(PageAnswer, "What the web page shows"))
    async def page(request: Request) -> Response:
        config = gateway.config
        shown = {
            "name": config.page_name,
            "facets": ["category", "brand", "price_cents", "available"],
            "shoppers": config.page_shoppers,
            "photo_search": await gateway.sees_photos(),
        }
        return _json(request, shown)


def _add_events(app: FastAPI, gateway: Gateway) -> None:
    options: dict[str, Any] = {"dependencies": [needs("events")], "response_class": Response}

    @app.post(
        "/v1/events",
        **options,
        responses={**_ERRORS, 200: {"model": EventsAnswer}},
        summary="What shoppers did: durable, and minded by the next answer, once acknowledged",
    )
    async def events(request: Request, body: EventsBody) -> Response:
        return _json(request, await of_store(gateway.events, lambda store: store.take(body.events)))

    @app.post(
        "/v1/identify",
        **options,
        responses={**_ERRORS, 200: {"model": IdentifyAnswer}},
        summary="A session turns out to be a user: its events become theirs",
    )
    async def identify(request: Request, body: IdentifyBody) -> Response:
        told = await of_store(gateway.events, lambda store: store.identify(body.session_id, body.user_id))
        return _json(request, told)


def _add_catalog(app: FastAPI, gateway: Gateway) -> None:
    options: dict[str, Any] = {
        "dependencies": [needs("catalog")],
        "response_class": Response,
        "responses": {**_ERRORS, 200: {"model": ChangesAnswer}},
    }

    @app.put("/v1/items", **options, summary="Upsert items: durable, and found by every replica, within a second")
    async def put(request: Request, body: ItemsBody) -> Response:
        return _json(request, await of_store(gateway.catalog, lambda catalog: catalog.put(body.items)))

    @app.patch("/v1/items/{item_id:path}", **options, summary="Merge fields into an item; null removes")
    async def patch(request: Request, item_id: _ItemId, body: ItemPatch) -> Response:
        given = body.model_dump(exclude_unset=True)
        return _json(request, await of_store(gateway.catalog, lambda catalog: catalog.patch(item_id, given)))

    @app.delete(
        "/v1/items/{item_id:path}", **options, summary="Delete an item: it comes back only when it is put again"
    )
    async def delete(request: Request, item_id: _ItemId) -> Response:
        return _json(request, await of_store(gateway.catalog, lambda catalog: catalog.delete(item_id)))


def _add_users(app: FastAPI, gateway: Gateway) -> None:
    @app.delete(
        "/v1/users/{user_id:path}",
        dependencies=[needs("admin")],
        response_class=Response,
        responses={**_ERRORS, 200: {"model": ForgetAnswer}},
        summary="Forget a shopper: in the store, in every version, in answers; and bar what happened until now",
    )
    async def forget(request: Request, user_id: Annotated[str, Path(min_length=1, max_length=512)]) -> Response:
        return _json(request, await gateway.forget(user_id))


def _add_operations(app: FastAPI, metrics: MetricsText) -> None:
    @app.get("/healthz", summary="Liveness")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Readiness: a replica exists only once its version is loaded")
    async def readyz() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, summary="Prometheus text of all replicas together")
    async def metrics_text() -> Response:
        return Response(await metrics(), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RayrecError)
    async def ours(request: Request, error: RayrecError) -> Response:
        status, headers, content = error_response(error, request.state.request_id)
        return Response(content, status, headers, "application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"][1:]]  # the first says whether it is of the body, query or path
        broken = first["type"] == "json_invalid"
        field = None if broken else ".".join(place) or None
        code = "invalid_json" if broken else f"invalid_{place[0] if place else 'body'}"
        content = error_body(code, f"{field or 'body'}: {first['msg']}", request.state.request_id, field)
        return Response(content, 400 if broken else 422, media_type="application/json")

    @app.exception_handler(HTTPException)
    async def of_starlette(request: Request, error: HTTPException) -> Response:
        code = {404: "no_such_route", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        content = error_body(code, str(error.detail), request.state.request_id, hint="see /docs")
        return Response(content, error.status_code, dict(error.headers or {}), "application/json")


def _add_docs(app: FastAPI) -> None:
    """Swagger UI from its package, so that a page of documentation asks nobody outside."""
    swagger = resources.files("fastapi_swagger.resources")
    assets = {name: (swagger.joinpath(name).read_bytes(), kind) for name, kind in _DOCS_FILES.items()}
    own = resources.files("rayrec.serving.ui")
    assets["docs.js"] = (own.joinpath("docs.js").read_bytes(), "text/javascript")
    page = own.joinpath("docs.html").read_bytes()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(page, media_type=_TYPES[".html"])

    @app.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in assets:
            raise HTTPException(404, "Not Found")
        content, kind = assets[name]
        return Response(content, media_type=kind)


def _add_page(app: FastAPI, config: ServeConfig, keys: Keys) -> None:
    files = {
        entry.name: (entry.read_bytes(), _TYPES["." + entry.name.rpartition(".")[2]])
        for entry in resources.files("rayrec.serving.ui").iterdir()
        if "." + entry.name.rpartition(".")[2] in _TYPES
    }

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        content, kind = files["index.html"]
        response = Response(content, media_type=kind)
        response.set_cookie(COOKIE, keys.new_session(), max_age=SESSION_S, httponly=True, samesite="strict", path="/")
        return response

    @app.get("/ui/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "Not Found")
        content, kind = files[name]
        return Response(content, media_type=kind)
