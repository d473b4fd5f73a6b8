"""The API from outside: who gets in, what is refused and how it is told, and that answers are what OpenAPI says."""

import asyncio
import json
import logging

import pytest

from rayrec.errors import NotFound
from rayrec.serving import models
from rayrec.serving.auth import COOKIE
from tests.unit.serving.conftest import call_app

V1 = [
    ("POST", "/v1/search", {"query": "pizza"}),
    ("GET", "/v1/suggest", None),
    ("GET", "/v1/items/i0003", None),
    ("GET", "/v1/items/i0003/similar", None),
    ("POST", "/v1/recommend", {}),
    ("GET", "/v1/page", None),
]


def _query(path):
    return "q=pi" if path.endswith("suggest") else ""


@pytest.mark.parametrize(("method", "path", "body"), [*V1, ("GET", "/v1/nothing", None), ("GET", "/v1", None)])
def test_everything_under_v1_is_closed_without_a_key(app, method, path, body):
    refused = app.call(method, path, body, scope=None)
    assert (refused.status, refused.error["code"]) == (401, "unauthorized")
    assert refused.headers["www-authenticate"] == "Bearer"
    for wrong in ("Bearer", "Bearer rr_wrong", "Basic abc", f"Basic {app.secrets['read']}", "Bearer \xff"):
        assert call_app(app.asgi, method, path, body, {"authorization": wrong}).status == 401


@pytest.mark.parametrize(("method", "path", "body"), V1)
def test_a_key_without_the_scope_is_refused_and_admin_may_all(app, method, path, body):
    refused = app.call(method, path, body, scope="events", query=_query(path))
    assert (refused.status, refused.error["code"]) == (403, "forbidden")
    for scope in ("read", "admin"):
        assert app.call(method, path, body, scope=scope, query=_query(path)).status == 200


def test_answers_fit_their_models(app):
    shapes = [
        models.AnswerModel,
        models.SuggestAnswer,
        models.ItemAnswer,
        models.AnswerModel,
        models.AnswerModel,
        models.PageAnswer,
    ]
    for (method, path, body), model in zip(V1, shapes, strict=True):
        answer = app.call(method, path, body, query=_query(path))
        model.model_validate(answer.json, strict=True)
        assert answer.json["request_id"] == answer.headers["x-request-id"]
    explained = app.call("POST", "/v1/search", {"query": "pizza", "explain": True, "facets": ["brand", "price_cents"]})
    models.AnswerModel.model_validate(explained.json, strict=True)
    assert explained.json["hits"][0]["reasons"]


def test_a_search_is_the_engines_own(app, ws):
    from rayrec import Engine

    asked = {"query": "acme usb cable", "filters": {"available": True}, "facets": ["brand"], "page_size": 5}
    found = app.call("POST", "/v1/search", asked).json
    expected = Engine.open(ws).search("acme usb cable", filters={"available": True}, facets=["brand"], k=5).to_dict()
    for key in ("hits", "total", "facets", "cursor"):
        assert found[key] == json.loads(json.dumps(expected[key]))


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"{", 400, "invalid_json", None),
        (b"\xff\xfe", 400, "invalid_json", None),
        (b"", 422, "invalid_body", None),
        ([], 422, "invalid_body", None),
        ({"query": 3}, 422, "invalid_query", "query"),
        ({"colour": "red"}, 422, "invalid_colour", "colour"),
        ({"page_size": 0}, 422, "invalid_page_size", "page_size"),
        ({"sort": "cheapest"}, 422, "invalid_sort", "sort"),
        ({"image": "x"}, 422, "invalid_image", "image"),
        ({"filters": {"colour": ["red"]}}, 400, "unknown_field", "filters.colour"),
        ({"filters": {"price_cents": {"gte": "1"}}}, 400, "invalid_filter", "filters.price_cents.gte"),
        ({"filters": {"price_cents": {"gte": 10**400}}}, 200, None, None),
        ({"facets": ["attributes."]}, 400, "unknown_field", "facets.attributes."),
        ({"cursor": "garbage"}, 400, "invalid_cursor", "cursor"),
        ({"cursor": "eyJsIjoxZTk5OSwicyI6MWU5OTl9"}, 400, "invalid_cursor", "cursor"),  # {"l":1e999,"s":1e999}
        ({"query": "caf\ud800"}, 422, "invalid_query", "query"),
    ],
)
def test_a_bad_body_is_told_by_field(app, body, status, code, field):
    answer = app.call("POST", "/v1/search", body)
    assert answer.status == status
    if code is not None:
        assert (answer.error["code"], answer.error["field"]) == (code, field)


def test_bodies_are_json_whatever_they_are_called(app):
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert app.call("POST", "/v1/search", {"query": "pizza"}, headers=headers).status == 200


def test_unknown_routes_items_and_methods_have_the_same_shape(app):
    for method, path, status, code in [
        ("GET", "/v1/nothing", 404, "no_such_route"),
        ("GET", "/v1/items/nope", 404, "not_found"),
        ("GET", "/v1/items/nope/similar", 404, "not_found"),
        ("GET", "/v1/search", 405, "method_not_allowed"),
        ("GET", "/nothing", 404, "no_such_route"),
        ("GET", "/ui/../config.py", 404, "no_such_route"),
        ("GET", "/docs/nothing.js", 404, "no_such_route"),
    ]:
        answer = app.call(method, path)
        assert (answer.status, answer.error["code"]) == (status, code), path


@pytest.mark.parametrize("size", [65_537, 1_000_000])
def test_a_body_over_the_limit_is_refused_told_or_not(app, size):
    body = b'{"query": "' + b"a" * size + b'"}'
    for headers in ({}, {"content-length": str(len(body))}):
        assert app.call("POST", "/v1/search", body, headers=headers).error["code"] == "too_large"


def test_a_body_nested_too_deep_is_refused_but_brackets_in_text_are_text(app):
    deep = b'{"filters": ' + b'{"a":' * 20 + b"1" + b"}" * 21
    assert app.call("POST", "/v1/search", deep).status == 413
    assert app.call("POST", "/v1/search", b"[" * 60_000).status == 413
    assert app.call("POST", "/v1/search", {"query": '{[ "' * 50}).status == 200


def test_request_ids_are_taken_if_they_are_fit_and_made_if_not(app):
    taken = app.call("POST", "/v1/recommend", {}, headers={"x-request-id": "order-7"})
    assert taken.json["request_id"] == "order-7"
    for unfit in ("", "a" * 65, "a b", "é", "<script>"):
        made = app.call("POST", "/v1/recommend", {}, headers={"x-request-id": unfit})
        assert made.json["request_id"] not in ("", unfit)


class SlowBackend:
    search = recommend = item = None

    async def versions(self, index):
        await asyncio.sleep(60)


class FailingBackend(SlowBackend):
    def __init__(self, error):
        self.error = error

    async def versions(self, index):
        raise self.error


def test_a_request_over_its_deadline_is_told_to_come_back(make_app):
    app = make_app(SlowBackend(), deadline_ms=50)
    late = app.call("POST", "/v1/recommend", {})
    assert (late.status, late.error["code"], late.headers["retry-after"]) == (503, "unavailable", "1")
    patient = make_app(SlowBackend(), deadline_ms=60_000)
    assert patient.call("POST", "/v1/recommend", {}, headers={"x-deadline-ms": "20"}).status == 503


def test_an_error_of_ours_tells_and_logs_nothing_of_the_request(make_app, caplog):
    caplog.set_level(logging.DEBUG)
    app = make_app(FailingBackend(RuntimeError("secret query of user 900")))
    failed = app.call("POST", "/v1/search", {"query": "secret query"})
    assert (failed.status, failed.error["code"]) == (500, "internal")
    assert b"secret" not in failed.body
    assert b"Traceback" not in failed.body
    assert failed.error["request_id"] in caplog.text
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text
    assert app.secrets["read"] not in caplog.text


def test_an_expected_error_is_not_logged(make_app, caplog):
    assert make_app(FailingBackend(NotFound("no item"))).call("GET", "/v1/items/x").status == 404
    assert caplog.text == ""


# -- the page -------------------------------------------------------------------------------------


def _session(app):
    page = app.call("GET", "/", scope=None)
    assert page.status == 200
    cookie = page.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    return cookie.split(";")[0]


def test_the_page_reads_by_its_session_from_its_own_host_and_origin(app):
    cookie = _session(app)
    own = {"cookie": cookie, "origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert app.call("POST", "/v1/search", {}, scope=None, headers=own).status == 200
    for change in (
        {"origin": "http://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"host": "evil.example:8000", "origin": "http://evil.example:8000"},
        {"cookie": f"{COOKIE}=forged"},
        {"cookie": "\x00"},
    ):
        assert app.call("POST", "/v1/search", {}, scope=None, headers={**own, **change}).status == 401, change


def test_the_page_answers_to_its_own_names_only(app):
    assert app.call("GET", "/", scope=None, headers={"host": "localhost:9"}).status == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "evil.example:8000"):
        refused = app.call("GET", "/", scope=None, headers={"host": host})
        assert (refused.status, refused.error["code"]) == (403, "forbidden")


def test_the_pages_files_are_there_under_a_strict_policy(app):
    page = app.call("GET", "/", scope=None)
    assert b"<script" in page.body
    assert app.secrets["read"].encode() not in page.body
    for path in ("/", "/ui/app.js", "/ui/style.css"):
        answer = app.call("GET", path, scope=None)
        assert answer.status == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert app.call("GET", "/ui/app.js", scope=None).headers["content-type"].startswith("text/javascript")


def test_a_service_without_a_page_has_none(make_app):
    assert make_app(page=False).call("GET", "/").status == 404


def test_documentation_asks_nobody_outside(app):
    page = app.call("GET", "/docs", scope=None)
    assert page.status == 200
    assert b"//" not in page.body.replace(b"<!doctype", b"")
    for name in ("swagger-ui.css", "swagger-ui-bundle.js", "docs.js"):
        assert len(app.call("GET", f"/docs/{name}", scope=None).body) > 50
    described = app.call("GET", "/openapi.json", scope=None).json
    assert {path for path in described["paths"] if path.startswith("/v1")} == {
        "/v1/search", "/v1/suggest", "/v1/items/{item_id}", "/v1/items/{item_id}/similar", "/v1/recommend", "/v1/page",
        "/v1/events", "/v1/identify", "/v1/items", "/v1/users/{user_id}",
    }  # fmt: skip


# -- operations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_operations_are_open_on_loopback_and_for_admins_elsewhere(make_app, path):
    assert make_app().call("GET", path, scope=None).status == 200
    public = make_app(local_only=False)
    assert [public.call("GET", path, scope=scope).status for scope in (None, "read", "admin")] == [401, 401, 200]


def test_metrics_count_by_route_and_name_nobody(app):
    app.call("POST", "/v1/search", {"query": "pizza"})
    app.call("POST", "/v1/search", {"query": "pizza"})
    app.call("GET", "/v1/items/i0003")
    app.call("GET", "/v1/nothing-like-it")
    text = app.call("GET", "/metrics", scope=None).body.decode()
    assert 'rayrec_requests_total{route="/v1/search",status="200"} 2.0' in text
    assert 'rayrec_requests_total{route="/v1/items/{item_id}",status="200"} 1.0' in text
    assert 'rayrec_requests_total{route="other",status="404"} 1.0' in text
    assert 'rayrec_cache_total{cache="vector",result="hit"} 1.0' in text
    assert 'rayrec_batch_size_count{stage="encode"} 1.0' in text
    assert 'rayrec_coverage_total{part="dense",route="search",state="ok"} 2.0' in text
    assert "pizza" not in text
    assert "i0003" not in text
    assert "nothing-like-it" not in text


def test_a_search_tells_who_asks(app, monkeypatch):
    asked = []
    backend = app.gateway.backend
    search = backend.search

    async def told(version, request, encoded):
        asked.append(request.user_id)
        return await search(version, request, encoded)

    monkeypatch.setattr(backend, "search", told)
    for body in ({"query": "pizza", "user_id": "u01"}, {"query": "pizza"}):
        assert app.call("POST", "/v1/search", body).status == 200
    assert asked == ["u01", None]
