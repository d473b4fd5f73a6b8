"""What every benchmark shares: arguments, the machine's description, the table, and the last line as JSON."""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

_ROOT = Path(__file__).parents[1]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """--quick, --data and --seed, as every benchmark has them."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="small and fast: shows that it runs, not how fast")
    made.add_argument("--data", type=Path, default=_ROOT.parent / "shared" / "data", help="folder of the public sets")
    made.add_argument("--seed", type=int, default=0)
    return made


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """cores, CPU, git revision and versions."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=_ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu,
        "python": platform.python_version(),
        "revision": revision,
        "versions": {name: version(name) for name in packages},
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """A table of rows with the same keys."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=140).print(table)


def finish(figures: dict[str, Any]) -> None:
    """The last line."""
    print(json.dumps(figures), flush=True)


def read_columns(path: Path) -> dict[str, list[Any]]:
    """A CSV or Parquet file as plain columns."""
    table = pq.read_table(path) if path.suffix == ".parquet" else pacsv.read_csv(path)
    return {name: table.column(name).to_pylist() for name in table.column_names}
