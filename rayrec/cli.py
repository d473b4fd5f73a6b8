"""The command line. Every command says what it read, what it did, and where the result is."""

import json
import logging
import re
import shlex
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from rayrec.errors import RayrecError, SchemaError

app = typer.Typer(
    help="Commerce search and recommendation on Ray. Start with: rayrec demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

WorkspaceOption = Annotated[
    str, typer.Option("--workspace", "-w", help="Directory or URI (s3://, gs://) of all artifacts.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="YAML of this stage; see jobs/configs/.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Ray cluster: auto, host:port or ray://host:port. Default: one on this machine.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
FilterOption = Annotated[
    list[str] | None,
    typer.Option("--filter", "-f", help="field=value, repeatable: brand=HP, 'price_cents>=1000', available=true."),
]
CountOption = Annotated[int, typer.Option("--k", "-k", min=1, max=1000, help="How many items.")]
PortOption = Annotated[int, typer.Option(min=1, max=65_535, help="Port of the HTTP service.")]
ExplainOption = Annotated[bool, typer.Option(help="Say for each item why it is there.")]


def _command(group: typer.Typer = app, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose expected errors are one red line and exit code 1, never a traceback."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
            try:
                function(*args, **kwargs)
            except RayrecError as error:
                from rayrec.console import show_error

                show_error(error)
                raise typer.Exit(1) from error

        group.command(**options)(run)
        return run

    return register


def _print(values: dict[str, Any], as_json: bool) -> None:
    from rayrec.console import show_values

    if as_json:
        typer.echo(json.dumps(values))
    else:
        show_values(values)


@_command()
def demo(
    workspace: WorkspaceOption = "rayrec-demo",
    items: Annotated[int, typer.Option(min=100, help="How many of the 20,770 items: the most bought ones.")] = 15_000,
    port: PortOption = 8000,
    check: Annotated[bool, typer.Option("--check", help="Answer a few requests, print one JSON line, exit.")] = False,
) -> None:
    """Load a grocer's catalog and year of purchases, embed, index and serve them (about 2 minutes).

    Ends in a running shop: a web page, an HTTP API with its description, and a key for it. Ctrl-C stops it.
    """
    from rayrec import demo as main_job
    from rayrec.console import err, show_values
    from rayrec.workspace import Workspace

    with main_job.running(Workspace.open(workspace), max_items=items, port=port) as shop:
        if check:
            faults = main_job.check(shop)
            for fault in faults:
                err.print(f"[red]{fault}[/red]")
            typer.echo(json.dumps({**shop.figures, "faults": len(faults)}))
            if faults:
                raise typer.Exit(1)
            return
        show_values(shop.figures)
        _tell_urls(shop.url, shop.key)
        _until_stopped()


@_command()
def serve(
    workspace: WorkspaceOption,
    config: ConfigOption = None,
    topology: Annotated[
        str | None, typer.Option(help="fused: the whole engine per replica; split: parts that scale apart.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; others than loopback open it to the network.")] = (
        "127.0.0.1"
    ),
    port: PortOption = 8000,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Gateway replicas; by default one per core, at most 4.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Name under which the web page may be reached, repeatable.")
    ] = None,
    dashboard_port: Annotated[int | None, typer.Option(help="Start Ray's dashboard here, on loopback.")] = None,
) -> None:
    """Serve what a workspace has promoted, over HTTP, on this machine. Ctrl-C stops it.

    A promoted version goes live by itself within seconds. On a cluster: serve deploy jobs/serve.yaml.
    """
    from rayrec.config import ServeConfig
    from rayrec.serving.cluster import local_cluster

    # before anything else imports Ray: it reads its settings once
    settings = serve_settings(config, workspace, topology, host, replicas, allowed_host)
    _check_servable(workspace, host, port)
    with local_cluster(num_cpus=None, dashboard_port=dashboard_port):
        from rayrec.serving.local import deploy

        url = deploy(ServeConfig.model_validate(settings), host=host, port=port)
        _tell_urls(url, None)
        _until_stopped()


def _check_servable(workspace: str, host: str, port: int) -> None:
    """What would fail later, found before a cluster is started. Raises NotFound, RayrecError."""
    from rayrec.errors import NotFound
    from rayrec.serving.local import check_port
    from rayrec.workspace import Workspace

    if Workspace.open(workspace, create=False).current().index is None:
        raise NotFound(f"no index answers in {workspace} yet; run 'rayrec index' (and 'rayrec embed' before it)")
    check_port(host, port)


def serve_settings(
    config: Path | None,
    workspace: str,
    topology: str | None,
    host: str,
    replicas: int | None,
    allowed_host: list[str] | None,
) -> dict[str, Any]:
    """The config file's settings, with those of the command line over them. Raises SchemaError, NotFound."""
    import ipaddress
    import os

    from rayrec.config import ServeConfig

    given: dict[str, Any] = {"workspace": workspace}
    if topology is not None:
        given["topology"] = topology
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        given["local_only"] = False
    settings = ServeConfig.load(config, given).model_dump()
    if allowed_host:
        settings["allowed_hosts"] = (*settings["allowed_hosts"], *allowed_host)
    if replicas is None and config is None:
        replicas = min(len(os.sched_getaffinity(0)), 4)
    if replicas is not None:
        settings["gateway"] = {**settings["gateway"], "min": replicas, "max": replicas}
    return settings


@_command()
def env() -> None:
    """Print the settings that a cluster which serves should be started with.

    eval "$(rayrec env)" && ray start --head
    """
    from rayrec.serving.cluster import fast_path

    for name, value in fast_path().items():
        typer.echo(f"export {name}={shlex.quote(value)}")


keys_app = typer.Typer(help="API keys of a workspace: shown once, kept as SHA-256.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


@_command(keys_app)
def create(
    workspace: WorkspaceOption,
    scope: Annotated[str, typer.Option(help="read, events, catalog or admin (which may do all).")] = "read",
    label: Annotated[str, typer.Option(help="Whose it is, for your own records.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once. A running service takes it within seconds."""
    key, secret = _keys(workspace).create(scope, label)
    _print({"id": key.id, "scope": key.scope, "label": key.label, "key": secret}, as_json)


@_command(keys_app, name="list")
def list_keys(workspace: WorkspaceOption, as_json: JsonOption = False) -> None:
    """List keys, without what nobody can show again."""
    found = [
        {"id": k.id, "scope": k.scope, "label": k.label, "created_us": k.created_us} for k in _keys(workspace).list()
    ]
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for each in found:
            _print(each, as_json)


@_command(keys_app)
def revoke(key_id: str, workspace: WorkspaceOption) -> None:
    """Take a key away. A running service forgets it within seconds."""
    _keys(workspace).revoke(key_id)


def _keys(workspace: str) -> Any:
    from rayrec.serving.auth import Keys
    from rayrec.workspace import Workspace

    return Keys(Workspace.open(workspace, create=False))


def _tell_urls(url: str, key: str | None) -> None:
    from rayrec.console import out

    out.print(f"[bold]shop[/bold]  {url}/\n[bold]API[/bold]   {url}/docs")
    if key is None:
        out.print("[bold]key[/bold]   rayrec keys create --scope read -w ...")
    else:
        out.print(f"[bold]key[/bold]   {key}", soft_wrap=True)
    out.print("[dim]Ctrl-C stops it[/dim]")


def _until_stopped() -> None:
    """Until Ctrl-C or SIGTERM."""
    import signal
    import threading

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()


@_command()
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
    _print(summary.to_dict(), as_json)


@_command()
def index(
    workspace: WorkspaceOption, config: ConfigOption = None, address: AddressOption = None, as_json: JsonOption = False
) -> None:
    """Build an index of the newest catalog and, unless the config says no, let it answer."""
    from rayrec.config import IndexConfig
    from rayrec.pipelines.index import index as run
    from rayrec.workspace import Workspace

    summary = run(IndexConfig.load(config), Workspace.open(workspace, create=False), address=address)
    _tell_quarantine(summary.quarantined, workspace)
    _print(summary.to_dict(), as_json)


@_command()
def search(
    query: Annotated[str, typer.Argument(help="Words; empty lists everything, popular first.")] = "",
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
        query, filters=parse_filters(filters), facets=facet or (), sort=sort, mode=mode, page=page, k=k, explain=explain
    )
    _show(answer, as_json)


@_command()
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


@_command()
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


@_command()
def evaluate(
    workspace: WorkspaceOption,
    judgements: Annotated[str, typer.Option(help="Rated queries: CSV, JSONL or Parquet of query, docid, rating.")],
    fit: Annotated[bool, typer.Option("--fit", help="Save fitted fusion weights; promote them if better.")] = False,
    as_json: JsonOption = False,
) -> None:
    """nDCG@10 of words, vectors and both on rated queries."""
    from rayrec.engine import Engine
    from rayrec.files import open_filesystem
    from rayrec.pipelines.evaluate import publish_weights, read_judgements, relevance
    from rayrec.workspace import Workspace

    ws = Workspace.open(workspace, create=False)
    engine = Engine.open(ws)
    result = relevance(engine, read_judgements(*open_filesystem(judgements)))
    values = result.to_dict()
    if fit:
        values["model"], values["promoted"] = publish_weights(ws, engine, result)
    _print(values, as_json)


@_command()
def versions(workspace: WorkspaceOption, as_json: JsonOption = False) -> None:
    """List what is published, and which pair of index and model answers."""
    from rayrec.workspace import KINDS, Workspace

    ws = Workspace.open(workspace, create=False)
    pointer = ws.current()
    current = {"generation": pointer.generation, "index": pointer.index, "model": pointer.model}
    _print({"current": current, **{kind: ws.versions(kind) for kind in KINDS}}, as_json)


@_command()
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
    _print({"generation": pointer.generation, "index": pointer.index, "model": pointer.model}, as_json)


@_command()
def rollback(workspace: WorkspaceOption, as_json: JsonOption = False) -> None:
    """Let the pair before this one answer again."""
    from rayrec.workspace import Workspace

    pointer = Workspace.open(workspace, create=False).rollback()
    _print({"generation": pointer.generation, "index": pointer.index, "model": pointer.model}, as_json)


@_command()
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


if __name__ == "__main__":
    app()
