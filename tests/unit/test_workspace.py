"""Versions are whole or invisible, damage is named, and the pointer moves by one, once."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rayrec.errors import Conflict, IncompatibleArtifact, NotFound, RayrecError
from rayrec.workspace import Pointer, Workspace


@pytest.fixture(params=["local", "memory"])
def ws(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    uri = str(tmp_path / "ws") if request.param == "local" else f"memory:/{tmp_path}/ws"
    yield Workspace.open(uri)
    if request.param == "memory":
        fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


def publish(ws: Workspace, kind: str = "indexes", *, space: str = "mini") -> str:
    with ws.stage(kind) as staged:
        staged.write_bytes("top.bin", b"data")
        staged.write_bytes("shard-0/dense.bin", b"vectors")
        return staged.publish({"encoder": {"space": space}})


def read(ws: Workspace) -> tuple[int, str | None, str | None]:
    now = ws.current()
    return now.generation, now.index, now.model


# -- versions -------------------------------------------------------------------------------------


def test_a_published_version_lists_every_file_with_size_and_checksum(ws: Workspace) -> None:
    version = publish(ws)
    manifest = ws.verify("indexes", version)
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {"top.bin": 4, "shard-0/dense.bin": 7}
    # b2sum -l 128 of "data"
    assert manifest["files"]["top.bin"]["blake2b"] == "82f64e6be809763df98195dfa5de656c"
    assert (manifest["kind"], manifest["version"], manifest["encoder"]) == ("indexes", version, {"space": "mini"})


def test_a_version_is_invisible_until_it_is_published(ws: Workspace) -> None:
    with ws.stage("indexes") as staged:
        staged.write_bytes("top.bin", b"data")
        assert ws.versions("indexes") == []
        with pytest.raises(NotFound, match="is not a published version; the latest are: none"):
            ws.promote(index=staged.version)
        staged.publish({})
        assert ws.versions("indexes") == [staged.version]


def test_a_version_that_is_not_published_is_removed(ws: Workspace) -> None:
    with ws.stage("indexes") as staged:
        staged.write_bytes("top.bin", b"data")
    assert ws.names("indexes") == []
    with ws.stage("indexes"):
        pass  # nor is it an error that nothing was written


def test_a_version_whose_job_fails_is_removed(ws: Workspace) -> None:
    def job() -> None:
        with ws.stage("indexes") as staged:
            staged.write_bytes("top.bin", b"data")
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        job()
    assert ws.names("indexes") == []


def test_versions_are_listed_by_age_within_a_second_too(ws: Workspace) -> None:
    made = []
    for now_s in (1e9, 1e9 + 0.001, 1e9 + 0.002, 1e9 + 0.003, 1e9 + 7):
        with ws.stage("catalog", now_s=now_s) as staged:
            staged.write_bytes("items", b"")
            made.append(staged.publish({}))
    assert ws.versions("catalog") == made
    assert ws.latest("catalog") == made[-1]
    assert made[0].startswith("20010909-014640-")
    assert ws.latest("events") is None


def test_an_uploaded_tree_is_part_of_the_version_and_may_be_sent_twice(ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "a.bin").write_bytes(b"abc")
    with ws.stage("indexes") as staged:
        for _ in range(2):
            staged.upload(tmp_path / "tree", "shard-0")
        version = staged.publish({})
    assert list(ws.verify("indexes", version)["files"]) == ["shard-0/deep/a.bin"]
    assert (ws.local_copy("indexes", version) / "shard-0" / "deep" / "a.bin").read_bytes() == b"abc"


def test_a_workspace_that_is_not_there_is_not_found_unless_it_is_to_be_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no workspace at"):
        Workspace.open(tmp_path / "ws", create=False)
    Workspace.open(tmp_path / "ws")
    assert read(Workspace.open(tmp_path / "ws", create=False)) == (0, None, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(RayrecError, match="cannot create a workspace"):
        Workspace.open(tmp_path / "file" / "ws")


# -- damage ---------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[Workspace, str], None]] = {
    "truncated": lambda ws, v: ws.write_bytes(b"vec", "indexes", v, "shard-0", "dense.bin"),
    "altered": lambda ws, v: ws.write_bytes(b"rotcevs", "indexes", v, "shard-0", "dense.bin"),
    "missing": lambda ws, v: ws.fs.delete_file(ws.path("indexes", v, "shard-0", "dense.bin")),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("action", ["verify", "local_copy", "promote", "rollback"])
def test_a_damaged_file_is_named_and_nothing_moves(ws: Workspace, damage: str, action: str) -> None:
    version = publish(ws)
    ws.promote(index=version)
    ws.promote(index=publish(ws))
    before = ws.current()
    DAMAGE[damage](ws, version)
    calls: dict[str, Callable[[], Any]] = {
        "verify": lambda: ws.verify("indexes", version),
        "local_copy": lambda: ws.local_copy("indexes", version),
        "promote": lambda: ws.promote(index=version),
        "rollback": ws.rollback,
    }
    with pytest.raises(IncompatibleArtifact, match=f"indexes/{version}/shard-0/dense.bin: .*{damage}"):
        calls[action]()
    assert ws.current() == before


def test_rollback_refuses_a_damaged_model(ws: Workspace) -> None:
    index, model = publish(ws), publish(ws, "models")
    ws.promote(index=index, model=model)
    ws.promote(model="none")
    ws.write_bytes(b"dat", "models", model, "top.bin")
    with pytest.raises(IncompatibleArtifact, match=rf"models/{model}/top\.bin"):
        ws.rollback()


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"format": 1}', b'{"format": 1, "fi', b"\xff"])
def test_a_damaged_manifest_is_named(ws: Workspace, content: bytes) -> None:
    version = publish(ws)
    ws.write_bytes(content, "indexes", version, "manifest.json")
    with pytest.raises(IncompatibleArtifact, match=rf"indexes/{version}/manifest\.json: not"):
        ws.promote(index=version)


def test_a_relative_directory_is_known_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Workspace.open("shop").uri == str(tmp_path / "shop")


def test_a_manifest_of_another_version_is_refused(ws: Workspace) -> None:
    one, other = publish(ws), publish(ws)
    ws.write_bytes(ws.read_bytes("indexes", other, "manifest.json"), "indexes", one, "manifest.json")
    with pytest.raises(IncompatibleArtifact, match=f"indexes/{one}/manifest.json: made for indexes/{other}"):
        ws.verify("indexes", one)


def test_a_manifest_of_another_format_is_refused(ws: Workspace) -> None:
    version = publish(ws)
    manifest = {**ws.manifest("indexes", version), "format": 99}
    ws.write_bytes(json.dumps(manifest).encode(), "indexes", version, "manifest.json")
    with pytest.raises(IncompatibleArtifact, match="format 99, this rayrec reads 1"):
        ws.promote(index=version)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"gen', b'{"generation": "x"}', b'{"what": 1}', b"\xff"])
def test_a_damaged_pointer_says_what_to_do_and_that_helps(ws: Workspace, content: bytes) -> None:
    version = publish(ws)
    ws.write_bytes(content, "current.json")
    for action in (ws.current, ws.rollback, lambda: ws.promote(index=version)):
        with pytest.raises(IncompatibleArtifact, match=r"current\.json is damaged .* remove it, then promote"):
            action()
    ws.fs.delete_file(ws.path("current.json"))
    assert ws.promote(index=version).index == version


def test_a_download_is_kept_and_made_again_when_it_is_damaged(tmp_path: Path) -> None:
    ws = Workspace.open(f"memory:/{tmp_path}/ws")
    version = publish(ws)
    copy = ws.local_copy("indexes", version)
    assert copy.is_relative_to(tmp_path / "cache")
    assert (copy / "shard-0" / "dense.bin").read_bytes() == b"vectors"
    inode = (copy / "top.bin").stat().st_ino
    assert (ws.local_copy("indexes", version) / "top.bin").stat().st_ino == inode
    (copy / "top.bin").write_bytes(b"dat")
    assert (ws.local_copy("indexes", version) / "top.bin").read_bytes() == b"data"


def test_a_download_of_a_damaged_version_leaves_nothing_behind(tmp_path: Path) -> None:
    ws = Workspace.open(f"memory:/{tmp_path}/ws")
    version = publish(ws)
    ws.write_bytes(b"dat", "indexes", version, "top.bin")
    with pytest.raises(IncompatibleArtifact, match=r"top\.bin"):
        ws.local_copy("indexes", version)
    assert list((tmp_path / "cache").iterdir()) == []
    ws.write_bytes(b"data", "indexes", version, "top.bin")
    assert (ws.local_copy("indexes", version) / "top.bin").read_bytes() == b"data"


# -- the pointer ----------------------------------------------------------------------------------


def test_promoting_moves_the_pointer_and_rolling_back_moves_it_back_step_by_step(ws: Workspace) -> None:
    a, b, c, model = publish(ws), publish(ws), publish(ws), publish(ws, "models")
    assert read(ws) == (0, None, None)
    ws.promote(index=a)
    ws.promote(index=b, model=model)
    ws.promote(index=c)
    assert read(ws) == (3, c, model)
    ws.rollback()
    assert read(ws) == (4, b, model)
    ws.rollback()
    assert read(ws) == (5, a, None)
    with pytest.raises(NotFound, match="nothing to roll back to"):
        ws.rollback()
    ws.promote(index=c)
    ws.rollback()
    assert read(ws) == (7, a, None)


def test_a_model_answers_only_with_an_index_of_its_space(ws: Workspace) -> None:
    index, other = publish(ws), publish(ws, space="other")
    model = publish(ws, "models")
    with pytest.raises(IncompatibleArtifact, match=f"models/{model} cannot answer without an index"):
        ws.promote(model=model)
    ws.promote(index=index, model=model)
    with pytest.raises(IncompatibleArtifact, match=f"made for embedding space mini, indexes/{other} holds other"):
        ws.promote(index=other)
    assert read(ws) == (1, index, model)
    ws.promote(index=other, model="none")
    assert read(ws) == (2, other, None)


def test_an_unknown_version_is_not_found_and_a_stale_generation_conflicts(ws: Workspace) -> None:
    version = publish(ws)
    with pytest.raises(NotFound, match=f"indexes/nope is not a published version; the latest are: {version}"):
        ws.promote(index="nope")
    ws.promote(index=version, expect_generation=0)
    with pytest.raises(Conflict, match="at generation 1, not 0"):
        ws.promote(index=version, expect_generation=0)
    assert ws.current() == Pointer(1, version)


def test_promoting_what_answers_already_leaves_rollback_its_meaning(ws: Workspace) -> None:
    first, second = publish(ws), publish(ws)
    for version in (first, second, second):
        ws.promote(index=version)
    assert ws.rollback().index == first


# -- replacing what must not be known -------------------------------------------------------------


def two_files(ws: Workspace) -> str:
    with ws.stage("events") as staged:
        staged.write_bytes("a", b"old a")
        staged.write_bytes("b", b"old b")
        return staged.publish({"counts": {"events": 2}})


@pytest.mark.parametrize("writes", range(5))
def test_a_replacement_that_is_killed_leaves_a_whole_version_and_is_ended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    ws = Workspace.open(tmp_path)
    version = two_files(ws)
    new, write, left = {"a": b"a", "b": b"b"}, Workspace.write_bytes, [writes]

    def killed(self: Workspace, *args: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "write_bytes", killed)
        if writes < 4:
            with pytest.raises(KeyboardInterrupt):
                ws.replace("events", version, new, counts={"events": 1})
        else:
            ws.replace("events", version, new, counts={"events": 1})
    ws.verify("events", version)

    ws.replace("events", version, {}) if writes == 3 else ws.replace("events", version, new, counts={"events": 1})
    manifest = ws.verify("events", version)
    assert (ws.read_bytes("events", version, "a"), ws.read_bytes("events", version, "b")) == (b"a", b"b")
    assert manifest["counts"] == {"events": 1}
    assert not any("was" in entry for entry in manifest["files"].values())
    ws.write_bytes(b"old a", "events", version, "a")
    with pytest.raises(IncompatibleArtifact, match="a: 5 bytes, manifest says 1"):
        ws.verify("events", version)


def test_a_verification_that_meets_a_replacement_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = Workspace.open(tmp_path)
    version = two_files(ws)
    before = ws.manifest("events", version)
    ws.replace("events", version, {"a": b"a"})
    read = iter([before])
    manifest = Workspace.manifest
    monkeypatch.setattr(Workspace, "manifest", lambda self, *of: next(read, None) or manifest(self, *of))
    assert ws.verify("events", version) == manifest(ws, "events", version)
