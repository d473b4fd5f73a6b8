"""Changes over a base: the index that took them up against the shop as it should be, on one shard and on three."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrec.data.catalog import content_hash, item_text
from rayrec.engine import Engine
from rayrec.errors import NotFound
from rayrec.item_vectors import ItemVectors
from rayrec.schema import ITEMS, Change
from rayrec.serving.tail import Following
from tests.fakes import (
    BRANDS,
    CATEGORIES,
    FakeEncoder,
    build_engine,
    make_catalog,
    make_shoppers,
)

ENCODER = FakeEncoder()
COLORS = ["red", "green", "violet"]


def embed(contents: Mapping[str, str]) -> dict[str, np.ndarray]:
    return dict(zip(contents, ENCODER.encode(list(contents.values())), strict=True))


class Vectors(ItemVectors):
    """Not asked."""

    def __init__(self) -> None:
        pass


def record(item_id: str, title: str, **more: Any) -> dict[str, Any]:
    return {**dict.fromkeys(ITEMS.names), "attributes": {}, "item_id": item_id, "title": title, **more}


def put(offset: int, item: dict[str, Any]) -> Change:
    return Change(offset, item["item_id"], item, content_hash(item_text(item)).hex(), offset)


def gone(offset: int, item_id: str) -> Change:
    return Change(offset, item_id, None, None, offset)


def apply(engine: Engine, *changes: Change) -> None:
    engine.update(engine.live.plan(changes, embed), changes[-1].offset)
    engine.live.took(changes[-1].offset)


@pytest.fixture(params=[1, 3])
def shards(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def engine(tmp_path: Path, shards: int) -> Engine:
    items = make_catalog(120)
    return build_engine(tmp_path, items, make_shoppers(items)[0], shards=shards)


def found(engine: Engine, query: str, **options: Any) -> list[str]:
    return [hit.item_id for hit in engine.search(query, k=1_000, **options).hits]


def random_changes(rng: np.random.Generator, shop: dict[str, dict[str, Any]], n: int, first: int) -> list[Change]:
    """Makes them in `shop` too."""
    changes = []
    for offset in range(first, first + n):
        known = sorted(shop)
        kind = rng.random()
        if kind < 0.25 and known:
            changes.append(gone(offset, known[rng.integers(len(known))]))
            del shop[changes[-1].item_id]
            continue
        if kind < 0.5 and known:  # a price, of what is there
            item = {**shop[known[rng.integers(len(known))]], "price_cents": int(rng.integers(1, 3_000))}
        else:
            name = f"i{rng.integers(160):04d}"
            item = record(
                name,
                " ".join(rng.choice(["pizza", "walnut", "usb", "cable", "zebra", "red"], 3)),
                brand=[None, *BRANDS, "Zenith"][rng.integers(6)],
                category=[None, ["Toys", "Zebras"], *CATEGORIES][rng.integers(7)],
                price_cents=[None, int(rng.integers(1, 3_000))][rng.integers(2)],
                attributes={"color": COLORS[rng.integers(3)]} if rng.random() < 0.7 else {},
                available=[None, True, False][rng.integers(3)],
            )
        shop[item["item_id"]] = item
        changes.append(put(offset, item))
    return changes


def shop_of(engine: Engine) -> dict[str, dict[str, Any]]:
    return {each["item_id"]: each for each in engine.columns.records(range(engine.columns.n))}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("at_once", [1, 7, 60])
def test_what_is_there_is_what_the_changes_say(engine: Engine, seed: int, at_once: int) -> None:
    rng = np.random.default_rng(seed)
    shop = shop_of(engine)
    changes = random_changes(rng, shop, 120, 1)
    for first in range(0, len(changes), at_once):
        apply(engine, *changes[first : first + at_once])

    assert engine.versions["log_offset"] == engine.live.offset == 120
    assert sorted(found(engine, "", sort="price_asc")) == sorted(shop)
    assert {item_id: engine.item(item_id) for item_id in shop} == shop
    for item_id in set(engine.columns.rows) - set(shop):
        with pytest.raises(NotFound):
            engine.item(item_id)
    prices = [engine.item(item_id)["price_cents"] for item_id in found(engine, "", sort="price_desc")]
    assert prices == sorted((p for p in prices if p is not None), reverse=True) + [None] * prices.count(None)

    for field, values in {
        "brand": [*BRANDS, "Zenith"],
        "category": ["Toys", "Grocery", "Grocery > Snacks"],
        "attributes.color": COLORS,
    }.items():
        facet = {entry["value"]: entry["count"] for entry in engine.search("", facets=[field]).facets[field]}
        for value in values:
            expected = {item_id for item_id, item in shop.items() if _has(item, field, value)}
            assert set(found(engine, "", filters={field: [value]})) == expected
            assert facet.get(value, 0) == len(expected)
    cheap = {i for i, item in shop.items() if item["price_cents"] is not None and item["price_cents"] < 500}
    assert set(found(engine, "", filters={"price_cents": {"lt": 500}})) == cheap
    for word in ("zebra", "walnut"):
        says = {i for i, item in shop.items() if word in item_text(item).lower().replace(".", " ").split()}
        assert says <= set(found(engine, word, mode="lexical"))
        assert all(word[:5] in item_text(shop[i]).lower() for i in found(engine, word, mode="lexical"))
    ids = sorted(shop)
    vectors = ENCODER.encode([item_text(shop[i]) for i in ids])
    rows = np.array([engine.columns.row(i) for i in ids])
    np.testing.assert_allclose(engine.shards.vectors(rows), vectors, atol=1e-6)


def _has(item: dict[str, Any], field: str, value: str) -> bool:
    if field == "category":
        return " > ".join(item["category"] or ()).startswith(value)
    if field == "brand":
        return item["brand"] == value
    return item["attributes"].get("color") == value


def test_answers_do_not_depend_on_how_many_changes_come_at_once(tmp_path: Path, shards: int) -> None:
    items = make_catalog(120)
    engines = []
    for n, at_once in enumerate((1, 13, 200)):
        engine = build_engine(tmp_path / str(n), items, make_shoppers(items)[0], shards=shards)
        changes = random_changes(np.random.default_rng(9), shop_of(engine), 200, 1)
        for first in range(0, 200, at_once):
            apply(engine, *changes[first : first + at_once])
        engines.append(engine)

    for query in ("zebra pizza", "acme usb cable", ""):
        answers = [engine.search(query, k=500, facets=["brand", "category"]) for engine in engines]
        assert len({str([(h.item_id, h.score) for h in a.hits]) for a in answers}) == 1
        assert len({str(a.facets) for a in answers}) == 1
    assert len({str(engine.columns.rows) for engine in engines}) == 1


def answers(engine: Engine) -> list[str]:
    """All that a page may show of some searches."""
    asked = [("zebra pizza", "hybrid"), ("acme usb cable", "hybrid"), ("red walnut", "dense"), ("", "hybrid")]
    found = [engine.search(query, mode=mode, k=300, facets=["brand", "category"]) for query, mode in asked]
    return [str(([(h.item_id, round(h.score, 9), h.item) for h in a.hits], a.facets, a.versions)) for a in found]


@pytest.mark.parametrize("at_once", [1, 7, 40])
def test_a_catalog_of_before_is_had_back_for_a_moment(tmp_path: Path, shards: int, at_once: int) -> None:
    engine = build_engine(tmp_path, make_catalog(120), shards=shards)
    following = Following(engine, engine.live, engine.update, engine.shards.taken_back, Vectors())
    changes = random_changes(np.random.default_rng(5), shop_of(engine), 120, 1)
    seen = {0: answers(engine)}
    for first in range(0, 120, at_once):
        part = changes[first : first + at_once]
        updates = engine.live.plan(part, embed)
        back = engine.shards.taken_back(updates)
        engine.update(updates, part[-1].offset)
        engine.live.took(part[-1].offset, zip(updates, back, strict=True))
        seen[part[-1].offset] = answers(engine)
    now = answers(engine)

    for offset in sorted(seen, reverse=True):
        with following.as_of(offset):
            assert answers(engine) == seen[offset], offset
        assert answers(engine) == now
    one_by_one = build_engine(tmp_path / "other", make_catalog(120), shards=shards)
    for change in changes[:33]:  # in the middle of what was taken up at once
        apply(one_by_one, change)
    with following.as_of(33):
        assert answers(engine) == answers(one_by_one)


def test_what_is_too_long_ago_is_answered_from_the_present(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayrec.retrieval.live.KEPT", 3)
    for offset in range(1, 6):
        updates = engine.live.plan([put(offset, record("new", f"quokka number {offset}"))], embed)
        back = engine.shards.taken_back(updates)
        engine.update(updates, offset)
        engine.live.took(offset, zip(updates, back, strict=True))
    assert engine.live.since(1) is None
    assert [step.offset for step, _ in engine.live.since(2) or []] == [3, 4, 5]
    following = Following(engine, engine.live, engine.update, engine.shards.taken_back, Vectors())
    for offset, number in ((1, 5), (2, 2), (4, 4), (9, 5)):
        with following.as_of(offset):
            assert engine.item("new")["title"] == f"quokka number {number}"
    assert engine.item("new")["title"] == "quokka number 5"


def test_an_item_put_again_as_it_was_changes_no_answer(engine: Engine) -> None:
    before = [(h.item_id, h.score) for h in engine.search("acme usb cable", k=500).hits]
    rows = list(range(engine.columns.n))
    items = engine.columns.records(rows)
    said = [{**item, "description": "for a moment"} for item in items]

    apply(engine, *[put(1 + i, item) for i, item in enumerate(said)])
    assert [(h.item_id, h.score) for h in engine.search("acme usb cable", k=500).hits] != before
    apply(engine, *[put(1_000 + i, item) for i, item in enumerate(items)])

    after = [(h.item_id, h.score) for h in engine.search("acme usb cable", k=500).hits]
    assert [i for i, _ in after] == [i for i, _ in before]  # their words stand beside the index now, scored as in it
    np.testing.assert_allclose([s for _, s in after], [s for _, s in before], atol=1e-6)


def test_what_could_not_be_taken_up_is_planned_anew(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever failed, and however far it had come."""
    change = put(1, record("new", "quokka plush toy", brand="Zenith")), gone(2, "i0000")

    def fails(*_: Any) -> None:
        raise RuntimeError("out of memory")

    for broken in ("update", "padded"):
        with monkeypatch.context() as patched:
            target = type(engine.columns) if broken == "update" else type(engine.scorer.behavior)
            patched.setattr(target, broken, fails)
            with pytest.raises(RuntimeError):
                apply(engine, *change)
    apply(engine, *change)
    assert found(engine, "quokka plush", mode="lexical") == ["new"]
    assert found(engine, "quokka plush toy zenith", mode="dense")[0] == "new"
    assert "i0000" not in found(engine, "")


def test_a_new_price_costs_no_embedding_and_moves_no_word(engine: Engine) -> None:
    item = {**engine.item("i0003"), "price_cents": 77, "available": False}

    def refuse(contents: Mapping[str, str]) -> dict[str, np.ndarray]:
        raise AssertionError(f"{len(contents)} contents to embed")

    updates = engine.live.plan([put(1, item)], refuse)
    assert [(u.words, u.vector) for u in updates] == [(None, None)]
    engine.update(updates, 1)
    assert engine.item("i0003")["price_cents"] == 77
    assert "i0003" in found(engine, "", filters={"price_cents": {"gte": 77, "lte": 77}, "available": False})
    assert "i0003" not in [hit.item_id for hit in engine.recommend(k=500).hits]


def test_what_is_deleted_is_nowhere_and_comes_back_only_when_put_again(engine: Engine) -> None:
    item = engine.item("i0000")
    title = item["title"]
    neighbour = engine.similar("i0000").hits[0].item_id
    apply(engine, gone(1, "i0000"))

    for call in (engine.item, engine.similar):
        with pytest.raises(NotFound):
            call("i0000")
    for mode in ("hybrid", "lexical", "dense"):
        assert "i0000" not in found(engine, title, mode=mode)
    assert "i0000" not in [h.item_id for h in engine.similar(neighbour, k=500).hits]
    assert "i0000" not in [h.item_id for h in engine.recommend(user_id="u0", k=500, recent_item_ids=["i0000"]).hits]
    assert engine.search("").total == engine.columns.n - 1

    apply(engine, put(2, item))
    assert engine.item("i0000") == item
    assert "i0000" in found(engine, title, mode="dense")
    assert "i0000" in found(engine, title, mode="lexical")


def test_a_new_item_is_searched_for_completed_and_likened_to(engine: Engine) -> None:
    apply(engine, put(1, record("new", "quokka plush toy", brand="Zenith")), put(2, record("next", "quokka poster")))

    assert found(engine, "quokka plush")[:2] == ["new", "next"]
    assert "quokka poster" in [each.text for each in engine.suggest("quok")]
    assert engine.similar("new").hits[0].item_id == "next"
    assert "next" in [hit.item_id for hit in engine.recommend(recent_item_ids=["new"]).hits]

    apply(engine, gone(3, "next"))
    assert "quokka poster" not in [each.text for each in engine.suggest("quok")]
    assert [each.text for each in engine.suggest("quok")] == ["quokka plush toy"]


def test_what_came_and_went_at_once_leaves_nothing_but_its_row(engine: Engine) -> None:
    n = engine.columns.n
    apply(
        engine, put(1, record("x", "a moment")), gone(2, "x"), put(3, record("y", "stays for good")), gone(4, "never")
    )

    assert engine.columns.n == n + 2
    assert found(engine, "moment", mode="lexical") == []
    assert found(engine, "stays", mode="lexical") == ["y"]
    with pytest.raises(NotFound):
        engine.item("x")


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_an_index_that_cannot_be_changed_in_place_finds_the_same(tmp_path: Path, kind: str) -> None:
    items = make_catalog(700)
    flat, other = (build_engine(tmp_path / name, items, dense=name) for name in ("flat", kind))
    for engine in (flat, other):
        changes = random_changes(np.random.default_rng(3), shop_of(engine), 150, 1)
        apply(engine, *changes)

    vector = ENCODER.encode(["zebra red cable"])[0]
    exact = flat.shards.nearest(vector, 20)
    near = other.shards.nearest(vector, 20)
    assert len(set(exact.tolist()) & set(near.tolist())) >= 17
    there = other.columns.there
    assert there is not None
    assert there[near].all()
    live = [row for row in range(other.columns.n) if row in other.live._said and there[row]]
    np.testing.assert_allclose(other.shards.vectors(np.array(live)), flat.shards.vectors(np.array(live)), atol=0.02)


def test_what_an_item_was_is_not_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All items get another title again and again, each of words that nothing else says."""
    monkeypatch.setattr("rayrec.retrieval.lexical._SLACK", 100)
    for shard in engine.shards._shards:
        shard.lexical._room = 100
    items = engine.columns.records(range(engine.columns.n))
    words: list[int] = []
    terms: list[int] = []
    for turn in range(20):
        titles = [put(turn * 1_000 + i, {**item, "title": f"title of {turn}"}) for i, item in enumerate(items, 1)]
        apply(engine, *titles)
        beside = [shard.lexical._beside for shard in engine.shards._shards]
        words.append(sum(len(of_term) for of_shard in beside for of_term in of_shard.values()))
        terms.append(sum(map(len, beside)))
    assert words[-1] <= 2 * words[0] + 100 * len(beside)
    assert terms[-1] <= 2 * terms[0]
    assert len(engine.columns._changed) == len(items)
    assert len(found(engine, "19", mode="lexical")) == len(items)
    assert found(engine, "18", mode="lexical") == []


def test_a_facet_asked_for_first_after_changes_counts_them(engine: Engine) -> None:
    """Of attributes that only the base has, only changes have, both and nobody has."""
    items = engine.columns.records(range(4))
    names = ["color", 'ma"t\u00e9riel', "nobody has it"]
    apply(
        engine,
        put(1, {**items[0], "attributes": {names[1]: "bois"}}),
        put(2, {**items[1], "attributes": {"color": "violet", names[1]: "bois"}}),
        put(3, {**items[2], "title": "says color", "attributes": {}}),
    )
    for name in names:
        expected: dict[str, int] = {}
        for each in engine.columns.records(range(engine.columns.n)):
            if value := each["attributes"].get(name):
                expected[value] = expected.get(value, 0) + 1
        answer = engine.search("", facets=[f"attributes.{name}"])
        assert {one["value"]: one["count"] for one in answer.facets[f"attributes.{name}"]} == expected
    assert expected == {}


def test_a_record_read_while_its_item_changes_is_not_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread has what an item said in its hand when the change is taken up."""
    columns = engine.columns
    made = type(columns)._made
    for offset, title in enumerate(["changed", "changed again"], 1):
        before = columns.items.slice(0, 1).to_pylist()[0]
        change = put(offset, {**before, "attributes": {}, "title": title})

        def late(self: Any, rows: Any, change: Change = change) -> Any:
            monkeypatch.undo()
            found = made(self, rows)
            apply(engine, change)
            return found

        columns._records.clear()
        monkeypatch.setattr(type(columns), "_made", late)
        columns.records([0])
        assert columns.records([0])[0]["title"] == title
