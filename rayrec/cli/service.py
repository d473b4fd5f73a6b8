"""The service: the demo, serving a workspace, its keys, and the settings of a cluster."""

import contextlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from rayrec.cli.base import ConfigOption, JsonOption, PortOption, WorkspaceOption, app, command, print_values


@command()
def demo(
    workspace: WorkspaceOption = "rayrec-demo",
    items: Annotated[int, typer.Option(min=100, help="How many of the 20,770 items: the most bought ones.")] = 15_000,
    port: PortOption = 8000,
    check: Annotated[bool, typer.Option("--check", help="Answer a few requests, print one JSON line, exit.")] = False,
    train: Annotated[
        bool | None,
        typer.Option(help="Fit searches and train the fusion model behind the shop; by default not with --check."),
    ] = None,
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
            if train:
                shop.figures.update(main_job.train_behind(Workspace.open(workspace)))
                faults += main_job.check(shop)
            for fault in faults:
                err.print(f"[red]{fault}[/red]")
            typer.echo(json.dumps({**shop.figures, "faults": len(faults)}))
            if faults:
                raise typer.Exit(1)
            return
        show_values(shop.figures)
        _tell_urls(shop.url, shop.key)
        with _training_behind(workspace, train is not False):
            _until_stopped()


@contextlib.contextmanager
def _training_behind(workspace: str, wanted: bool) -> Iterator[None]:
    """Train in a thread that ends with the block, whatever it has reached."""
    import threading

    from rayrec import demo as main_job
    from rayrec.console import err, fit_bar, show_error
    from rayrec.workspace import Workspace

    ended = threading.Event()

    def run() -> None:
        err.print("learning from these purchases meanwhile; searches, then 'for you', change when the gate lets them")
        try:
            with fit_bar() as told:
                found = main_job.train_behind(Workspace.open(workspace), told)
        except Exception as error:  # the shop goes on answering
            if not ended.is_set():
                show_error(error)
            return
        said = "it answers now" if found["promoted"] else "it is no better than what answers, and does not"
        err.print(f"trained in {found['trained_s']:.0f} s: {said}")
        ranking = found["ranking"]
        said = "search weighs them now" if ranking["promoted"] else "search stays as it was"
        err.print(f"signals of searches fitted in {ranking['seconds']:.0f} s: {said}")

    if wanted:
        threading.Thread(target=run, name="rayrec-train", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@command()
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
    from rayrec.console import out
    from rayrec.serving.cluster import local_cluster

    # before anything else imports Ray: it reads its settings once
    settings = serve_settings(config, workspace, topology, host, replicas, allowed_host)
    _check_servable(workspace, host, port)
    with local_cluster(num_cpus=None, dashboard_port=dashboard_port):
        from rayrec.serving.local import deploy

        url = deploy(ServeConfig.model_validate(settings), host=host, port=port)
        _tell_urls(url, None)
        if dashboard_port is not None:
            token = os.environ["RAY_AUTH_TOKEN"]
            out.print(f"[bold]Ray[/bold]   http://127.0.0.1:{dashboard_port}  token {token}", soft_wrap=True)
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

    from rayrec.config import ServeConfig

    given: dict[str, Any] = {"workspace": workspace}
    if topology is not None:
        given["topology"] = topology
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        given["local_only"] = False
    loaded = ServeConfig.load(config, given)
    settings = loaded.model_dump()
    if allowed_host:
        settings["allowed_hosts"] = (*settings["allowed_hosts"], *allowed_host)
    if replicas is None and "gateway" not in loaded.model_fields_set:
        replicas = min(len(os.sched_getaffinity(0)), 4)
    if replicas is not None:
        settings["gateway"] = {**settings["gateway"], "min": replicas, "max": replicas}
    return settings


@command()
def env() -> None:
    """Print the settings that a cluster which serves should be started with.

    eval "$(rayrec env)" && ray start --head
    """
    from rayrec.serving.cluster import fast_path

    for name, value in fast_path().items():
        typer.echo(f"export {name}={shlex.quote(value)}")


keys_app = typer.Typer(help="API keys of a workspace: shown once, kept as SHA-256.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


@command(keys_app)
def create(
    workspace: WorkspaceOption,
    scope: Annotated[str, typer.Option(help="read, events, catalog or admin (which may do all).")] = "read",
    label: Annotated[str, typer.Option(help="Whose it is, for your own records.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once. A running service takes it within seconds."""
    key, secret = _keys(workspace).create(scope, label)
    print_values({"id": key.id, "scope": key.scope, "label": key.label, "key": secret}, as_json)


@command(keys_app, name="list")
def list_keys(workspace: WorkspaceOption, as_json: JsonOption = False) -> None:
    """List keys, without what nobody can show again."""
    found = [
        {"id": k.id, "scope": k.scope, "label": k.label, "created_us": k.created_us} for k in _keys(workspace).list()
    ]
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for each in found:
            print_values(each, as_json)


@command(keys_app)
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
