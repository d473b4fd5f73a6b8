"""Building: embed, index, evaluate; which version answers; and the state of machine and workspace."""

import contextlib
import json
from typing import Annotated

import typer

from rayrec.cli.base import AddressOption, ConfigOption, JsonOption, WorkspaceOption, command, print_values
from rayrec.errors import SchemaError


@command()
def embed(
    workspace: WorkspaceOption, config: ConfigOption = None, address: AddressOption = None, as_json: JsonOption = False
) -> None:
    """Load a catalog and embed what has no vector yet. Safe to stop and to repeat: finished blocks stay."""
    from rayrec.config import EmbedConfig
    from rayrec.console import progress_bar
    from rayrec.pipelines.embed import embed as run
    from rayrec.workspace import Workspace

    with progress_bar("embedding", quiet=as_json) as on_progress:
        summary = run(EmbedConfig.load(config), Workspace.open(workspace), address=address, on_progress=on_progress)
    _tell_quarantine(summary.quarantined, workspace)
    print_values(summary.to_dict(), as_json)


@command()
def index(
    workspace: WorkspaceOption, config: ConfigOption = None, address: AddressOption = None, as_json: JsonOption = False
) -> None:
    """Build an index of the newest catalog and, unless the config says no, let it answer."""
    from rayrec.config import IndexConfig
    from rayrec.pipelines.index import index as run
    from rayrec.workspace import Workspace

    summary = run(IndexConfig.load(config), Workspace.open(workspace, create=False), address=address)
    _tell_quarantine(summary.quarantined, workspace)
    print_values(summary.to_dict(), as_json)


@command()
def train(
    workspace: WorkspaceOption, config: ConfigOption = None, address: AddressOption = None, as_json: JsonOption = False
) -> None:
    """Train the fusion model on shoppers' events, with Ray Train; it answers if it beats what answers now.

    Safe to stop and to repeat: a run continues from its last epoch.
    """
    from rayrec.config import TrainConfig
    from rayrec.console import fit_bar
    from rayrec.pipelines.train import train as run
    from rayrec.workspace import Workspace

    with fit_bar() if not as_json else contextlib.nullcontext() as told:
        summary = run(
            TrainConfig.load(config), Workspace.open(workspace, create=False), address=address, on_progress=told
        )
    print_values(summary.to_dict(), as_json)
    if not as_json:
        report = f"{workspace}/models/{summary.model}/report.html"
        said = "promoted" if summary.promoted else "not promoted: it does not beat each opponent clear of zero"
        typer.echo(f"{said}; see {report}", err=True)


@command()
def update(
    workspace: WorkspaceOption,
    config: ConfigOption = None,
    address: AddressOption = None,
    every: Annotated[str | None, typer.Option(help="30m, 6h, 1d: go on until stopped, a line of JSON a round.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Go on training the model that answers, on events that came since; it must be better on them, and not forget.

    With too few new events it says so and leaves all as it is.
    """
    from rayrec.config import UpdateConfig
    from rayrec.console import fit_bar
    from rayrec.pipelines.schedule import repeat, seconds_of, until_stopped
    from rayrec.pipelines.update import update as run
    from rayrec.workspace import Workspace

    asked, ws = UpdateConfig.load(config), Workspace.open(workspace, create=False)
    if every is not None:
        every_s = seconds_of(every)
        with until_stopped() as stop:
            repeat(lambda: run(asked, ws, address=address).to_dict(), every_s, stop, typer.echo)
        return
    with fit_bar() if not as_json else contextlib.nullcontext() as told:
        summary = run(asked, ws, address=address, on_progress=told)
    print_values(summary.to_dict(), as_json)
    if not as_json:
        report = "" if summary.model is None else f"; see {workspace}/models/{summary.model}/report.html"
        typer.echo(f"{'promoted' if summary.promoted else 'not promoted'}: {summary.reason}{report}", err=True)


@command()
def evaluate(
    workspace: WorkspaceOption,
    judgements: Annotated[
        str | None, typer.Option(help="Rated queries: CSV, JSONL or Parquet of query, docid, rating.")
    ] = None,
    config: ConfigOption = None,
    fit: Annotated[bool, typer.Option("--fit", help="Save fitted fusion weights; promote them if better.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Judge recommendations on held-out events; or with --judgements, search on rated queries.

    Recommendations: the whole catalog is ranked for each shopper. Writes report.json and report.html under reports/.
    The config is that of 'rayrec train', whose split it takes; a trained model brings its own.
    """
    from rayrec.config import TrainConfig
    from rayrec.engine import Engine
    from rayrec.files import open_filesystem
    from rayrec.pipelines.evaluate import publish_weights, read_judgements, relevance
    from rayrec.pipelines.recommending import evaluate_recommendations
    from rayrec.workspace import Workspace

    ws = Workspace.open(workspace, create=False)
    if judgements is None:
        if fit:
            raise SchemaError("--fit needs --judgements: rated queries to fit the weights of the search to")
        folder, report = evaluate_recommendations(ws, TrainConfig.load(config))
        shown = {name: of_model["all"][report["metric"]] for name, of_model in report["models"].items()}
        print_values(report if as_json else {"metric": report["metric"], **shown}, as_json)
        typer.echo(f"{folder}/report.html", err=True)
        return
    engine = Engine.open(ws)
    result = relevance(engine, read_judgements(*open_filesystem(judgements)))
    values = result.to_dict()
    if fit:
        values["model"], values["promoted"] = publish_weights(ws, engine, result)
    print_values(values, as_json)


@command()
def versions(workspace: WorkspaceOption, as_json: JsonOption = False) -> None:
    """List what is published, and which pair of index and model answers."""
    from rayrec.workspace import KINDS, Workspace

    ws = Workspace.open(workspace, create=False)
    pointer = ws.current()
    current = {"generation": pointer.generation, "index": pointer.index, "model": pointer.model}
    print_values({"current": current, **{kind: ws.versions(kind) for kind in KINDS}}, as_json)


@command()
def promote(
    workspace: WorkspaceOption,
    index: Annotated[str | None, typer.Option(help="Index version that shall answer.")] = None,
    model: Annotated[str | None, typer.Option(help="Model version; 'none' takes it away.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a pair of index and model and let it answer."""
    from rayrec.workspace import Workspace

    if index is None and model is None:
        raise SchemaError("name an --index, a --model, or both; 'rayrec versions' lists them")
    pointer = Workspace.open(workspace, create=False).promote(index=index, model=model)
    print_values({"generation": pointer.generation, "index": pointer.index, "model": pointer.model}, as_json)


@command()
def rollback(workspace: WorkspaceOption, as_json: JsonOption = False) -> None:
    """Let the pair before this one answer again."""
    from rayrec.workspace import Workspace

    pointer = Workspace.open(workspace, create=False).rollback()
    print_values({"generation": pointer.generation, "index": pointer.index, "model": pointer.model}, as_json)


@command()
def prune(
    workspace: WorkspaceOption,
    keep: Annotated[int, typer.Option(min=1, help="Newest index versions that stay, beside the one that answers.")] = 5,
    store: Annotated[str | None, typer.Option(help="Of the service's changes, if not in the workspace.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Take old versions away, and of the log of changes what all that are kept contain."""
    from rayrec.pruning import prune as run
    from rayrec.store import default_store
    from rayrec.workspace import Workspace

    ws = Workspace.open(workspace, create=False)
    print_values(run(ws, keep, store or default_store(ws)).to_dict(), as_json)


@command()
def doctor(
    workspace: Annotated[str | None, typer.Option("--workspace", "-w", help="Check this workspace too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check machine, packages, ports and workspace; say what to do."""
    from dataclasses import asdict

    from rayrec.console import out
    from rayrec.doctor import examine

    checks = list(examine(workspace))
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks]))
    for check in () if as_json else checks:
        color = {"ok": "green", "warn": "yellow", "fail": "red"}[check.state]
        remedy = "" if check.state == "ok" else f"  -> {check.remedy}"
        out.print(f"[{color}]{check.state:4}[/{color}] {check.name}: {check.found}{remedy}", highlight=False)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


def _tell_quarantine(rows: int, workspace: str) -> None:
    if rows:
        typer.echo(f"{rows} rows were set aside with their reasons: {workspace}/quarantine/", err=True)
