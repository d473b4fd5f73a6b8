"""Which events are new to a model, when there is nothing to do yet, and what an update keeps of how it was trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayrec.config import SourceConfig, TrainConfig, TrainingConfig, UpdateConfig
from rayrec.data.histories import Histories, leave_one_out
from rayrec.errors import NotFound, SchemaError
from rayrec.pipelines import update as pipeline
from rayrec.pipelines.event_log import export_events, newest_events, read_events
from rayrec.pipelines.index import publish_events
from rayrec.pipelines.recommending import event_ids, item_ids, read_held_out, unseen
from rayrec.pipelines.update import UpdateSummary, count_new, trained_manifest, update
from rayrec.pipelines.updating import config_for
from rayrec.store import file_in, open_store
from rayrec.workspace import Workspace
from tests.fakes import DAY_US, NOW_US, FakeEncoder, make_catalog, make_events, publish_index

SOURCE = SourceConfig(path="events")
ITEMS = make_catalog(30)


def acts(days: int, *, prefix: str = "e", people: int = 40) -> list[dict[str, Any]]:
    ids = ITEMS.column("item_id").to_pylist()
    return [
        {
            "event_id": f"{prefix}{person}-{day}",
            "user_id": f"u{person:02}",
            "type": "purchase",
            "item_id": ids[(person + day) % len(ids)],
            "ts_us": NOW_US + day * DAY_US,
        }
        for person in range(people)
        for day in range(days)
    ]


def publish_trained(ws: Workspace, events: str, **more: Any) -> str:
    with ws.stage("models") as staged:
        staged.write_bytes("x", b"x")
        said = {
            "config": TrainConfig().model_dump(mode="json"),
            "catalog": ws.latest("catalog"),
            "events": events,
            "encoder": {"space": FakeEncoder().id.space, "id": str(FakeEncoder().id), "images": None},
            "recommender": {"weight": 1.0, "without_had": True},
        }
        return staged.publish({**said, **more})


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A trained model answers, of the four days that there are."""
    ws = Workspace.open(tmp_path / "ws")
    with ws.stage("catalog") as staged:
        staged.write_parquet("items.parquet", ITEMS)
        staged.publish({"counts": {"items": ITEMS.num_rows}})
    events = publish_events(make_events(acts(4)).sort_by("ts_us"), SOURCE, ws)
    ws.promote(index=publish_index(ws, ITEMS, make_events(acts(4))), model=publish_trained(ws, events))
    return ws


def take(ws: Workspace, events: list[dict[str, Any]]) -> None:
    store = open_store(file_in(ws.root))
    store.append(events)
    store.close()


def test_new_is_what_the_models_events_lack_whatever_its_time(ws: Workspace) -> None:
    known = newest_events(ws)
    late = {**acts(1)[0], "event_id": "late", "ts_us": NOW_US - 99 * DAY_US}
    take(ws, [late, acts(1)[1], *acts(2, prefix="f")])  # the second is known by its id
    export_events(ws)
    assert count_new(ws, known, newest_events(ws)) == 1 + 80
    assert count_new(ws, known, known) == 0


def test_without_new_events_or_with_few_nothing_is_trained(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: pytest.fail("trained"))
    assert update(UpdateConfig(), ws) == UpdateSummary(False, "no new events since the model that answers", 0, 0)
    take(ws, acts(1, prefix="f"))
    found = update(UpdateConfig(least=41), ws)
    assert found == UpdateSummary(False, "40 new events, fewer than 41", 40, 40)
    assert ws.current().generation == 1


def test_the_same_events_are_not_tried_twice_but_more_or_another_config_are(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, present = UpdateConfig(least=1), str(ws.current().model)
    take(ws, acts(1, prefix="f"))
    ran: list[dict[str, Any]] = []

    def refused(kind: str, worker: Any, config: UpdateConfig, arguments: dict[str, Any], *_: Any) -> dict[str, Any]:
        ran.append(arguments)
        how = {"present": arguments["present"], "config": config.model_dump(mode="json")}
        model = publish_trained(ws, arguments["events"], update=how, verdict={"promoted": len(ran) == 3})
        return {"promoted": False, "reason": "no gain", "model": model, "seconds": 1.0}

    monkeypatch.setattr(pipeline, "run", refused)
    monkeypatch.setattr(pipeline, "find_embeddings", lambda *_: str(FakeEncoder().id))
    first = update(config, ws)
    assert (first.promoted, first.new_events, first.events_offset) == (False, 40, 40)
    assert ws.current().model == present == ran[0]["present"]
    again = update(config, ws)
    assert again.model is None
    assert again.reason == f"no new events since models/{first.model}, made of the same ones, was refused"
    update(config.model_copy(update={"replay": 2.0}), ws)
    take(ws, acts(1, prefix="g"))
    assert update(config, ws).new_events == 80  # those that were refused are still new
    assert len(ran) == 3
    # that one passed, and yet does not answer: somebody rolled it back, or nobody lived to promote it
    assert "passed its gate: 'rayrec promote' lets it answer" in update(config, ws).reason
    assert (len(ran), ws.current().model) == (3, present)


def test_what_was_judged_against_another_model_does_not_answer(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    take(ws, acts(1, prefix="f"))
    monkeypatch.setattr(pipeline, "find_embeddings", lambda *_: str(FakeEncoder().id))
    by_hand: list[str] = []

    def meanwhile(*_: Any, **__: Any) -> dict[str, Any]:
        by_hand.append(publish_trained(ws, newest_events(ws)))
        ws.promote(model=by_hand[0])
        return {"promoted": True, "reason": "better", "model": publish_trained(ws, newest_events(ws)), "seconds": 1.0}

    monkeypatch.setattr(pipeline, "run", meanwhile)
    found = update(UpdateConfig(least=1), ws)
    assert not found.promoted
    assert found.reason == f"models/{by_hand[0]} answers since, against which it was not judged"
    assert ws.current().model == by_hand[0]


def test_a_model_that_passed_answers_though_an_index_was_promoted_in_that_moment(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(ws, acts(1, prefix="f"))
    monkeypatch.setattr(pipeline, "find_embeddings", lambda *_: str(FakeEncoder().id))
    made: list[str] = []

    def run(*_: Any, **__: Any) -> dict[str, Any]:
        made.append(publish_trained(ws, newest_events(ws)))
        return {"promoted": True, "reason": "better", "model": made[0], "seconds": 1.0}

    monkeypatch.setattr(pipeline, "run", run)
    read = Workspace.current
    stale = [replace(ws.current(), generation=ws.current().generation - 1)]
    monkeypatch.setattr(Workspace, "current", lambda self: stale.pop() if made and stale else read(self))
    found = update(UpdateConfig(least=1), ws)
    assert (found.promoted, ws.current().model, stale) == (True, made[0], [])


def test_an_update_that_was_killed_is_of_the_same_events_when_it_is_repeated_and_a_failed_one_is_not(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "find_embeddings", lambda *_: str(FakeEncoder().id))
    of: list[str] = []
    ends: list[BaseException | None] = [KeyboardInterrupt(), ValueError("broken"), None, None]

    def ending(kind: str, worker: Any, config: UpdateConfig, arguments: dict[str, Any], *_: Any) -> dict[str, Any]:
        of.append(arguments["events"])
        take(ws, acts(1, prefix=f"{len(of)}-"))  # the service goes on
        if (error := ends.pop(0)) is not None:
            raise error
        return {"promoted": False, "reason": "no gain", "seconds": 1.0}

    monkeypatch.setattr(pipeline, "run", ending)
    take(ws, acts(1, prefix="f"))
    with pytest.raises(KeyboardInterrupt):
        update(UpdateConfig(least=1), ws)
    with pytest.raises(ValueError, match="broken"):
        update(UpdateConfig(least=1), ws)
    assert of[1] == of[0] == newest_events(ws)
    assert update(UpdateConfig(least=1), ws).new_events == 40 * 3
    assert update(UpdateConfig(least=1), ws).new_events == 40 * 4
    assert len(set(of)) == 3


def test_what_cannot_be_trained_on_is_told(ws: Workspace) -> None:
    with pytest.raises(NotFound, match="no trained model answers"):
        trained_manifest(ws, None)
    with ws.stage("models") as staged:
        staged.write_bytes("x", b"x")
        bare = staged.publish({"encoder": {"space": "fake"}, "recommender": {"weight": 1.0}})
    with pytest.raises(SchemaError, match="does not say its config, catalog, events; run 'rayrec train' again"):
        trained_manifest(ws, bare)


def test_a_model_without_its_held_out_events_has_those_of_its_split(ws: Workspace) -> None:
    model = str(ws.current().model)
    table = read_events(ws, newest_events(ws))
    histories = Histories.of(table, item_ids(ws, str(ws.latest("catalog"))), sessions=True)
    _, valid, test = leave_one_out(histories)
    expected = {str(event_ids(table)[int(place)]) for place in [*valid.places, *test.places]}  # type: ignore[misc]
    assert expected == {f"e{person}-{day}" for person in range(40) for day in (2, 3)}
    assert set(read_held_out(ws, model).column("event_id").to_pylist()) == expected


def test_a_model_is_not_compared_where_it_learned_the_answer(ws: Workspace) -> None:
    first = newest_events(ws)
    take(ws, acts(6, prefix="f", people=20)[1:])
    export_events(ws)
    table = read_events(ws, newest_events(ws))
    histories = Histories.of(table, item_ids(ws, str(ws.latest("catalog"))), sessions=True)
    _, _, test = leave_one_out(histories)
    plain = ws.current().model
    assert len(unseen(ws, plain, table, test)) == len(unseen(ws, None, table, test)) == 40
    # an update that held out what its split would of the first events alone, and learned all later ones
    with ws.stage("models") as staged:
        staged.write_parquet("held_out.parquet", read_held_out(ws, str(plain)))
        said = {"events": newest_events(ws), "update": {"present": plain}, "recommender": {}}
        updated = staged.publish(said)
    left = unseen(ws, updated, table, test)
    assert sorted(map(str, left.histories.users)) == [f"u{person:02}" for person in range(20, 40)]
    assert first != newest_events(ws)


def test_an_update_is_slower_and_shorter_and_else_as_it_was_trained() -> None:
    trained = TrainConfig(training=TrainingConfig(learning_rate=0.01, batch=77, patience=9), epochs=40, judges=99)
    found = config_for(UpdateConfig(epochs=4, patience=1, workers=3), trained)
    assert found.training == trained.training.model_copy(update={"learning_rate": 0.0025, "patience": 1})
    assert (found.epochs, found.workers, found.judges, found.model) == (4, 3, 99, trained.model)
    assert config_for(UpdateConfig(learning_rate=0.5), trained).training.learning_rate == 0.5
