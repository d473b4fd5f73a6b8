"""Feeding a running service with events."""

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
