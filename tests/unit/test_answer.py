import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.answer import Answer, Coverage, Hit, cursor_index, fingerprint, make_cursor, read_cursor
from rayrec.errors import InvalidRequest

REQUEST = fingerprint("pizza", {"brand": ["Acme"]}, "relevance", "hybrid", 24)
PARTS = "lexical dense"


def _encoded(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


def _refusal(cursor, index="v1", request=REQUEST):
    with pytest.raises(InvalidRequest) as caught:
        read_cursor(cursor, index, request, PARTS)
    assert caught.value.field == "cursor"
    return caught.value.code


@settings(max_examples=40, deadline=None)
@given(index=st.text(), page=st.integers(1))
def test_a_cursor_carries_its_page_and_is_safe_in_a_url(index, page):
    cursor = make_cursor(index, REQUEST, page, PARTS)
    assert read_cursor(cursor, index, REQUEST, PARTS) == page
    assert cursor_index(cursor) == index
    assert cursor.replace("-", "").replace("_", "").isalnum()


def test_a_cursor_of_another_index_is_stale():
    assert _refusal(make_cursor("v0", REQUEST, 2, PARTS)) == "stale_cursor"


def test_a_cursor_of_answers_by_other_parts_is_stale():
    assert _refusal(make_cursor("v1", REQUEST, 2, "lexical")) == "stale_cursor"


def test_a_cursor_of_another_request_is_refused():
    assert _refusal(make_cursor("v1", fingerprint("cable"), 2, PARTS)) == "invalid_cursor"


@pytest.mark.parametrize("page", [0, -1, 1.5, "2", None, [1]])
def test_a_cursor_with_a_forged_page_is_refused(page):
    assert _refusal(_encoded({"i": "v1", "r": REQUEST, "p": page, "c": PARTS})) == "invalid_cursor"


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "=",
        "abc",
        "é",
        "\x00",
        make_cursor("v1", REQUEST, 2, PARTS)[:-4],
        "!" * 8,
        _encoded("x"),
        _encoded([1]),
        _encoded({}),
    ],
)
def test_garbage_is_refused(cursor):
    assert _refusal(cursor) == "invalid_cursor"


def test_a_cursor_nested_too_deep_is_refused():
    assert _refusal(base64.urlsafe_b64encode(b"[" * 100_000).decode()) == "invalid_cursor"


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_no_text_breaks_the_reading_of_a_cursor(text):
    assert _refusal(text) == "invalid_cursor"
    assert cursor_index(text) is None


def test_a_fingerprint_is_stable_and_tells_requests_apart():
    assert fingerprint("pizza", {"a": 1, "b": 2}) == fingerprint("pizza", {"b": 2, "a": 1})
    assert fingerprint("pizza", None) != fingerprint("pizza", {"a": 1})
    assert REQUEST == "14160bf6331903f9"


def test_an_answer_is_plain_json_and_leaves_out_absent_reasons():
    why = [{"part": "lexical", "weight": 1.0, "text": "says 'pizza'"}]
    answer = Answer(
        request_id="r",
        hits=[Hit("a", 0.5, {"item_id": "a"}), Hit("b", 0.25, {"item_id": "b"}, why)],
        total=2,
        total_is_exact=True,
        facets={"brand": [{"value": "Acme", "count": 2}]},
        page=1,
        cursor=None,
        took_ms=1.5,
        coverage=Coverage(lexical="ok", dense="failed", degraded=True, why="the encoder failed"),
        versions={"index": "v1"},
    )
    values = answer.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["hits"] == [
        {"item_id": "a", "score": 0.5, "item": {"item_id": "a"}},
        {"item_id": "b", "score": 0.25, "item": {"item_id": "b"}, "reasons": why},
    ]
    assert values["coverage"] == {
        "lexical": "ok",
        "dense": "failed",
        "image": "skipped",
        "behavior": "skipped",
        "rerank": "skipped",
        "degraded": True,
        "why": "the encoder failed",
    }
