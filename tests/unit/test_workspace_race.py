"""Real processes move one pointer: no generation is won twice, none is lost."""

import multiprocessing
from pathlib import Path
from typing import Any

from rayrec.errors import Conflict
from rayrec.workspace import Workspace

GENERATIONS = 40


def publish(ws: Workspace) -> str:
    with ws.stage("indexes") as staged:
        staged.write_bytes("top.bin", b"data")
        return staged.publish({})


def race(uri: str, version: str, start: Any, won: Any) -> None:
    """Promote until all generations are made; tell which of them were ours."""
    ws = Workspace.open(uri, create=False)
    mine = []
    start.wait()
    while (generation := ws.current().generation) < GENERATIONS:
        try:
            mine.append(ws.promote(index=version, expect_generation=generation).generation)
        except Conflict:
            continue
    won.put((version, mine))


def test_of_processes_that_race_one_wins_each_generation_and_readers_see_no_half(tmp_path: Path) -> None:
    ws = Workspace.open(tmp_path / "ws")
    versions = [publish(ws) for _ in range(3)]
    spawn = multiprocessing.get_context("spawn")
    start, won = spawn.Barrier(len(versions) + 1), spawn.Queue()
    racers = [spawn.Process(target=race, args=(ws.uri, version, start, won)) for version in versions]
    for racer in racers:
        racer.start()
    start.wait(60)
    seen = []
    while not seen or seen[-1].generation < GENERATIONS:
        seen.append(ws.current())  # raises if it meets half a file
    wins = dict(won.get(timeout=60) for _ in versions)
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0] * len(racers)
    assert sorted(generation for mine in wins.values() for generation in mine) == list(range(1, GENERATIONS + 1))
    assert [p.generation for p in seen] == sorted(p.generation for p in seen)
    assert all(p.generation in wins[p.index] for p in seen if p.index is not None)
