"""What stands before every route: request ids, deadlines, limits on bodies, who is asking, headers, one error shape.

A plain ASGI middleware, so that also what no route answers (a path that is not there, a body that is no JSON) goes
through it. Nothing it logs or counts holds a query, a key or an id of a shopper.
"""

import asyncio
import contextlib
import logging
import re
import secrets
import time
from http.cookies import CookieError, SimpleCookie
from typing import Any

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayrec.config import ServeConfig
from rayrec.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    RayrecError,
    TooLarge,
    Unauthorized,
    Unavailable,
    VersionNotLoaded,
    described,
)
from rayrec.serving.auth import COOKIE, Keys
from rayrec.serving.bodies import Bodies, call_it_json, replay
from rayrec.serving.telemetry import Telemetry

log = logging.getLogger(__name__)

STATUS: dict[type[RayrecError], tuple[int, str]] = {
    Unauthorized: (401, "unauthorized"),
    Forbidden: (403, "forbidden"),
    NotFound: (404, "not_found"),
    Conflict: (409, "conflict"),
    TooLarge: (413, "too_large"),
    Unavailable: (503, "unavailable"),
    VersionNotLoaded: (503, "unavailable"),
    Overloaded: (429, "overloaded"),
}
_STATUS_OF = {"stale_cursor": 409, "invalid_image": 422}  # of an InvalidRequest's code; else 400
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_EMBEDDING_MS = 60_000  # of up to a thousand new items, on one core
_BODIES = ("POST", "PUT", "PATCH", "DELETE")
_PAGE_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS_CSP = _PAGE_CSP.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
_GONE = 499  # what proxies write where the client left before the answer
_OPEN = ("/healthz", "/readyz", "/metrics")


def error_response(error: Exception, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of an error, in the one shape. One that nobody expects is logged, and tells nothing."""
    headers, field, hint = {}, None, None
    if isinstance(error, InvalidRequest):
        status, code, message = _STATUS_OF.get(error.code, 400), error.code, error.message
        field, hint = error.field, error.hint
    else:
        found = next(((status, code) for kind, (status, code) in STATUS.items() if isinstance(error, kind)), None)
        if found is None:
            log.error("request %s: %s", request_id, described(error))
        status, code = found or (500, "internal")
        message = str(error) if found else "an error of the service itself; it is logged under this request id"
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(error.retry_after_s)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
        hint = "send Authorization: Bearer <key>; 'rayrec keys create' makes one"
    return status, headers, error_body(code, message, request_id, field, hint)


def error_body(code: str, message: str, request_id: str, field: str | None = None, hint: str | None = None) -> bytes:
    shape = {"code": code, "message": message, "field": field, "hint": hint, "request_id": request_id}
    return orjson.dumps({"error": shape})


class Edge:
    """The middleware. What it finds out is in scope["state"]: request_id, scopes (what the caller may do)."""

    def __init__(self, app: ASGIApp, config: ServeConfig, keys: Keys, telemetry: Telemetry):
        self._app = app
        self._config = config
        self._keys = keys
        self._telemetry = telemetry
        self._bodies = Bodies(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        status = 0
        held = contextlib.ExitStack()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), path, None if given else request_id)
            await send(message)

        try:
            self._identify(scope, headers, path)
            body = None
            if scope["method"] in _BODIES:
                body = await self._bodies.read(receive, headers, path, held)
                call_it_json(scope)
            call = self._app(scope, receive if body is None else replay(body, receive), send_with_headers)
            await asyncio.wait_for(call, self._deadline_s(scope["method"], path, headers))
        except Exception as error:  # the edge of the service: whatever is thrown becomes the one shape
            if status:  # too late to say anything else
                raise
            if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
                error = Unavailable("not answered within the deadline")
            code, more, content = error_response(error, request_id)
            await respond(send_with_headers, code, more, content)
        finally:
            held.close()
            route = getattr(scope.get("route"), "path_format", "other")
            self._telemetry.requests.labels(route, str(status or _GONE)).inc()
            self._telemetry.latency.labels(route).observe(time.perf_counter() - started)

    def _deadline_s(self, method: str, path: str, headers: Headers) -> float:
        """The config's, or a shorter one that the caller gives in milliseconds as `X-Deadline-Ms`."""
        wanted = headers.get("x-deadline-ms", "")
        limit: float = self._config.deadline_ms
        if path == "/v1/items":
            limit = max(limit, _EMBEDDING_MS)
        if method == "DELETE" and path.startswith("/v1/users/"):
            limit = 1000 * self._config.forget_deadline_s
        return min(max(int(wanted), 1), limit) / 1000 if wanted.isdecimal() and len(wanted) < 8 else limit / 1000

    # -- who asks ---------------------------------------------------------------------------------

    def _identify(self, scope: Scope, headers: Headers, path: str) -> None:
        """Raises Unauthorized under /v1 without a key or session, Forbidden for a Host that the page does not know."""
        scopes = self._key_scopes(headers)
        if path.startswith("/v1"):
            if not scopes and self._is_page(headers):
                scopes = frozenset({"read"})
            if not scopes:
                raise Unauthorized("no valid key")
        elif path in _OPEN:
            if not self._config.local_only and "admin" not in scopes:
                raise Unauthorized("needs a key of scope admin here")
        elif not self._known_host(headers):
            raise Forbidden("the page is not served under this Host; add it to allowed_hosts")
        scope["state"]["scopes"] = scopes

    def _key_scopes(self, headers: Headers) -> frozenset[str]:
        kind, _, key = headers.get("authorization", "").partition(" ")
        return self._keys.scopes(key.strip()) if kind.lower() == "bearer" else frozenset()

    def _is_page(self, headers: Headers) -> bool:
        """Whether the page itself asks: its session, from its own Host and Origin."""
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        if morsel is None or not self._keys.is_session(morsel.value):
            return False
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            return False
        return self._known_host(headers)

    def _known_host(self, headers: Headers) -> bool:
        """Against pages elsewhere that make their own name point here (DNS rebinding)."""
        host = re.sub(r":\d+$", "", headers.get("host", "")).lower()
        return host in self._config.allowed_hosts


def _add_headers(headers: MutableHeaders, path: str, request_id: str | None) -> None:
    if request_id is not None:  # else it came with the request, and Ray Serve sends it back itself
        headers["x-request-id"] = request_id
    headers["x-content-type-options"] = "nosniff"
    headers["referrer-policy"] = "no-referrer"
    headers["content-security-policy"] = _DOCS_CSP if path.startswith("/docs") else _PAGE_CSP
    headers.setdefault("cache-control", "no-store")


async def respond(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    pairs += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def scopes_of(scope: Any) -> frozenset[str]:
    return scope["state"]["scopes"]
