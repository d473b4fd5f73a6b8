"""Imports point down only, and what must stay light does."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Every room (module or package) of rayrec, and jobs/, by layer. A new one fails here until it has a place.
LAYERS = {
    "contracts": {"schema", "config", "errors"},
    "storage": {"files", "workspace", "embedding_store", "store", "pruning", "barring"},
    "domain": {"data", "encoders", "fitting", "retrieval", "ranking", "models", "evaluation"},
    "engine": {
        "engine",
        "scorer",
        "plans",
        "shoppers",
        "request",
        "answer",
        "photo",
        "encoder_exports",
        "item_vectors",
        "trained",
        "rewriting",
        "forgetting",
    },
    "pipelines": {"pipelines"},
    "serving": {"serving"},
    "entry": {"__init__", "cli", "demo", "console", "doctor", "feeding", "jobs"},
}
LAYER_OF = {room: layer for layer, rooms in LAYERS.items() for room in rooms}
BELOW = {
    "contracts": {"contracts"},
    "storage": {"contracts", "storage"},
    "domain": {"contracts", "domain"},
    "engine": {"contracts", "storage", "domain", "engine"},
    "pipelines": {"contracts", "storage", "domain", "engine", "pipelines"},
    "serving": {"contracts", "storage", "domain", "engine", "serving"},
    "entry": set(LAYERS),
}
NEVER = {
    **{layer: {"ray", "fastapi", "starlette"} for layer in ("contracts", "storage", "domain", "engine")},
    "pipelines": {"fastapi", "starlette"},
}
SOURCES = sorted([*ROOT.glob("rayrec/**/*.py"), *ROOT.glob("jobs/*.py")])


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "jobs" else parts[1]


def imports(path: Path) -> set[str]:
    """Full names that a file imports, at its top or in a function; `from a import b` is a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import, which these rules do not read"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(names: set[str]) -> set[str]:
    """Rooms among imported names; what the package itself offers is of `__init__`."""
    rooms = {name.split(".")[1] if "." in name else "__init__" for name in names if name.split(".")[0] == "rayrec"}
    return {room if room in LAYER_OF else "__init__" for room in rooms}


def test_every_module_has_exactly_one_layer() -> None:
    assert sum(len(rooms) for rooms in LAYERS.values()) == len(LAYER_OF)
    assert {str(path) for path in SOURCES if room(path) not in LAYER_OF} == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    layer = LAYER_OF[room(path)]
    names = imports(path)
    assert {r for r in ours(names) if LAYER_OF[r] not in BELOW[layer]} == set()
    assert {name.split(".")[0] for name in names} & NEVER.get(layer, set()) == set()


@pytest.mark.parametrize("name", ["schema", "config"])
def test_a_contract_imports_nothing_of_ours_but_errors(name: str) -> None:
    assert ours(imports(ROOT / "rayrec" / f"{name}.py")) <= {"errors"}
    assert ours(imports(ROOT / "rayrec" / "errors.py")) == set()


@pytest.mark.parametrize("path", sorted(ROOT.glob("jobs/*.py")), ids=lambda p: p.name)
def test_a_job_is_under_40_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40


def test_the_rules_see_imports_wherever_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "import ray.data\nfrom rayrec import Engine, workspace\n"
        "def late():\n    from rayrec.pipelines.embed import embed\n    import torch as t\n"
    )
    assert imports(file) == {
        "ray.data", "rayrec.Engine", "rayrec.workspace", "rayrec.pipelines.embed.embed", "torch",
    }  # fmt: skip
    assert ours(imports(file)) == {"__init__", "workspace", "pipelines"}


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("rayrec", {"ray", "torch", "transformers", "faiss", "tantivy", "onnxruntime", "pyarrow", "numpy"}),
        ("rayrec.cli", {"ray", "torch", "transformers", "faiss", "tantivy"}),
        ("rayrec.engine", {"ray", "torch", "transformers"}),
        ("rayrec.encoders.onnx", {"ray", "torch", "transformers"}),
        ("rayrec.workspace", {"ray", "torch", "faiss", "tantivy"}),
    ],
)
def test_importing_does_not_load_what_it_does_not_need(module: str, without: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(done.stdout.split()) & without == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_log_has_the_message_of_an_exception_that_nobody_expects(path: Path) -> None:
    """It may hold an id, a query or a key; `errors.described` tells the kind and the place."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert [c.lineno for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "exception"
            and ast.unparse(c.func.value) == "log"] == []  # fmt: skip
    assert [call.lineno for call in calls for word in call.keywords if word.arg == "exc_info"] == []
