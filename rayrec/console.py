"""How results look in a terminal."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rayrec.answer import Answer

if TYPE_CHECKING:
    from rayrec.pipelines.pool import Progress as OnProgress

out = Console()
err = Console(stderr=True)


@contextlib.contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> "Iterator[OnProgress | None]":
    """A bar on stderr with rows/s and time left, fed through the yielded function; None if quiet."""
    if quiet:
        yield None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} rows/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
    )
    with bar:
        task = bar.add_task(title, total=None, rate="-")
        yield lambda done, total, rate: bar.update(task, completed=done, total=total, rate=f"{rate:,.0f}")


@contextlib.contextmanager
def fit_bar() -> "Iterator[Callable[[dict[str, Any]], None]]":
    """A bar on stderr of a fit's steps, with its loss and its score on held-out data."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("starting", total=None)

        def told(progress: dict[str, Any]) -> None:
            text = "loss {loss:.3f}, held out {score:.4f}, best {best:.4f}".format(**progress)
            bar.update(task, completed=progress["step"], total=progress["steps"], description=text)

        yield told


def show_error(error: Exception) -> None:
    """One line on stderr, whatever brackets the message holds."""
    err.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)


def show_answer(answer: Answer) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in (("", "right"), ("item", "left"), ("title", "left"), ("brand", "left"), ("price", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("score", justify="right")
    for number, hit in enumerate(answer.hits, 1):
        item = hit.item
        price = item["price_cents"]
        table.add_row(
            str(number),
            escape(hit.item_id),
            escape(item["title"]),
            escape(item["brand"] or ""),
            "" if price is None else f"{price / 100:,.2f} {escape(item['currency'] or '')}",
            f"{hit.score:.3f}",
        )
        for reason in hit.reasons or ():
            why = f"[dim]{reason['weight']:.0%} {reason['part']}: {escape(reason['text'])}[/dim]"
            table.add_row("", "", why, "", "", "")
    out.print(table)
    for name, counts in answer.facets.items():
        out.print(f"[bold]{escape(name)}[/bold] {escape(_facet_text(counts))}")
    about = "" if answer.total_is_exact else "at least "
    out.print(f"[dim]{about}{answer.total} found in {answer.took_ms:.1f} ms, index {answer.versions['index']}[/dim]")
    if answer.coverage.degraded:
        out.print(f"[yellow]degraded: {escape(str(answer.coverage.why))}[/yellow]")


def _facet_text(counts: Any) -> str:
    if isinstance(counts, Mapping):
        return ", ".join(f"{r['gte'] / 100:,.2f} to {r['lt'] / 100:,.2f}: {r['count']}" for r in counts["ranges"])
    return ", ".join(f"{c['value']}: {c['count']}" for c in counts[:10])


def show_values(values: Mapping[str, Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in values.items():
        table.add_row(f"[bold]{name}[/bold]", escape(str(value)))
    out.print(table)
