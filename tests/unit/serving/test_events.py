"""Events through the API: each judged for itself, durable once told, and minded by the very next answer."""

import asyncio
import logging
import time

import pytest

from rayrec.barring import Bars
from rayrec.config import ServeConfig
from rayrec.errors import NotFound, SchemaError, Unavailable
from rayrec.serving.events import Events, of_store, store_url
from rayrec.serving.telemetry import Telemetry
from rayrec.store import open_store
from rayrec.workspace import Workspace
from tests.fakes import make_catalog, publish_model


def send(app, *events, **more):
    return app.call("POST", "/v1/events", {"events": list(events)}, scope="events", **more)


def click(name, item="i0003", user="ann", **more):
    return {"event_id": name, "type": "click", "item_id": item, "user_id": user, **more}


def recommended(app, **asked):
    return [hit["item_id"] for hit in app.call("POST", "/v1/recommend", {"k": 10, **asked}).json["hits"]]


def answers_with(app, ws, model):
    """Promote a model and wait until the replica has followed."""
    ws.promote(model=model)
    deadline = time.monotonic() + 20
    while app.call("POST", "/v1/recommend", {}).json["versions"]["model"] != model:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def now_us():
    return int(time.time() * 1e6)


BAD = [
    ({"type": "click", "user_id": "ann"}, "item_id: required of a click"),
    ({"type": "search", "item_id": "i0003"}, "query: required of a search"),
    ({"type": "wish", "item_id": "i0003"}, "type: Input should be"),
    ({"item_id": "i0003"}, "type: Field required"),
    (click("e", price_cents=-1), "price_cents: "),
    (click("e", ts_us="yesterday"), "ts_us: "),
    (click("e", colour="red"), "colour: Extra inputs"),
    (click("e", item="x" * 600), "item_id: "),
    (click("e", user="\ud800"), "user_id: "),
    ("click", "Input should be"),
    (None, "Input should be"),
    (click("e", shown=["a", 7]), "shown.1: "),
]


def test_the_good_are_kept_and_the_bad_are_answered_one_by_one(app):
    mixed = [event for bad, _ in BAD for event in (click(f"good {len(str(bad))}{_}"), bad)]
    answer = send(app, *mixed).json

    assert answer["accepted"] == len(BAD)
    assert [one["index"] for one in answer["rejected"]] == list(range(1, 2 * len(BAD), 2))
    assert {one["code"] for one in answer["rejected"]} == {"invalid_event"}
    for one, (_, says) in zip(answer["rejected"], BAD, strict=True):
        assert says in one["message"], one
        assert "\ud800" not in one["message"]
    assert answer["offset"] == len(BAD)


def test_an_event_sent_twice_counts_once(app):
    first = send(app, click("e1"), click("e2")).json
    again = send(app, click("e2"), click("e3"), click("e3")).json

    assert (first["accepted"], first["duplicates"], first["offset"]) == (2, 0, 2)
    assert (again["accepted"], again["duplicates"], again["offset"]) == (1, 2, 3)
    nameless = [send(app, {"type": "view", "item_id": "i0001"}).json["accepted"] for _ in range(2)]
    assert nameless == [1, 1]
    nothing = send(app).json
    assert (nothing["accepted"], nothing["rejected"], nothing["offset"]) == (0, [], None)


def test_a_click_changes_that_shoppers_very_next_answer_on_every_replica(make_app):
    one, other = make_app(), make_app()
    before = recommended(one, user_id="ann")
    assert before == recommended(one)

    assert send(one, click("e1"), click("e2", "i0010")).json["accepted"] == 2

    after = recommended(one, user_id="ann")
    assert after != before
    assert recommended(other, user_id="ann") == after
    assert recommended(other, user_id="bob") == before
    answer = other.call("POST", "/v1/recommend", {"user_id": "ann", "explain": True}).json
    assert answer["coverage"]["behavior"] == "ok"
    assert {"content", "together"} & {reason["part"] for hit in answer["hits"] for reason in hit["reasons"]}


def test_what_the_index_knows_of_a_shopper_still_counts_beside_what_they_did_just_now(app):
    known = recommended(app, user_id="u01")

    send(app, click("e1", "i0003", "u01"))

    after = recommended(app, user_id="u01")
    assert after != known
    assert len(set(after) & set(known)) >= 5


def test_a_session_is_minded_and_becomes_its_user(app):
    popular = recommended(app)
    send(app, {"event_id": "e1", "type": "view", "item_id": "i0003", "session_id": "s1"})
    as_session = recommended(app, session_id="s1")
    assert as_session != popular
    assert recommended(app, user_id="ann") == popular

    told = app.call("POST", "/v1/identify", {"session_id": "s1", "user_id": "ann"}, scope="events")

    assert (told.status, told.json["moved"]) == (200, 1)
    assert recommended(app, user_id="ann") == as_session
    assert recommended(app, session_id="s1") == as_session


def test_searches_mind_what_was_done_just_now_and_their_pages_do_not_move(app, ws):
    answers_with(app, ws, publish_model(ws, make_catalog(), signals={"repeat": 0.5, "taste": 0.3}))
    asked = {"query": "acme", "user_id": "ann", "page_size": 5}

    def search(**more):
        return app.call("POST", "/v1/search", {**asked, **more}).json

    before = search()
    whole = [hit["item_id"] for hit in search(page_size=1_000)["hits"]]
    assert before["coverage"]["rerank"] == "ok"
    wanted = whole[7]

    send(app, click("e1", wanted))

    assert [hit["item_id"] for hit in search(cursor=before["cursor"])["hits"]] == whole[5:10]
    after = search()
    assert after["hits"][0]["item_id"] == wanted
    assert after["coverage"]["behavior"] == "ok"
    following = search(cursor=after["cursor"])
    send(app, click("e2", whole[20]))
    assert search(cursor=after["cursor"])["hits"] == following["hits"]


def test_a_page_that_would_mind_less_than_the_one_before_is_refused(app, ws, monkeypatch):
    answers_with(app, ws, publish_model(ws, make_catalog(), signals={"repeat": 0.5}))
    asked = {"query": "acme", "user_id": "ann", "page_size": 5}
    send(app, click("e1"))
    cursor = app.call("POST", "/v1/search", asked).json["cursor"]
    plain = app.call("POST", "/v1/search", {**asked, "sort": "price_asc"}).json["cursor"]

    def away(*_):
        raise Unavailable("the store does not answer")

    monkeypatch.setattr(app.gateway.events._store, "history", away)
    assert app.call("POST", "/v1/search", {**asked, "cursor": cursor}).error["code"] == "stale_cursor"
    # an order that is nobody's own goes on
    assert app.call("POST", "/v1/search", {**asked, "sort": "price_asc", "cursor": plain}).status == 200


def test_late_events_find_their_place_and_the_future_is_refused(app):
    now = now_us()
    answer = send(
        app,
        click("new", "i0010", ts_us=now - 1_000_000),
        click("late", "i0003", ts_us=now - 60_000_000),
        click("skewed", "i0020", ts_us=now + 30_000_000),
        click("tomorrow", ts_us=now + 86_400_000_000),
    ).json

    assert answer["accepted"] == 3
    assert answer["rejected"][0]["code"] == "in_the_future"
    assert "ahead of this service's clock" in answer["rejected"][0]["message"]

    async def recent():
        return await app.gateway.events.recent("ann", None)

    found, _ = asyncio.run(recent())
    assert [one.item_id for one in found] == ["i0003", "i0010", "i0020"]
    assert found[-1].ts_us <= now_us()


def test_what_an_index_knows_already_is_not_counted_again(app, make_app, monkeypatch):
    popular = recommended(app)
    send(app, click("e1"), click("e2", "i0010"))
    both = recommended(app, user_id="ann")
    for offset, same in ((0, True), (1, False), (2, False)):
        engine = app.gateway.backend._live.current.value
        monkeypatch.setattr(engine.scorer._shoppers, "_events_offset", offset)
        assert (recommended(app, user_id="ann") == both) is same
    assert recommended(app, user_id="ann") == popular


def test_what_was_searched_for_just_now_counts_where_a_model_minds_it(app, ws):
    searched = {"event_id": "e1", "type": "search", "query": "frozen pizza", "user_id": "ann"}
    popular = recommended(app)
    send(app, searched)
    assert recommended(app, user_id="ann") == popular  # nothing that is counted minds a search

    answers_with(app, ws, publish_model(ws, make_catalog()))
    minded = recommended(app, user_id="ann")
    assert minded != popular
    assert recommended(app, user_id="bob") == popular
    send(app, {**searched, "event_id": "e2", "query": "usb cable"})
    assert recommended(app, user_id="ann") != minded
    # of a shopper that the index knows, whose events come before
    known = recommended(app, user_id="u01")
    send(app, {**searched, "event_id": "e3", "user_id": "u01"}, click("e4", "i0003", "u01"))
    assert recommended(app, user_id="u01") != known


def test_items_that_the_catalog_lacks_and_searches_change_nothing(app):
    popular = recommended(app)
    answer = send(
        app, click("e1", "gone"), {"event_id": "e2", "type": "search", "query": "pizza", "user_id": "ann"}
    ).json
    assert answer["accepted"] == 2
    assert recommended(app, user_id="ann") == popular


def test_too_large_and_too_many_are_refused(make_app):
    app = make_app(max_events_bytes=100_000, max_pending_events=10)

    large = send(app, *(click(f"e{i}", "x" * 500) for i in range(300)))
    assert (large.status, large.error["code"]) == (413, "too_large")
    assert "100000 bytes" in large.error["message"]
    many = send(app, *(click(f"e{i}") for i in range(11)))
    assert (many.status, many.error["message"]) == (413, "events: 11, at most 10 are taken at a time")
    app.gateway.events._waiting = 5
    busy = send(app, *(click(f"e{i}") for i in range(6)))
    assert (busy.status, busy.headers["retry-after"]) == (429, "1")
    app.gateway.events._waiting = 0
    assert send(app, *(click(f"e{i}") for i in range(10))).json["accepted"] == 10
    # larger than a search's body may be
    assert send(make_app(), *(click(f"f{i}", "x" * 500) for i in range(300))).json["accepted"] == 300


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/events", {"events": []}), ("/v1/identify", {"session_id": "s", "user_id": "u"})]
)
def test_only_keys_of_scope_events_may_write(app, path, body):
    assert app.call("POST", path, body, scope="read").error["code"] == "forbidden"
    assert app.call("POST", path, body, scope=None).status == 401
    assert app.call("POST", path, body, scope="admin").status == 200


def test_a_store_that_does_not_answer_costs_the_newest_events_and_no_answer(app, monkeypatch):
    store = app.gateway.events._store
    send(app, click("e1"))

    def away(*_):
        raise Unavailable("the store does not answer (TimeoutError); try again")

    monkeypatch.setattr(store, "append", away)
    monkeypatch.setattr(store, "history", away)
    monkeypatch.setattr(store, "identify", away)

    refused = send(app, click("e2"))
    assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "unavailable", "1")
    assert app.call("POST", "/v1/identify", {"session_id": "s", "user_id": "u"}, scope="events").status == 503
    answer = app.call("POST", "/v1/recommend", {"user_id": "ann"}).json
    assert answer["hits"]
    assert answer["coverage"]["behavior"] == "failed"
    assert answer["coverage"]["degraded"]
    assert "lately is not known" in answer["coverage"]["why"]
    assert not app.call("POST", "/v1/recommend", {}).json["coverage"]["degraded"]


def test_requests_at_once_are_made_durable_together(ws):
    store = open_store(f"sqlite:///{ws.path('store', 'live.db')}")
    appended = []
    append = store.append

    def slow(events, marks):
        appended.append(len(events))
        time.sleep(0.05)
        return append(events, marks)

    store.append = slow

    async def main():
        events = Events(ServeConfig(workspace=ws.uri), store, Telemetry(), Bars(ws))
        return await asyncio.gather(*(events.take([click(f"e{i}"), click(f"f{i}"), {}]) for i in range(40)))

    answers = asyncio.run(main())
    store.close()

    assert [answer["accepted"] for answer in answers] == [2] * 40
    assert sorted(answer["offset"] for answer in answers) == list(range(2, 81, 2))
    assert sum(appended) == 80
    assert len(appended) <= 2


def test_nothing_that_a_shopper_did_is_logged(app, caplog, monkeypatch):
    monkeypatch.setattr(app.gateway.events._store, "append", lambda *_: 1 / 0)
    with caplog.at_level(logging.DEBUG):
        answer = send(app, click("secret-event", "secret-item", "secret-user"), {"type": "secret-type"})
    assert answer.status == 500
    assert "secret" not in caplog.text
    assert "secret" not in answer.body.decode()


def test_metrics_count_what_became_of_each(app):
    send(app, click("e1"), click("e1"), {})
    text = app.call("GET", "/metrics", scope="admin").body.decode()
    for state in ("accepted", "duplicate", "rejected"):
        assert f'rayrec_events_total{{state="{state}"}} 1.0' in text


def test_where_events_are_kept(tmp_path):
    ws = Workspace.open(tmp_path)
    config = ServeConfig(workspace=ws.uri)
    assert store_url(config, ws, 1) == f"sqlite:///{tmp_path}/store/live.db"
    assert store_url(config, ws, 2) is None
    redis = ServeConfig(workspace=ws.uri, store="redis://cache:6379/0")
    assert store_url(redis, ws, 9) == "redis://cache:6379/0"
    with pytest.raises(SchemaError, match="SQLite is for one machine, this cluster has 2 nodes"):
        store_url(ServeConfig(workspace=ws.uri, store="sqlite:///x.db"), ws, 2)
    with pytest.raises(NotFound, match="keeps nothing"):
        asyncio.run(of_store(None, None))
