"""What every command shares: the application, its options, and how expected errors end."""

import json
import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from rayrec.errors import RayrecError

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


def command(group: typer.Typer = app, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
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


def print_values(values: dict[str, Any], as_json: bool) -> None:
    from rayrec.console import show_values

    if as_json:
        typer.echo(json.dumps(values))
    else:
        show_values(values)
