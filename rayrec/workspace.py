"""Versioned artifacts on any filesystem, and the one pointer that says which of them answer.

A version is a directory whose `manifest.json` is written last: without one it was never published,
so a killed job leaves nothing that anybody reads. Versions are never changed. `current.json` names
the pair of index and model that answers; promoting moves it, rolling back moves it back.

>>> ws = Workspace.open("workspace")                                # doctest: +SKIP
>>> with ws.stage("indexes") as staged:                             # doctest: +SKIP
...     staged.write_bytes("hello.txt", b"hi")
...     staged.publish({"counts": {"items": 0}})
>>> ws.promote(index=staged.version)                                # doctest: +SKIP
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from rayrec.errors import Conflict, IncompatibleArtifact, NotFound, RayrecError
from rayrec.files import CHUNK, Files, checksum, checksum_of, fsync, open_filesystem

log = logging.getLogger(__name__)

KINDS = ("catalog", "events", "encoders", "indexes", "models")
FORMAT = 1
ENVELOPE = ("format", "kind", "version", "created_us", "files")
"""Of every manifest; the rest is the publisher's."""
HISTORY = 20
_DOWNLOAD = "download-"


@dataclass(frozen=True)
class Pointer:
    """What answers now. `generation` grows by one with every move."""

    generation: int = 0
    index: str | None = None
    model: str | None = None
    history: list[dict[str, str | None]] = field(default_factory=list)


class Workspace(Files):
    """A directory of artifacts; see the layout in README.md."""

    @classmethod
    def open(cls, uri: str | os.PathLike[str], *, create: bool = True) -> "Workspace":
        """Open `uri`. With create=False, NotFound if there is none."""
        filesystem, root = open_filesystem(str(uri))
        local = isinstance(filesystem, pafs.LocalFileSystem)
        ws = cls(root if local else str(uri), filesystem, root)  # absolute: tasks elsewhere open it by its uri
        if create:
            try:
                filesystem.create_dir(root, recursive=True)
            except OSError as error:
                raise RayrecError(f"cannot create a workspace at {uri}: {error}") from error
        elif filesystem.get_file_info(root).type != pafs.FileType.Directory:
            raise NotFound(f"no workspace at {uri}; make one with 'rayrec embed' or 'rayrec demo'")
        return ws

    # -- versions ---------------------------------------------------------------------------------

    def versions(self, kind: str) -> list[str]:
        """Published versions of a kind, oldest first."""
        return [name for name in self.names(kind) if self.exists(kind, name, "manifest.json")]

    def latest(self, kind: str) -> str | None:
        versions = self.versions(kind)
        return versions[-1] if versions else None

    def manifest(self, kind: str, version: str) -> dict[str, Any]:
        """The manifest of a published version. Raises NotFound, or IncompatibleArtifact if unreadable."""
        name = f"{kind}/{version}/manifest.json"
        try:
            manifest = json.loads(self.read_bytes(kind, version, "manifest.json"))
        except NotFound:
            known = ", ".join(self.versions(kind)[-5:]) or "none"
            raise NotFound(f"{kind}/{version} is not a published version; the latest are: {known}") from None
        except ValueError as error:
            raise IncompatibleArtifact(f"{name}: not JSON ({error}); publish the version again") from error
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise IncompatibleArtifact(f"{name}: not a manifest; publish the version again")
        if manifest.get("format") != FORMAT:
            raise IncompatibleArtifact(f"{name}: format {manifest.get('format')}, this rayrec reads {FORMAT}")
        if (manifest.get("kind"), manifest.get("version")) != (kind, version):
            raise IncompatibleArtifact(f"{name}: made for {manifest.get('kind')}/{manifest.get('version')}; misplaced")
        return manifest

    def remove(self, kind: str, version: str) -> None:
        """Take a version away; its manifest first, so that one half removed counts for nothing."""
        if self.exists(kind, version, "manifest.json"):
            self.fs.delete_file(self.path(kind, version, "manifest.json"))
        self.fs.delete_dir(self.path(kind, version))

    def stage(self, kind: str, *, name: str | None = None, now_s: float | None = None) -> "Staged":
        """Start a version, named by the time (UTC) or by `name`. It does not count until `Staged.publish`."""
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        if name is None:  # to the microsecond: names sort by age, within a second too
            now = datetime.fromtimestamp(time.time() if now_s is None else now_s, timezone.utc)
            name = now.strftime("%Y%m%d-%H%M%S-%f")
        return Staged(self, kind, f"{name}-{secrets.token_hex(3)}")

    def verify(self, kind: str, version: str) -> dict[str, Any]:
        """Check every file of a version against its manifest, and return the manifest.

        Raises IncompatibleArtifact that names the first file which is missing, truncated or altered.
        """
        manifest = self.manifest(kind, version)
        while True:
            try:
                with ThreadPoolExecutor(4) as pool:
                    list(pool.map(partial(self._check, kind, version), manifest["files"].items()))
                return manifest
            except IncompatibleArtifact:  # of what `replace` put there meanwhile, the manifest of before knows nothing
                now = self.manifest(kind, version)
                if now == manifest:
                    raise
                manifest = now

    def _check(self, kind: str, version: str, entry: tuple[str, dict[str, Any]]) -> None:
        name, expected = entry
        label = f"{kind}/{version}/{name}"
        info = self.fs.get_file_info(self.path(kind, version, name))
        if info.type == pafs.FileType.NotFound:
            raise IncompatibleArtifact(f"{label}: missing; build or copy the version again")
        said = [expected, *([expected["was"]] if "was" in expected else [])]
        if info.size not in [one["bytes"] for one in said]:
            raise IncompatibleArtifact(
                f"{label}: {info.size} bytes, manifest says {expected['bytes']}; truncated or replaced"
            )
        if checksum(self.fs, self.path(kind, version, name)) not in [one["blake2b"] for one in said]:
            raise IncompatibleArtifact(f"{label}: content differs from its checksum; it was altered")

    def replace(self, kind: str, version: str, files: Mapping[str, bytes], **said: Any) -> None:
        """Put other content in files of a published version, which is the one exception to their never changing: what
        must not be known any more. said: values of the manifest beside them.

        Each file by itself must mean the same beside the others of before and after. Whoever verifies or reads the
        version meanwhile, or after a kill, finds it whole: the manifest first takes either content, then only
        the new. Called again, with no files too, it ends what a kill left. Raises IncompatibleArtifact.
        """
        manifest = self.manifest(kind, version)
        entries = manifest["files"]
        for name in {*files, *(name for name, entry in entries.items() if "was" in entry)}:
            self._check(kind, version, (name, entries[name]))
            present = self.read_bytes(kind, version, name)
            entries[name] = {**_entry(files.get(name, present)), "was": _entry(present)}
        manifest.update(said)
        if files:
            self._write_manifest(manifest)
            for name, content in files.items():
                self.write_bytes(content, kind, version, name)
        manifest["files"] = {name: _without_was(entry) for name, entry in entries.items()}
        self._write_manifest(manifest)

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        content = json.dumps(manifest, indent=1).encode()
        self.write_bytes(content, manifest["kind"], manifest["version"], "manifest.json")

    def local_copy(self, kind: str, version: str) -> Path:
        """A verified directory on this machine: the version itself, or a cached download of it."""
        if self.is_local:
            self.verify(kind, version)
            return Path(self.path(kind, version))
        local = self.cache(kind, version)
        target = Path(local.root)
        if target.exists():
            try:
                local.verify(kind, version)
                return Path(local.path(kind, version))
            except (IncompatibleArtifact, NotFound) as error:
                log.warning("cached copy %s: %s; downloading it again", target, error)
                shutil.rmtree(target, ignore_errors=True)
        self._download(kind, version, target)
        return Path(local.path(kind, version))

    def cache(self, kind: str, version: str) -> "Workspace":
        """Where this machine keeps its copy of a version that is elsewhere; it may not be there."""
        key = hashlib.blake2b(f"{self.uri}|{kind}|{version}".encode(), digest_size=8).hexdigest()
        target = str(_cache_folder() / f"{kind}-{version}-{key}")
        return Workspace(target, pafs.LocalFileSystem(), target)

    def copies(self, kind: str) -> list[str]:
        """Versions of which this machine has a copy, whether or not they are published still."""
        names = (path.name.removeprefix(f"{kind}-").rpartition("-")[0] for path in _cache_folder().glob(f"{kind}-*"))
        return sorted(version for version in names if Path(self.cache(kind, version).root).is_dir())

    @staticmethod
    def downloads() -> list[Path]:
        """Copies on this machine, of whatever workspace, that are being made, or were when somebody was killed."""
        return sorted(_cache_folder().glob(f"{_DOWNLOAD}*"))

    def _download(self, kind: str, version: str, target: Path) -> None:
        """Fill the directory `target` with a version, in one step and only if what came is intact."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=_DOWNLOAD, ignore_cleanup_errors=True) as partial:
            for name in [*self.manifest(kind, version)["files"], "manifest.json"]:
                file = Path(partial, kind, version, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    source = self.fs.open_input_stream(self.path(kind, version, name))
                except FileNotFoundError:
                    continue  # `verify` names it
                with source, open(file, "wb") as sink:
                    shutil.copyfileobj(source, sink, CHUNK)
            Workspace(partial, pafs.LocalFileSystem(), partial).verify(kind, version)
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(partial, target)

    # -- the pointer ------------------------------------------------------------------------------

    def current(self) -> Pointer:
        if not self.exists("current.json"):
            return Pointer()
        try:
            pointer = Pointer(**json.loads(self.read_bytes("current.json")))
            if not isinstance(pointer.generation, int) or not isinstance(pointer.history, list):
                raise TypeError("generation or history has another type")
        except (ValueError, TypeError) as error:
            raise IncompatibleArtifact(
                f"current.json is damaged ({error}); remove it, then promote a version again"
            ) from error
        return pointer

    def promote(
        self, *, index: str | None = None, model: str | None = None, expect_generation: int | None = None
    ) -> Pointer:
        """Make a checked pair answer; what is not named stays as it is (`model="none"` takes it away).

        Raises NotFound or IncompatibleArtifact before anything moves if a part is absent, damaged or
        made for another embedding space, and Conflict if `expect_generation` is not the present one.
        """
        if index is None and model is None:
            raise ValueError("promote needs an index, a model, or both")
        if index is not None:
            self.verify("indexes", index)
        if model not in (None, "none"):
            self.verify("models", str(model))
        with self.lock("current.lock"):
            now = self.current()
            if expect_generation is not None and now.generation != expect_generation:
                raise Conflict(f"current.json is at generation {now.generation}, not {expect_generation}")
            pair = {
                "index": index if index is not None else now.index,
                "model": now.model if model is None else None if model == "none" else model,
            }
            self._check_pair(pair["index"], pair["model"])
            history = now.history
            if now.index is not None and pair != {"index": now.index, "model": now.model}:
                history = [*history, {"index": now.index, "model": now.model}][-HISTORY:]
            return self.write_pointer(Pointer(now.generation + 1, pair["index"], pair["model"], history))

    def rollback(self) -> Pointer:
        """Promote the pair that answered before this one; again, the one before that."""
        with self.lock("current.lock"):
            now = self.current()
            if not now.history:
                raise NotFound("nothing to roll back to: no earlier pair has answered in this workspace")
            previous = now.history[-1]
            self.verify("indexes", str(previous["index"]))
            if previous["model"] is not None:
                self.verify("models", previous["model"])
            self._check_pair(previous["index"], previous["model"])
            return self.write_pointer(
                Pointer(now.generation + 1, previous["index"], previous["model"], now.history[:-1])
            )

    def _check_pair(self, index: str | None, model: str | None) -> None:
        if model is None:
            return
        if index is None:
            raise IncompatibleArtifact(f"models/{model} cannot answer without an index; name one")
        wanted = self.manifest("indexes", index)["encoder"]["space"]
        found = self.manifest("models", model)["encoder"]["space"]
        if wanted != found:
            raise IncompatibleArtifact(
                f"models/{model} was made for embedding space {found}, indexes/{index} holds {wanted}"
            )

    def write_pointer(self, pointer: Pointer) -> Pointer:
        """Under the lock of current.json."""
        self.write_bytes(json.dumps(asdict(pointer), indent=1).encode(), "current.json")
        return pointer

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Exclude others who want the same lock on this filesystem.

        Object stores have no lock that pyarrow can take: there a check-then-PUT remains, and two promotions
        within the same second may both succeed, the later one winning.
        """
        if not self.is_local:
            yield
            return
        with open(self.path(name), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _cache_folder() -> Path:
    return Path(os.environ.get("RAYREC_CACHE", "~/.cache/rayrec")).expanduser()


def _entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "blake2b": checksum_of(content)}


def _without_was(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "was"}


class Staged:
    """A version being built. As a context manager it removes itself unless it was published."""

    def __init__(self, ws: Workspace, kind: str, version: str):
        self.ws = ws
        self.kind = kind
        self.version = version
        self.published = False

    def __enter__(self) -> "Staged":
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.published and self.ws.exists(self.kind, self.version):
            self.ws.fs.delete_dir(self.ws.path(self.kind, self.version))

    def write_bytes(self, name: str, data: bytes) -> None:
        self.ws.write_bytes(data, self.kind, self.version, name)

    def write_parquet(self, name: str, table: pa.Table) -> None:
        self.ws.write_parquet(table, self.kind, self.version, name)

    def upload(self, directory: Path, prefix: str) -> None:
        """Copy a local directory tree into the version under `prefix` ("" for its root); safe to repeat."""
        for file in sorted(p for p in directory.rglob("*") if p.is_file()):
            parts = (self.kind, self.version, *filter(None, [prefix]), *file.relative_to(directory).parts)
            target = self.ws.path(*parts)
            self.ws.fs.create_dir(target.rpartition("/")[0], recursive=True)
            with open(file, "rb") as source, self.ws.fs.open_output_stream(target) as sink:
                shutil.copyfileobj(source, sink, CHUNK)

    def publish(self, manifest: dict[str, Any]) -> str:
        """Record sizes and checksums of all files, write the manifest, and return the version's name."""
        base = self.ws.path(self.kind, self.version)
        infos = self.ws.fs.get_file_info(pafs.FileSelector(base, recursive=True))
        files = {
            info.path[info.path.index(self.version) + len(self.version) + 1 :]: {
                "bytes": info.size,
                "blake2b": checksum(self.ws.fs, info.path),
            }
            for info in infos
            if info.type == pafs.FileType.File and not info.path.endswith(".tmp")
        }
        if self.ws.is_local:
            for name in files:
                fsync(f"{base}/{name}")
        document = {
            "format": FORMAT,
            "kind": self.kind,
            "version": self.version,
            "created_us": time.time_ns() // 1000,
            **manifest,
            "files": dict(sorted(files.items())),
        }
        self.write_bytes("manifest.json", json.dumps(document, indent=1).encode())
        self.published = True
        log.info("published %s/%s (%d files)", self.kind, self.version, len(files))
        return self.version
