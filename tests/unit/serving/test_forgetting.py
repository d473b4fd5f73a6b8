"""DELETE /v1/users/{id}: who may, what it tells, and that the very next answer of every replica knows nothing."""

import asyncio
import json
import logging
import shutil
import time
from pathlib import Path

import pytest

from rayrec.barring import Bars
from rayrec.errors import NotFound, RayrecError, Unavailable
from rayrec.serving import models
from rayrec.serving.remote import discreet, retried
from rayrec.workspace import Workspace
from tests.traces import found_in
from tests.unit.serving.test_events import click, recommended, send


@pytest.fixture
def ws(published: Path, tmp_path: Path) -> Workspace:
    """Copied, not linked: its files are rewritten."""
    shutil.copytree(published, tmp_path / "ws")
    return Workspace.open(tmp_path / "ws")


def forget(app, user="ann", **more):
    return app.call("DELETE", f"/v1/users/{user}", **{"scope": "admin", **more})


@pytest.mark.parametrize("scope", ["read", "events", None])
def test_only_an_admin_may(app, scope):
    send(app, click("e1"))
    assert forget(app, scope=scope).status == (401 if scope is None else 403)
    assert recommended(app, user_id="ann") != recommended(app)


def test_the_very_next_answer_of_every_replica_knows_nothing(make_app):
    one, other = make_app(), make_app()
    popular = recommended(one)
    assert "u01" in one.gateway.backend._live.current.value.scorer.behavior.histories.users
    send(one, click("e1", "i0003", "u01"), {**click("e2", "i0010", None), "session_id": "s1"})
    one.call("POST", "/v1/identify", {"session_id": "s1", "user_id": "u01"}, scope="events")
    assert recommended(other, user_id="u01") != popular

    receipt = forget(one, "u01").json

    for app in (one, other):
        assert recommended(app, user_id="u01") == popular
        assert recommended(app, session_id="s1") == popular
    assert recommended(make_app(), user_id="u01") == popular
    assert recommended(one, user_id="u02") != popular
    models.ForgetAnswer.model_validate(receipt, strict=True)
    places = {place["place"]: place["removed"] for place in receipt["places"]}
    assert (places["sqlite.events"], places["sqlite.sessions"]) == (2, 1)
    assert places[next(name for name in places if name.startswith("indexes/"))] > 0
    assert receipt["in_answers_after_s"] == 0
    assert "u01" not in json.dumps(receipt)
    assert {place["removed"] for place in forget(other, "u01").json["places"]} == {0}


def test_searches_know_nothing_either_and_cursors_go_on(app):
    asked = {"query": "acme", "user_id": "u01", "page_size": 5}
    first = app.call("POST", "/v1/search", asked).json
    forget(app, "u01")
    assert app.call("POST", "/v1/search", {**asked, "cursor": first["cursor"]}).status == 200


def test_what_happened_before_is_refused_and_who_comes_back_is_a_stranger(make_app):
    one, other = make_app(), make_app()
    before_us = int(time.time() * 1e6)
    send(one, click("e1"))
    popular = recommended(one)
    forget(one)

    told = send(other, click("late", ts_us=before_us), click("e1", ts_us=before_us), {"type": "?"}, click("new")).json

    assert (told["accepted"], told["duplicates"]) == (1, 0)
    assert [(bad["index"], bad["code"]) for bad in told["rejected"]] == [
        (0, "forgotten"),
        (1, "forgotten"),
        (2, "invalid_event"),
    ]
    assert recommended(other, user_id="ann") != popular
    assert other.gateway.events._store.read(0, 10)[0][1]["event_id"] == "new"


def test_ids_are_taken_as_they_are_written(app):
    user = "a/b ü?#"
    send(app, click("e1", user=user))
    assert forget(app, user).status == 200
    assert app.gateway.events._store.history(user, None) == []
    assert forget(app, "x" * 513).status == 422
    assert app.call("DELETE", "/v1/users/", scope="admin").status in (404, 422)


def test_without_the_store_what_the_replica_last_read_counts(app, monkeypatch, ws):
    popular = recommended(app)
    forget(app, "u01")

    def away(*_):
        raise Unavailable("the store does not answer")

    monkeypatch.setattr(app.gateway.events._store, "history", away)
    app.gateway._bars.refresh()
    assert recommended(app, user_id="u01") == popular
    assert recommended(app, user_id="u02") != popular


def test_a_store_that_is_new_is_told_who_is_barred(make_app, ws):
    Bars(ws).add(["u:ann"], 2**50)
    assert send(make_app(), click("e1", ts_us=5)).json["rejected"][0]["code"] == "forgotten"


def test_it_has_a_deadline_of_its_own_and_goes_on_after_it(make_app, monkeypatch):
    ended = []

    def slow(user_id):
        time.sleep(0.3)
        ended.append(user_id)
        return {"places": []}

    app = make_app(deadline_ms=50)
    app.gateway._forget = slow
    assert forget(app).status == 200
    hasty = make_app(forget_deadline_s=0.05)
    hasty.gateway._forget = slow
    late = forget(hasty)
    assert (late.status, late.headers["retry-after"]) == (503, "1")
    deadline = time.monotonic() + 5
    while len(ended) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_it_cannot_reach_is_told_to_come_again(app, monkeypatch):
    def busy(_):
        raise Unavailable("a job is writing events/x; do it again when that has ended")

    app.gateway._forget = busy
    refused = forget(app)
    assert (refused.status, refused.error["code"]) == (503, "unavailable")


def test_nothing_of_who_is_forgotten_is_logged_or_counted(app, caplog, monkeypatch, ws):
    secret = "secret-user-4711"
    with caplog.at_level(logging.DEBUG):
        send(app, click("secret-event", "i0003", secret))
        app.call("POST", "/v1/recommend", {"user_id": secret})
        assert forget(app, secret).status == 200

        def fails(user_id):
            raise ValueError(f"{user_id} again")

        app.gateway._forget = fails
        failed = forget(app, secret)
    assert failed.status == 500
    assert b"secret" not in failed.body
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text
    assert "secret" not in app.call("GET", "/metrics", scope="admin").body.decode()
    assert found_in(Path(ws.root), [secret, "secret-event"]) == set()


def test_errors_between_replicas_are_values_and_are_logged_without_what_they_say(caplog):
    @discreet
    async def ours(query):
        raise NotFound(f"no {query}")

    @discreet
    async def anothers(query):
        raise ValueError(f"cannot encode {query}")

    async def ask(method):
        return await retried(lambda: method("secret query"))

    with caplog.at_level(logging.DEBUG):
        assert isinstance(asyncio.run(ours("secret query")), NotFound)
        with pytest.raises(NotFound, match="no secret query"):
            asyncio.run(ask(ours))
        assert isinstance(asyncio.run(anothers("secret query")), RayrecError)
        with pytest.raises(Unavailable, match=r"a part of the service failed \(ValueError\)"):
            asyncio.run(ask(anothers))
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text
