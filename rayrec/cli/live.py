"""Events of shoppers: feeding a running service with them, and forgetting them."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from rayrec.cli.base import JsonOption, WorkspaceOption, command, print_values

UrlOption = Annotated[str, typer.Option(help="Of the running service.")]
KeyOption = Annotated[
    str, typer.Option(envvar="RAYREC_KEY", help="Of scope events: 'rayrec keys create --scope events' makes one.")
]


@command()
def consume(
    source: Annotated[str, typer.Argument(help="File of newline JSON, - for stdin, or redis://host:port/number.")],
    key: KeyOption,
    url: UrlOption = "http://127.0.0.1:8000",
    stream: Annotated[str | None, typer.Option(help="Of a Redis source: the stream's name.")] = None,
    idle: Annotated[float | None, typer.Option(help="Of a stream: end after so many seconds without an entry.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Send events to a running service: an event a line, or entries of a Redis stream, each taken exactly once.

    Safe to stop and to repeat: events are known by their id, or by their line.
    """
    from rayrec.errors import NotFound, SchemaError
    from rayrec.feeding import Feeder, feed_lines, feed_stream

    feeder = Feeder(url, key)
    if source.startswith(("redis://", "rediss://")):
        if stream is None:
            raise SchemaError("--stream: name the stream to read")
        with contextlib.suppress(KeyboardInterrupt):
            feed_stream(source, stream, feeder, idle_s=idle)
    else:
        with contextlib.ExitStack() as opened:
            try:
                lines = sys.stdin.buffer if source == "-" else opened.enter_context(open(source, "rb"))
            except OSError as error:
                raise NotFound(f"{source}: {error.strerror}") from error
            feed_lines(lines, feeder, opened.enter_context(_counting("events", None, as_json)))
    _finish(feeder, as_json)


@command()
def replay(
    key: KeyOption,
    workspace: WorkspaceOption = "rayrec-demo",
    url: UrlOption = "http://127.0.0.1:8000",
    days: Annotated[float, typer.Option(min=0.001, help="How much of the newest recorded time.")] = 1.0,
    speed: Annotated[
        float, typer.Option(min=0, help="Times as fast as it happened; 0: as fast as it is taken.")
    ] = 60.0,
    label: Annotated[str | None, typer.Option(help="Part of the events' ids: the same label counts once.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Send a workspace's recorded events to a running service as live traffic, at a chosen speed."""
    import secrets

    from rayrec.feeding import Feeder, recorded
    from rayrec.feeding import replay as run
    from rayrec.pipelines.event_log import newest_events, read_events
    from rayrec.workspace import Workspace

    ws = Workspace.open(workspace, create=False)
    events = recorded(read_events(ws, newest_events(ws)), days)
    feeder = Feeder(url, key)
    with _counting("replaying", len(events), as_json) as told:
        run(events, feeder, speed=speed, label=label or secrets.token_hex(4), on_progress=told)
    _finish(feeder, as_json)


StoreOption = Annotated[
    str | None, typer.Option(envvar="RAYREC_STORE", help="Where the service keeps events, if not in the workspace.")
]


@command()
def forget(
    user: Annotated[str, typer.Argument(help="A user's id; - reads ids from stdin, so that no shell keeps them.")],
    workspace: WorkspaceOption,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove all that is known of a user, everywhere, and print a receipt that does not name them.

    As DELETE /v1/users/{id} does. What happened until now stays barred, from files that are loaded again too. Safe to
    stop and to repeat; replicas with a store mind it at once, others within seconds.
    """
    from rayrec.forgetting import forget as run
    from rayrec.workspace import Workspace

    ws = Workspace.open(workspace, create=False)
    users = [line.rstrip("\n") for line in sys.stdin] if user == "-" else [user]
    for one in users:
        if one:
            _show_receipt(run(ws, store, one), as_json)


@command()
def retain(
    workspace: WorkspaceOption,
    days: Annotated[float, typer.Option(min=0.001, help="Events older than this are removed, and barred.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove every event older than so many days: in the store, in all versions, in every index's histories."""
    from rayrec.forgetting import retain as run
    from rayrec.workspace import Workspace

    _show_receipt(run(Workspace.open(workspace, create=False), store, days), as_json)


def _show_receipt(receipt: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(receipt))
        return
    counts = {one["place"]: one["removed"] for one in receipt["places"]}
    print_values({"receipt": receipt["receipt_id"], **counts}, as_json)


def _finish(feeder: Any, as_json: bool) -> None:
    feeder.close()
    for one in feeder.fed.rejections:
        typer.echo(json.dumps(one), err=True)
    print_values(feeder.fed.to_dict(), as_json)


@contextlib.contextmanager
def _counting(title: str, total: int | None, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    from rayrec.console import progress_bar

    with progress_bar(title, quiet=quiet) as bar:
        if bar is None:
            yield None
            return
        began = time.perf_counter()
        yield lambda done: bar(done, total or done, done / max(time.perf_counter() - began, 1e-9))
