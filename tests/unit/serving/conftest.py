"""A workspace with an index of the small shop, and the service's app around it, in this process and without Ray."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rayrec import encoder_exports
from rayrec.barring import Bars
from rayrec.config import ServeConfig
from rayrec.forgetting import forget
from rayrec.serving.auth import Keys
from rayrec.serving.backends import FusedBackend
from rayrec.serving.catalog import Catalog
from rayrec.serving.events import Events, store_url
from rayrec.serving.gateway import Gateway
from rayrec.serving.http import create_app
from rayrec.serving.tail import Tail
from rayrec.serving.telemetry import Telemetry, exposition
from rayrec.serving.versions import Live
from rayrec.store import CatalogLog, EventStore, open_catalog_log, open_store
from rayrec.workspace import Workspace
from tests.fakes import FakeEncoder, FakeImageEncoder, make_catalog, make_shoppers, publish_index


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose promoted index is of the small shop, in two shards; to be read only."""
    root = tmp_path_factory.mktemp("published")
    items = make_catalog()
    ws = Workspace.open(root)
    ws.promote(index=publish_index(ws, items, make_shoppers(items)[0], shards=2))
    return root


@pytest.fixture(scope="session")
def published_with_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shop in an index that can be searched by photo."""
    root = tmp_path_factory.mktemp("pictures")
    items = make_catalog()
    ws = Workspace.open(root)
    ws.promote(index=publish_index(ws, items, make_shoppers(items)[0], shards=2, images=True))
    return root


@pytest.fixture(autouse=True)
def fake_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every index in these tests is of the fake encoders' space."""

    def images(ws: Workspace, encoder: dict[str, Any]) -> FakeImageEncoder | None:
        return FakeImageEncoder() if encoder["images"] else None

    def preprocess(ws: Workspace, encoder: dict[str, Any]) -> Any:
        return FakeImageEncoder().preprocess if encoder["images"] else None

    monkeypatch.setattr(encoder_exports, "open_items", lambda ws, encoder, **_: FakeEncoder())
    monkeypatch.setattr(encoder_exports, "open_for", lambda ws, encoder, **_: FakeEncoder())
    monkeypatch.setattr(encoder_exports, "open_images", images)
    monkeypatch.setattr(encoder_exports, "image_preprocess", preprocess)


@pytest.fixture(autouse=True)
def nobody_goes_on_looking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test made to follow a workspace stops when the test ends: hundreds would slow the others down."""
    made: list[Any] = []

    def note(kind: type) -> None:
        begin = kind.__init__

        def noted(self: Any, *args: Any, **kwargs: Any) -> None:
            begin(self, *args, **kwargs)
            made.append(self)

        monkeypatch.setattr(kind, "__init__", noted)

    note(Live)
    note(Tail)
    yield
    for one in made:
        one.close()


@pytest.fixture
def ws(published: Path, tmp_path: Path) -> Workspace:
    """The published index in a workspace of the test's own, whose pointer and keys it may move."""
    return _own(published, tmp_path / "ws")


@pytest.fixture
def ws_with_pictures(published_with_pictures: Path, tmp_path: Path) -> Workspace:
    return _own(published_with_pictures, tmp_path / "pictures")


def _own(published: Path, root: Path) -> Workspace:
    root.mkdir()
    (root / "indexes").mkdir()
    for version in (published / "indexes").iterdir():
        (root / "indexes" / version.name).symlink_to(version)
    (root / "current.json").write_bytes((published / "current.json").read_bytes())
    return Workspace.open(root)


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, which has the one shape."""
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == {"code", "message", "field", "hint", "request_id"}
        return self.json["error"]


def call_app(
    app: Any, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, query: str = ""
) -> Answered:
    """One request to an ASGI app, without a server. body: bytes, or what is to be JSON."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given = {"host": "127.0.0.1:8000", **(headers or {})}
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path, "root_path": "",
        "raw_path": path.encode(), "query_string": query.encode(), "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1234), "headers": [(k.lower().encode(), v.encode()) for k, v in given.items()],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": raw, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    start = next(m for m in sent if m["type"] == "http.response.start")
    content = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
    return Answered(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, content)


@dataclass
class App:
    """The app, and the keys that open it."""

    asgi: Any
    gateway: Gateway
    keys: Keys
    secrets: dict[str, str]

    def call(self, method: str, path: str, body: Any = None, *, scope: str | None = "read", **more: Any) -> Answered:
        headers = dict(more.pop("headers", {}))
        if scope is not None:
            headers["authorization"] = f"Bearer {self.secrets[scope]}"
        return call_app(self.asgi, method, path, body, headers, **more)


@pytest.fixture
def make_app(ws: Workspace) -> Iterator[Callable[..., App]]:
    """Each app made is a replica of its own over one workspace, and so over one store."""
    stores: list[EventStore | CatalogLog] = []
    tails: list[Tail] = []

    def make(backend: Any = None, of: Workspace = ws, **settings: Any) -> App:
        config = ServeConfig(workspace=of.uri, poll_s=0.05, **settings)
        telemetry = Telemetry()
        keys = Keys(of)
        secrets = {name: keys.create(name)[1] for name in ("read", "events", "catalog", "admin")}
        url = store_url(config, of, nodes=1)
        assert url is not None
        stores.append(opened := open_store(url))
        bars = Bars(of)
        bars.create_secret()
        events = Events(config, opened, telemetry, bars)
        stores.append(log := open_catalog_log(url))
        behind = backend or FusedBackend(config, telemetry, log)
        catalog = Catalog(config, log, behind, telemetry)
        tails.extend([behind.tail] if getattr(behind, "tail", None) else [])
        gateway = Gateway(config, behind, telemetry, "r1", events, catalog, bars, partial(forget, of, url))

        async def metrics() -> str:
            return exposition(telemetry.snapshot())

        return App(create_app(gateway, keys, metrics), gateway, keys, secrets)

    yield make
    for tail in tails:
        tail.close()
    for store in stores:
        store.close()


@pytest.fixture
def app(make_app: Callable[..., App]) -> App:
    return make_app()
