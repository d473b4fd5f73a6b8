"""The command line: what it takes, and how it fails."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rayrec.cli import app
from rayrec.cli.ask import parse_filters
from rayrec.cli.service import serve_settings
from rayrec.errors import SchemaError
from rayrec.store import open_store
from rayrec.workspace import Workspace

COMMANDS = (
    "demo", "serve", "keys", "env", "embed", "index", "search", "recommend", "similar", "evaluate", "versions",
    "promote", "rollback", "doctor", "fit", "train", "update", "forget", "retain", "prune",
)  # fmt: skip


def run(*args: str) -> Result:
    return CliRunner().invoke(app, args)


@pytest.mark.parametrize(
    ("texts", "filters"),
    [
        (None, {}),
        (["brand=HP", "brand=Dell"], {"brand": ["HP", "Dell"]}),
        (["price_cents>=1000", "price_cents<2000"], {"price_cents": {"gte": 1000, "lt": 2000}}),
        (["price_cents>1", "price_cents<=-2"], {"price_cents": {"gt": 1, "lte": -2}}),
        (["available=TRUE"], {"available": True}),
        (["available=false"], {"available": False}),
        (["brand=a=b"], {"brand": ["a=b"]}),
    ],
)
def test_filters_are_read_from_text(texts: list[str] | None, filters: dict[str, Any]) -> None:
    assert parse_filters(texts) == filters


@pytest.mark.parametrize(
    ("text", "said"), [("brand", "expected field=value"), ("price_cents>=cheap", "expected a whole number after >=")]
)
def test_a_filter_that_cannot_be_read_is_named(text: str, said: str) -> None:
    with pytest.raises(SchemaError, match=f"--filter '{text}': {said}"):
        parse_filters([text])


def test_help_lists_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert [name for name in COMMANDS if f" {name} " not in result.output] == []


FAILURES = {
    "no such workspace": (("versions", "-w", "{tmp}/none"), "no workspace at"),
    "search without workspace": (("search", "cable", "-w", "{tmp}/none"), "no workspace at"),
    "train without workspace": (("train", "-w", "{tmp}/none"), "no workspace at"),
    "train without events": (("train", "-w", "{tmp}"), "no events in"),
    "update without workspace": (("update", "-w", "{tmp}/none"), "no workspace at"),
    "update without a trained model": (("update", "-w", "{tmp}"), "no trained model answers in"),
    "update every so often": (("update", "-w", "{tmp}", "--every", "often"), "expected a time above 0 like 90s"),
    "evaluate without events": (("evaluate", "-w", "{tmp}"), "no catalog in"),
    "fit without judgements": (("evaluate", "-w", "{tmp}", "--fit"), "--fit needs --judgements"),
    "nothing to promote": (("promote", "-w", "{tmp}"), "name an --index, a --model, or both"),
    "unknown version": (("promote", "-w", "{tmp}", "--index", "v1"), "indexes/v1 is not a published version"),
    "nothing to roll back to": (("rollback", "-w", "{tmp}"), "nothing to roll back to"),
    "no index answers": (("search", "cable", "-w", "{tmp}"), "no index answers in"),
    "missing config": (("embed", "-w", "{tmp}", "-c", "{tmp}/gone.yaml"), "gone.yaml does not exist"),
}


def fail(case: str, tmp_path: Path) -> Result:
    return run(*(arg.format(tmp=tmp_path) for arg in FAILURES[case][0]))


@pytest.mark.parametrize("case", FAILURES)
def test_an_error_has_exit_code_1_and_no_traceback(case: str, tmp_path: Path) -> None:
    result = fail(case, tmp_path)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    said = " ".join(result.stderr.split())
    assert "error: " in said
    assert FAILURES[case][1] in said
    assert "Traceback" not in result.output


@pytest.mark.parametrize("case", ["search without workspace", "unknown version"])
def test_an_error_is_one_line_however_narrow_the_terminal(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    result = fail(case, tmp_path)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_an_error_may_hold_square_brackets(tmp_path: Path) -> None:
    result = run("versions", "-w", f"{tmp_path}/[/red]/[bold]")
    assert result.exit_code == 1
    assert "[/red]/[bold]" in "".join(result.stderr.split())


def test_versions_of_a_new_workspace_are_told_as_json(tmp_path: Path) -> None:
    ws = Workspace.open(tmp_path)
    with ws.stage("indexes") as staged:
        staged.write_bytes("top.bin", b"data")
        version = staged.publish({})
    ws.promote(index=version)
    said = json.loads(run("versions", "-w", str(tmp_path), "--json").stdout)
    assert said["current"] == {"generation": 1, "index": version, "model": None}
    assert (said["indexes"], said["models"]) == ([version], [])


def test_doctor_tells_every_check_as_json() -> None:
    result = run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert checks["python"]["state"] == "ok"
    assert {"memory", "disk", "ray", "text model", "port 8265"} <= checks.keys()
    assert result.exit_code == any(check["state"] == "fail" for check in checks.values())


def test_doctor_fails_on_a_workspace_that_is_not_there(tmp_path: Path) -> None:
    result = run("doctor", "--json", "-w", f"{tmp_path}/none")
    assert result.exit_code == 1
    assert [c["state"] for c in json.loads(result.stdout) if c["name"] == "workspace"] == ["fail"]


@pytest.mark.parametrize(
    ("text", "filters"),
    [
        ("category=Grocery > Snacks", {"category": ["Grocery > Snacks"]}),
        ("brand=A<B", {"brand": ["A<B"]}),
        ("attributes.size=<5 in", {"attributes.size": ["<5 in"]}),
        ("available=TRUE", {"available": True}),
    ],
)
def test_the_first_sign_of_a_filter_counts(text: str, filters: dict[str, object]) -> None:
    assert parse_filters([text]) == filters


@pytest.mark.parametrize("texts", [["available=yes"], ["brand=HP", "brand>=3"], ["price_cents>=a"], ["brand"]])
def test_a_filter_that_means_nothing_is_refused(texts: list[str]) -> None:
    with pytest.raises(SchemaError, match="--filter"):
        parse_filters(texts)


def test_a_key_is_shown_once_and_can_be_taken_away(tmp_path: Path) -> None:
    Workspace.open(tmp_path)
    made = json.loads(
        run("keys", "create", "-w", str(tmp_path), "--scope", "events", "--label", "app", "--json").stdout
    )
    assert made["key"].startswith("rr_")
    listed = run("keys", "list", "-w", str(tmp_path), "--json").stdout
    assert made["key"] not in listed
    assert [(key["id"], key["scope"], key["label"]) for key in json.loads(listed)] == [(made["id"], "events", "app")]
    assert run("keys", "revoke", made["id"], "-w", str(tmp_path)).exit_code == 0
    assert json.loads(run("keys", "list", "-w", str(tmp_path), "--json").stdout) == []
    again = run("keys", "revoke", made["id"], "-w", str(tmp_path))
    assert again.exit_code == 1
    assert "rayrec keys list" in again.stderr
    wrong = run("keys", "create", "-w", str(tmp_path), "--scope", "root")
    assert (wrong.exit_code, "read, events" in wrong.stderr) == (1, True)


def test_settings_to_start_a_cluster_with_can_be_evaluated() -> None:
    lines = run("env").stdout.strip().splitlines()
    assert "export RAY_SERVE_ENABLE_HA_PROXY=1" in lines
    assert all(re.fullmatch(r"export [A-Z_]+=\S.*", line) for line in lines)


def test_the_command_line_wins_over_the_config_and_opening_to_the_network_closes_operations(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("workspace: elsewhere\ntopology: fused\ngateway: {min: 3, max: 5}\n")
    kept = serve_settings(file, "here", None, "127.0.0.1", None, None)
    assert (kept["workspace"], kept["topology"], kept["local_only"]) == ("here", "fused", True)
    assert (kept["gateway"]["min"], kept["gateway"]["max"]) == (3, 5)
    given = serve_settings(file, "here", "split", "0.0.0.0", 2, ["shop.example"])
    assert (given["topology"], given["local_only"]) == ("split", False)
    assert (given["gateway"]["min"], given["gateway"]["max"]) == (2, 2)
    assert given["allowed_hosts"][-1] == "shop.example"
    file.write_text("workspace: elsewhere\n")
    for config in (None, file):
        assert 1 <= serve_settings(config, "here", None, "::1", None, None)["gateway"]["max"] <= 4


def test_serving_a_workspace_that_is_not_there_says_so(tmp_path: Path) -> None:
    refused = run("serve", "-w", str(tmp_path / "nothing"))
    assert refused.exit_code == 1
    assert "no workspace" in refused.stderr


def test_search_hands_a_photo_to_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    class Asked:
        def search(self, query: str, **options: Any) -> None:
            asked.update(options, query=query)
            raise SchemaError("seen")

    monkeypatch.setattr("rayrec.engine.Engine.open", lambda workspace: Asked())
    (tmp_path / "photo.jpg").write_bytes(b"a picture")
    assert "seen" in run("search", "red", "--image", str(tmp_path / "photo.jpg")).output
    assert (asked["query"], asked["image"]) == ("red", b"a picture")
    missing = run("search", "--image", str(tmp_path / "nowhere.jpg"))
    assert missing.exit_code == 2
    assert "does not exist" in missing.output


def test_shoppers_are_forgotten_by_ids_from_stdin_and_old_events_by_days(tmp_path: Path) -> None:
    ws = Workspace.open(tmp_path / "ws")
    store = open_store(f"sqlite:///{ws.path('store', 'live.db')}")
    now_us = time.time_ns() // 1000
    for user, ts_us in (("ann", now_us), ("bob", now_us), ("cat", now_us), ("dan", now_us - 9 * 86_400_000_000)):
        store.append([{"event_id": user, "type": "view", "user_id": user, "item_id": "a", "ts_us": ts_us}])

    def left() -> list[str]:
        return [event["event_id"] for _, event in store.read(0, 10)]

    told = CliRunner().invoke(app, ["forget", "-", "-w", ws.uri, "--json"], input="ann\nbob\n")
    assert told.exit_code == 0, told.output
    receipts = [json.loads(line) for line in told.stdout.splitlines()]
    assert [receipt["places"][0] for receipt in receipts] == [{"place": "sqlite.events", "removed": 1}] * 2
    assert "ann" not in told.output
    assert left() == ["cat", "dan"]
    assert run("retain", "-w", ws.uri, "--days", "7").exit_code == 0
    assert left() == ["cat"]
    assert run("forget", "cat", "-w", ws.uri, "--store", f"sqlite:///{tmp_path}/other.db").exit_code == 0
    assert left() == []
    store.close()
