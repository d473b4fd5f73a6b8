"""Features of items and shoppers, by hand."""

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data.histories import DAY_US, SEARCH, Histories
from rayrec.models.features import FeatureSchema, collate
from rayrec.schema import ITEMS

ROWS = [
    {"item_id": "a", "title": "A", "brand": "HP", "category": ["Office", "Ink"], "price_cents": 999},
    {"item_id": "b", "title": "B", "brand": "HP", "category": ["Office"], "attributes": [("color", "red")]},
    {"item_id": "c", "title": "C", "brand": "Rare", "price_cents": 99_999, "attributes": [("color", "Red")]},
]
ITEMS_TABLE = pa.Table.from_pylist(ROWS, schema=ITEMS)


def schema(min_count=2, max_tokens=10):
    return FeatureSchema.fit(ITEMS_TABLE, 4, 0, min_count=min_count, max_tokens=max_tokens)


def test_tokens_are_what_several_items_share_whatever_their_case():
    assert schema().tokens == ("brand=hp", "category=office", "color=red")
    assert schema(max_tokens=1).tokens == ("brand=hp",)
    assert "category=office > ink" in schema(min_count=1).tokens


def test_content_by_hand():
    content = schema().content(ITEMS_TABLE, np.ones((3, 4), np.float32), None)
    assert [set(row[row > 0]) for row in content.attributes] == [{1, 2}, {1, 2, 3}, {3}]
    assert content.has_image.tolist() == [[0], [0], [0]]
    assert content.price[:, 2].tolist() == [1, 0, 1]
    assert content.price[0, 0] == pytest.approx(-1, abs=1e-5)
    assert content.price[2, 0] == pytest.approx(1, abs=1e-5)
    assert content.price[1].tolist() == [0, 0, 0]


def test_an_unknown_attribute_of_a_new_item_is_passed_over():
    new = pa.Table.from_pylist([{"item_id": "x", "title": "X", "brand": "Nobody"}], schema=ITEMS)
    content = schema().content(new, np.ones((1, 4), np.float32), None)
    assert not content.attributes.any()


def test_the_digest_is_of_what_features_mean_and_survives_a_round():
    there = schema()
    assert FeatureSchema.from_dict(there.to_dict()) == there
    assert FeatureSchema.from_dict(there.to_dict()).digest == there.digest
    assert schema(max_tokens=1).digest != there.digest


def test_collate_keeps_the_last_events_and_pads_at_the_end():
    histories = Histories(
        np.array(["u", "v", "w"], object),
        np.array([0, 3, 4, 4]),
        np.array([5, -1, 7, 2]),
        np.array([0, SEARCH, 3, 1], np.int8),
        np.array([0, 30_000_000, 30_000_000 + 2 * DAY_US, 9 * DAY_US]),
        np.arange(4),
        np.array([-1, 0, -1, -1]),
        ["tea"],
    )
    batch = collate(histories, 2)
    assert batch.rows.tolist() == [[-1, 7], [2, -1], [-1, -1]]
    assert batch.queries.tolist() == [[0, -1], [-1, -1], [-1, -1]]
    assert batch.kinds.tolist() == [[SEARCH + 1, 4], [2, 0], [0, 0]]
    assert batch.lengths.tolist() == [2, 1, 0]
    # 30 s after the event before it, two days after that; v's only event follows none
    assert batch.gaps.tolist() == [[2, 7], [0, 0], [0, 0]]
    whole = collate(histories, 5)
    assert whole.rows[0].tolist() == [5, -1, 7]
    assert whole.gaps[0, 0] == 0
