"""How a search should and should not change with its words."""

from pathlib import Path

import pytest

from rayrec.engine import Engine
from tests.fakes import build_engine, make_items


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    titles = ["Red running shoe", "Blue running shoe", "Red dress", "Shoe polish", "Trail runner's bottle"]
    return build_engine(tmp_path, make_items({"item_id": f"i{n}", "title": title} for n, title in enumerate(titles)))


def ids(engine: Engine, query: str, **options: object) -> list[str]:
    return [hit.item_id for hit in engine.search(query, **options).hits]  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", ["RED SHOE", "  red   shoe ", "shoe red", "réd shoes"])
def test_case_space_order_accent_and_number_do_not_change_word_matches(engine: Engine, variant: str):
    assert ids(engine, variant, mode="lexical") == ids(engine, "red shoe", mode="lexical")


def test_an_item_that_says_more_of_the_query_comes_first(engine: Engine):
    assert ids(engine, "red shoe")[0] == "i0"


def test_a_further_word_never_loses_a_match(engine: Engine):
    assert set(ids(engine, "shoe", mode="lexical")) <= set(ids(engine, "shoe bottle", mode="lexical"))
