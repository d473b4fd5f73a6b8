"""Changes of the catalog through the API: each judged for itself, found by every replica, and never coming back."""

import asyncio
import threading
import time

import numpy as np
import pytest

from rayrec import encoder_exports
from rayrec.config import ServeConfig
from rayrec.engine import Engine
from rayrec.errors import NotFound
from rayrec.serving.backends import FusedBackend
from rayrec.serving.catalog import Catalog
from rayrec.serving.events import count_on
from rayrec.serving.telemetry import Telemetry
from rayrec.store import open_catalog_log, open_store
from tests.fakes import FakeEncoder, make_catalog, make_shoppers, publish_index

MUG = {"item_id": "mug", "title": "Quokka mug", "price_cents": 1299, "category": ["Kitchen", "Mugs"], "brand": "Zenith"}


def put(app, *items, **more):
    return app.call("PUT", "/v1/items", {"items": list(items)}, scope="catalog", **more)


def patch(app, item_id, **fields):
    return app.call("PATCH", f"/v1/items/{item_id}", fields, scope="catalog")


def delete(app, item_id):
    return app.call("DELETE", f"/v1/items/{item_id}", scope="catalog")


def search(app, query, offset=0, **more):
    found = app.call("POST", "/v1/search", {"query": query, "min_offset": offset, **more})
    assert found.status == 200, found.body
    return found.json


def ids(answer):
    return [hit["item_id"] for hit in answer["hits"]]


def item(app, item_id, offset=0):
    search(app, "", offset, page_size=1)
    return app.call("GET", f"/v1/items/{item_id}")


BAD = [
    ({"item_id": "x"}, "title: Field required"),
    ({"title": "x"}, "item_id: Field required"),
    ({**MUG, "title": ""}, "title: "),
    ({**MUG, "price_cents": -1}, "price_cents: "),
    ({**MUG, "price_cents": 1.5}, "price_cents: "),
    ({**MUG, "price_cents": "cheap"}, "price_cents: "),
    ({**MUG, "item_id": "x" * 600}, "item_id: "),
    ({**MUG, "title": "\ud800"}, "title: "),
    ({**MUG, "attributes": {"\ud800": "x"}}, "attributes."),
    ({**MUG, "attributes": ["x"]}, "attributes: "),
    ({**MUG, "category": "Kitchen"}, "category: "),
    ({**MUG, "colour": "red"}, "colour: Extra inputs"),
    ("mug", "Input should be"),
    (None, "Input should be"),
]


def test_the_good_are_taken_and_the_bad_are_answered_one_by_one(app):
    mixed = [each for n, (bad, _) in enumerate(BAD) for each in ({**MUG, "item_id": f"mug{n}"}, bad)]
    answer = put(app, *mixed).json

    assert (answer["accepted"], answer["offset"]) == (len(BAD), len(BAD))
    assert [one["index"] for one in answer["rejected"]] == list(range(1, 2 * len(BAD), 2))
    for one, (_, says) in zip(answer["rejected"], BAD, strict=True):
        assert one["code"] == "invalid_item"
        assert says in one["message"], one
    assert search(app, "quokka", answer["offset"], mode="lexical")["total"] == len(BAD)
    nothing = put(app).json
    assert (nothing["accepted"], nothing["rejected"], nothing["offset"]) == (0, [], None)


def test_an_item_is_found_by_words_and_by_vector_on_every_replica(make_app):
    first, second = make_app(), make_app()
    offset = put(first, MUG).json["offset"]

    for app in (first, second):
        for mode in ("lexical", "dense", "hybrid"):
            answer = search(app, "quokka mug", offset, mode=mode, facets=["brand", "category"])
            assert ids(answer)[0] == "mug"
            assert answer["versions"]["log_offset"] == offset
        assert {"value": "Kitchen > Mugs", "count": 1} in answer["facets"]["category"]
        stored = app.call("GET", "/v1/items/mug").json["item"]
        assert {key: stored[key] for key in MUG} == MUG
        assert abs(stored["updated_us"] / 1e6 - time.time()) < 60
        assert ids(search(app, "", filters={"brand": ["Zenith"]})) == ["mug"]


def test_it_is_found_soon_without_asking_for_its_offset(make_app):
    first, second = make_app(), make_app()
    put(first, MUG)
    deadline = time.monotonic() + 2
    while ids(search(second, "quokka", mode="lexical")) != ["mug"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_patch_merges_fields_and_removes_with_null(app):
    put(app, {**MUG, "attributes": {"color": "red", "size": "s"}, "description": "holds tea"})
    answer = patch(app, "mug", price_cents=999, description=None, attributes={"size": None, "rim": "gold"})

    assert (answer.status, answer.json["accepted"], answer.json["offset"]) == (200, 1, 2)
    stored = item(app, "mug", 2).json["item"]
    assert (stored["price_cents"], stored["description"], stored["title"]) == (999, None, "Quokka mug")
    assert stored["attributes"] == {"color": "red", "rim": "gold"}
    assert ids(search(app, "gold", mode="lexical")) == ["mug"]
    assert search(app, "tea", mode="lexical")["total"] == 0

    patch(app, "mug", attributes=None, title="Wombat cup")
    stored = item(app, "mug", 3).json["item"]
    assert (stored["attributes"], stored["title"]) == ({}, "Wombat cup")
    assert ids(search(app, "wombat cup zenith kitchen mugs", mode="dense"))[0] == "mug"


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"title": None}, "title"), ({"title": ""}, "title"), ({"price_cents": "x"}, "price_cents"), ({"a": 1}, "a"),
     ({"item_id": "other"}, "item_id"), ({"attributes": {"a": 1}}, "attributes.a")],
)  # fmt: skip
def test_a_patch_that_does_not_fit_is_refused(app, fields, field):
    refused = app.call("PATCH", "/v1/items/i0003", fields, scope="catalog")
    assert (refused.status, refused.error["field"]) == (422, field)
    assert search(app, "")["versions"]["log_offset"] == 0


def test_who_patches_what_is_not_there_is_told(app):
    assert patch(app, "nobody", price_cents=1).status == 404
    delete(app, "i0003")
    assert patch(app, "i0003", price_cents=1).status == 404


def test_a_patch_reads_what_another_replica_wrote_a_moment_ago(make_app):
    first, second = make_app(tail_ms=60_000), make_app(tail_ms=60_000)
    put(first, MUG)
    assert patch(second, "mug", price_cents=5).json["accepted"] == 1
    assert delete(first, "mug").json["offset"] == 3
    assert patch(second, "mug", price_cents=6).status == 404


def test_no_price_costs_an_embedding(make_app, monkeypatch):
    embedded = []

    class Counted(FakeEncoder):
        def encode(self, texts, role="passage"):
            embedded.extend(text for text in texts if role == "passage")
            return super().encode(texts, role)

    monkeypatch.setattr(encoder_exports, "open_for", lambda ws, encoder, **_: Counted())
    monkeypatch.setattr(encoder_exports, "open_items", lambda ws, encoder, **_: Counted())
    app = make_app()
    put(app, MUG)
    assert embedded == ["Quokka mug. Zenith. Kitchen Mugs"]
    put(app, {**MUG, "item_id": "same words"}, {**MUG, "price_cents": 1})
    patch(app, "mug", price_cents=2, available=False)
    base = app.call("GET", "/v1/items/i0003").json["item"]
    offset = put(app, {**base, "price_cents": 3}).json["offset"]
    assert item(app, "i0003", offset).json["item"]["price_cents"] == 3
    assert len(embedded) == 1


def test_what_is_deleted_is_gone_everywhere(make_app):
    first, second = make_app(), make_app()
    title = first.call("GET", "/v1/items/i0003").json["item"]["title"]
    answer = delete(first, "i0003").json
    assert (answer["accepted"], answer["offset"]) == (1, 1)

    for app in (first, second):
        for mode in ("lexical", "dense", "hybrid"):
            assert "i0003" not in ids(search(app, title, 1, mode=mode, page_size=500))
        assert app.call("GET", "/v1/items/i0003").status == 404
        assert app.call("GET", "/v1/items/i0003/similar").status == 404
        assert "i0003" not in ids(app.call("POST", "/v1/recommend", {"recent_item_ids": ["i0003"], "k": 500}).json)
    assert delete(first, "never there").json["accepted"] == 1


def test_patches_at_once_all_count(make_app):
    """Each adds a key of its own; merged into what was there before another's, one would be lost."""
    apps = [make_app(), make_app()]
    put(apps[0], MUG)

    def add(app, name):
        for n in range(10):
            assert patch(app, "mug", attributes={f"{name}{n}": "x"}).status == 200

    threads = [threading.Thread(target=add, args=(app, name)) for app, name in zip(apps, "ab", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {f"{name}{n}" for name in "ab" for n in range(10)}
    assert set(item(apps[0], "mug", 21).json["item"]["attributes"]) == expected


def test_a_replica_that_starts_later_knows_all_changes(make_app):
    first = make_app()
    put(first, MUG)
    delete(first, "i0003")
    later = make_app()
    assert ids(search(later, "quokka mug"))[0] == "mug"
    assert later.call("GET", "/v1/items/i0003").status == 404
    assert search(later, "")["versions"]["log_offset"] == 2


def test_a_swap_goes_on_from_its_own_place_in_the_log(make_app, ws):
    app = make_app()
    put(app, MUG)
    delete(app, "i0003")
    items = make_catalog()
    version = publish_index(ws, items, make_shoppers(items)[0], shards=2)  # of before all changes
    ws.promote(index=version)
    deadline = time.monotonic() + 20
    while search(app, "")["versions"]["index"] != version:
        assert time.monotonic() < deadline
    assert ids(search(app, "quokka mug"))[0] == "mug"
    assert app.call("GET", "/v1/items/i0003").status == 404
    delete(app, "i0004")
    ws.rollback()
    deadline = time.monotonic() + 20
    while search(app, "")["versions"]["index"] == version:
        assert time.monotonic() < deadline
    assert ids(search(app, "quokka mug", 3))[0] == "mug"
    assert {app.call("GET", f"/v1/items/{name}").status for name in ("i0003", "i0004")} == {404}


def test_who_opens_the_workspace_without_a_service_has_the_changes_too(app, ws):
    put(app, MUG)
    delete(app, "i0003")
    engine = Engine.open(ws)
    assert engine.search("quokka mug").hits[0].item_id == "mug"
    assert engine.versions["log_offset"] == 2
    with pytest.raises(NotFound):
        engine.item("i0003")


def test_who_asks_for_a_change_that_does_not_come_is_told_in_time(app, monkeypatch):
    refused = app.call("POST", "/v1/search", {"query": "", "min_offset": 7})
    assert (refused.status, refused.error["code"], refused.error["field"]) == (400, "unknown_offset", "min_offset")
    monkeypatch.setattr("rayrec.serving.tail._WAIT_S", 0.1)
    monkeypatch.setattr(type(app.gateway.backend.tail), "_take_some", lambda *_: False)
    put(app, MUG)
    refused = app.call("POST", "/v1/search", {"query": "", "min_offset": 1})
    assert (refused.status, refused.error["code"]) == (503, "unavailable")
    assert "change 1 is not here yet" in refused.error["message"]
    assert "retry-after" in refused.headers


def test_pages_are_of_the_catalog_of_the_first_one_whatever_changes(make_app):
    """On any replica: nothing is shown twice, nothing that the first page's search found is left out."""
    first, second = make_app(), make_app()
    offset = put(first, *[{**MUG, "item_id": f"mug{n:02}", "price_cents": n} for n in range(20)]).json["offset"]
    whole = ids(search(second, "quokka mug", offset, page_size=500, filters={"brand": ["Zenith"]}))
    assert len(whole) == 20

    shown, cursor, apps = [], None, [first, second]
    while True:
        asked = {"page_size": 4, "filters": {"brand": ["Zenith"]}, "cursor": cursor}
        page = search(apps[0], "quokka mug", 0 if cursor else offset, **asked)
        assert page["versions"]["log_offset"] == (offset if cursor else page["versions"]["log_offset"])
        shown += ids(page)
        cursor = page["cursor"]
        if cursor is None:
            break
        delete(first, shown[0])
        put(first, {**MUG, "item_id": f"late{len(shown)}", "title": "Quokka mug, quokka mug"})
        last = patch(second, whole[-1], brand="Another", title="Nothing of the kind").json["offset"]
        search(second, "", last)
        apps.reverse()
    assert shown == whole
    assert search(first, "quokka mug", last, filters={"brand": ["Zenith"]}, page_size=500)["total"] != 20


def test_a_later_page_leaves_what_is_kept_of_other_queries(app):
    put(app, *[{**MUG, "item_id": f"mug{n}"} for n in range(6)])
    asked = {"page_size": 4, "mode": "lexical"}
    page = search(app, "quokka", 6, **asked)
    last = put(app, {**MUG, "item_id": "late"}).json["offset"]
    search(app, "usb cable", last)
    engine = app.gateway.backend._live.current.value
    kept = dict(engine._candidates)
    assert kept
    assert len(ids(search(app, "quokka", cursor=page["cursor"], **asked))) == 2
    assert dict(engine._candidates) == kept


def test_an_id_may_hold_slashes(app):
    put(app, {**MUG, "item_id": "home/mug/1"})
    assert item(app, "home/mug/1", 1).json["item"]["item_id"] == "home/mug/1"
    assert patch(app, "home/mug/1", price_cents=5).json["offset"] == 2
    assert app.call("GET", "/v1/items/home/mug/1/similar").json["hits"]
    assert item(app, "home/mug/1", 2).json["item"]["price_cents"] == 5
    assert delete(app, "home/mug/1").json["offset"] == 3
    assert item(app, "home/mug/1", 3).status == 404


def test_a_store_in_the_place_of_another_counts_on_from_what_was_made_of_that(ws, tmp_path):
    for kind, offset in (("catalog", 500), ("events", 40)):
        with ws.stage(kind) as staged:
            staged.write_bytes("rows", b"")
            staged.publish({"log_offset": offset})
    store, log = open_store(f"sqlite:///{tmp_path}/new.db"), open_catalog_log(f"sqlite:///{tmp_path}/new.db")
    count_on(ws, store, log)
    assert (store.end(), log.newest()) == (40, 500)
    count_on(ws, None, None)
    store.close()
    log.close()


def test_pages_wait_for_the_changes_of_the_page_before(make_app):
    first, second = make_app(), make_app()
    put(first, *[{**MUG, "item_id": f"mug{n}"} for n in range(6)])
    page = search(first, "quokka", 6, page_size=4, mode="lexical")
    rest = search(second, "quokka", page_size=4, mode="lexical", cursor=page["cursor"])
    assert sorted(ids(page) + ids(rest)) == [f"mug{n}" for n in range(6)]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("PUT", "/v1/items", {"items": []}), ("PATCH", "/v1/items/i0003", {}), ("DELETE", "/v1/items/i0003", None)],
)
def test_only_a_key_of_the_catalog_may_change_it(app, method, path, body):
    for scope in ("read", "events"):
        assert app.call(method, path, body, scope=scope).status == 403
    for scope in ("catalog", "admin"):
        assert app.call(method, path, body, scope=scope).status in (200, 404)
    assert app.call("POST", "/v1/search", {}, scope="catalog").status == 403


def test_more_than_can_be_made_durable_is_refused(make_app):
    app = make_app(max_pending_items=2)
    refused = put(app, *[{**MUG, "item_id": f"m{n}"} for n in range(3)])
    assert (refused.status, refused.error["code"]) == (413, "too_large")
    assert put(app, MUG).status == 200


def test_changes_that_wait_too_long_are_pushed_back(make_app, ws, tmp_path):
    """While two wait for the disk, no third is taken."""
    app = make_app()
    config = ServeConfig(workspace=ws.uri, max_pending_items=2)
    log = open_catalog_log(f"sqlite:///{tmp_path}/slow.db")
    slow = log.change
    held = threading.Event()

    def change(*args):
        held.wait(5)
        return slow(*args)

    log.change = change

    async def scenario():
        catalog = Catalog(config, log, app.gateway.backend, Telemetry())
        waiting = asyncio.create_task(catalog.put([MUG, {**MUG, "item_id": "m2"}]))
        await asyncio.sleep(0.3)
        with pytest.raises(Exception, match="more changes than can be made durable"):
            await catalog.put([{**MUG, "item_id": "m3"}])
        held.set()
        return (await waiting)["accepted"], (await catalog.put([{**MUG, "item_id": "m3"}]))["accepted"]

    assert asyncio.run(scenario()) == (2, 1)
    log.close()


def test_a_service_without_a_store_says_so(make_app):
    app = make_app()
    app.gateway.catalog = None
    refused = put(app, MUG)
    assert refused.status == 404
    assert "name a store in its config" in refused.error["message"]


def test_a_replica_makes_the_vectors_that_nobody_left(ws, tmp_path):
    """As of a change that was taken while another encoder answered."""
    log = open_catalog_log(f"sqlite:///{ws.root}/store/live.db")
    from rayrec.data.catalog import content_hash, item_text
    from rayrec.schema import ITEMS
    from rayrec.store import Wanted

    full = {**dict.fromkeys(ITEMS.names), **MUG}
    log.change([Wanted("mug", MUG, content_hash(item_text(full)).hex(), 1)], {})
    backend = FusedBackend(ServeConfig(workspace=ws.uri), Telemetry(), log)
    engine = backend._live.current.value
    vector = engine.shards.vectors(np.array([engine.columns.row("mug")]))[0]
    np.testing.assert_allclose(vector, FakeEncoder().encode([item_text(full)])[0], atol=1e-6)
    log.close()


def test_a_failing_encoder_keeps_items_out_and_loses_nothing(make_app, monkeypatch):
    class Failing(FakeEncoder):
        fails = True

        def encode(self, texts, role="passage"):
            if self.fails and role == "passage":
                raise RuntimeError("secret words")
            return super().encode(texts, role)

    failing = Failing()
    monkeypatch.setattr(encoder_exports, "open_for", lambda ws, encoder, **_: failing)
    monkeypatch.setattr(encoder_exports, "open_items", lambda ws, encoder, **_: failing)
    app = make_app()
    refused = put(app, MUG)
    assert refused.status == 500
    assert "secret" not in refused.body.decode()
    failing.fails = False
    assert put(app, MUG).json["offset"] == 1
