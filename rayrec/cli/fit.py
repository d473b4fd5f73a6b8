"""Fitting encoders, and the ranking of searches, to the shop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from rayrec.cli.base import AddressOption, ConfigOption, JsonOption, WorkspaceOption, app, command, print_values

if TYPE_CHECKING:
    from rayrec.pipelines.fit import FitSummary

fit_app = typer.Typer(
    no_args_is_help=True,
    help="Fit an encoder, or the ranking of searches, to the shop's own data; promoted only if it is better on "
    "held-out data.",
)
app.add_typer(fit_app, name="fit")


@command(fit_app)
def text(
    workspace: WorkspaceOption, config: ConfigOption = None, address: AddressOption = None, as_json: JsonOption = False
) -> None:
    """Fit the text encoder to how the shop names things: words of titles, categories, searches.

    Afterwards set `encoder: {model: fitted}` and run 'rayrec index': items keep their vectors, queries get better ones.
    """
    from rayrec.config import FitTextConfig
    from rayrec.pipelines.fit_text import fit_text
    from rayrec.workspace import Workspace

    with _progress(as_json) as told:
        summary = fit_text(
            FitTextConfig.load(config), Workspace.open(workspace, create=False), address=address, on_progress=told
        )
    _tell(summary, "set 'encoder: {model: fitted}' in the index config and run 'rayrec index'", as_json)


@command(fit_app)
def images(
    workspace: WorkspaceOption, config: ConfigOption = None, address: AddressOption = None, as_json: JsonOption = False
) -> None:
    """Fit an image model to the shop's pictures, so that photos find items and pictures help to find them.

    Afterwards set `images: {model: fitted}` in the embed and index configs, and run both.
    """
    from rayrec.config import FitImagesConfig
    from rayrec.pipelines.fit_images import fit_images
    from rayrec.workspace import Workspace

    with _progress(as_json) as told:
        summary = fit_images(
            FitImagesConfig.load(config), Workspace.open(workspace, create=False), address=address, on_progress=told
        )
    _tell(summary, "set 'images: {model: fitted}' in the embed and index configs and run both", as_json)


@command(fit_app)
def trimmed(
    workspace: WorkspaceOption, config: ConfigOption = None, address: AddressOption = None, as_json: JsonOption = False
) -> None:
    """Teach a text encoder of fewer layers to stand in for queries, and judge it in int8.

    Afterwards set `encoder: {model: fitted, precision: int8}` in the index config and run 'rayrec index'.
    """
    from rayrec.config import TrimConfig
    from rayrec.pipelines.fit_trimmed import fit_trimmed
    from rayrec.workspace import Workspace

    with _progress(as_json) as told:
        summary = fit_trimmed(
            TrimConfig.load(config), Workspace.open(workspace, create=False), address=address, on_progress=told
        )
    _tell(
        summary, "set 'encoder: {model: fitted, precision: int8}' in the index config and run 'rayrec index'", as_json
    )


@command(fit_app)
def ranking(workspace: WorkspaceOption, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Learn from clicks and purchases what a search weighs beside words and vectors: price, popularity, the shopper.

    Corrected for the place an item was shown at. Without searches that tell what they showed, it learns from what
    shoppers bought next in a category. It answers at once if it gains on queries that it did not learn from.
    """
    from rayrec.config import FitRankingConfig
    from rayrec.console import progress_bar
    from rayrec.pipelines.fit_ranking import fit_ranking
    from rayrec.workspace import Workspace

    with progress_bar("answers", quiet=as_json) as told:
        summary = fit_ranking(FitRankingConfig.load(config), Workspace.open(workspace, create=False), on_progress=told)
    print_values(summary.to_dict(), as_json)
    if not as_json:
        said = "promoted" if summary.promoted else "not promoted: the gain on held-out queries is not clear of zero"
        typer.echo(said, err=True)


def _tell(summary: "FitSummary", remedy: str, as_json: bool) -> None:
    print_values(summary.to_dict(), as_json)
    if not as_json:
        said = (
            f"promoted: {remedy}"
            if summary.promoted
            else "not promoted: the gain on held-out data is not clear of zero"
        )
        typer.echo(said, err=True)


@contextmanager
def _progress(quiet: bool) -> "Iterator[Callable[[dict[str, Any]], None] | None]":
    """A bar of steps with loss and score."""
    if quiet:
        yield None
        return
    from rayrec.console import fit_bar

    with fit_bar() as told:
        yield told
