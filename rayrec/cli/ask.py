"""Asking the index that answers now, without a service."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from rayrec.cli.base import CountOption, ExplainOption, FilterOption, JsonOption, WorkspaceOption, command
from rayrec.errors import SchemaError


@command()
def search(
    query: Annotated[str, typer.Argument(help="Words; empty lists everything, popular first.")] = "",
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A photo of what is wanted.")] = None,
    workspace: WorkspaceOption = "rayrec-demo",
    filters: FilterOption = None,
    facet: Annotated[list[str] | None, typer.Option(help="Field to count, repeatable: brand, category.")] = None,
    sort: Annotated[str, typer.Option(help="relevance, price_asc, price_desc, newest or popular.")] = "relevance",
    mode: Annotated[str, typer.Option(help="hybrid, lexical or dense.")] = "hybrid",
    page: Annotated[int, typer.Option(min=1)] = 1,
    k: CountOption = 10,
    explain: ExplainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search the index that answers now."""
    from rayrec.engine import Engine

    answer = Engine.open(workspace).search(
        query,
        image=None if image is None else image.read_bytes(),
        filters=parse_filters(filters),
        facets=facet or (),
        sort=sort,
        mode=mode,
        page=page,
        k=k,
        explain=explain,
    )
    _show(answer, as_json)


@command()
def recommend(
    user: Annotated[str | None, typer.Option(help="A known shopper; without one, what is popular.")] = None,
    recent: Annotated[list[str] | None, typer.Option(help="Item just looked at, repeatable, oldest first.")] = None,
    workspace: WorkspaceOption = "rayrec-demo",
    filters: FilterOption = None,
    k: CountOption = 10,
    explain: ExplainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Items for a shopper."""
    from rayrec.engine import Engine

    answer = Engine.open(workspace).recommend(
        user_id=user, recent_item_ids=recent or (), filters=parse_filters(filters), k=k, explain=explain
    )
    _show(answer, as_json)


@command()
def similar(
    item_id: str,
    workspace: WorkspaceOption = "rayrec-demo",
    filters: FilterOption = None,
    k: CountOption = 10,
    explain: ExplainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Items like one item."""
    from rayrec.engine import Engine

    answer = Engine.open(workspace).similar(item_id, filters=parse_filters(filters), k=k, explain=explain)
    _show(answer, as_json)


_FILTER = re.compile(r"([^<>=]+)(>=|<=|=|>|<)(.*)", re.DOTALL)
_BOUNDS = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt"}


def parse_filters(texts: list[str] | None) -> dict[str, Any]:
    """['brand=HP', 'brand=Dell', 'price_cents>=1000'] -> {"brand": ["HP", "Dell"], "price_cents": {"gte": 1000}}

    The first sign counts, so values may hold others: 'category=Grocery > Snacks'.
    """
    filters: dict[str, Any] = {}
    for text in texts or ():
        parsed = _FILTER.fullmatch(text)
        if parsed is None:
            raise SchemaError(f"--filter {text!r}: expected field=value, like brand=HP or 'price_cents>=1000'")
        field, sign, value = parsed.groups()
        if sign in _BOUNDS:
            if not re.fullmatch(r"-?\d+", value.strip()):
                raise SchemaError(f"--filter {text!r}: expected a whole number after {sign}")
            added: Any = {_BOUNDS[sign]: int(value)}
        elif field == "available":
            if value.lower() not in ("true", "false"):
                raise SchemaError(f"--filter {text!r}: expected true or false")
            added = value.lower() == "true"
        else:
            added = [value]
        before = filters.get(field, type(added)())
        if type(before) is not type(added) or (isinstance(added, bool) and field in filters):
            raise SchemaError(f"--filter {text!r}: does not go with the filter on {field} before it")
        filters[field] = (
            before | added if isinstance(added, dict) else added if isinstance(added, bool) else before + added
        )
    return filters


def _show(answer: Any, as_json: bool) -> None:
    from rayrec.console import show_answer

    if as_json:
        typer.echo(json.dumps(answer.to_dict()))
    else:
        show_answer(answer)
