"""The fusion model's task: what it is asked, that workers add up, and that it learns what there is to learn."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from rayrec.config import LossConfig, RecommenderConfig, TrainConfig, TrainingConfig
from rayrec.data.histories import DAY_US, SEARCH, Cases, Histories, leave_one_out
from rayrec.errors import SchemaError
from rayrec.evaluation.protocol import judge
from rayrec.models.features import FeatureSchema
from rayrec.schema import EVENT_TYPES, ITEMS

torch = pytest.importorskip("torch")
from rayrec.fitting.recommender import RecommenderTask, next_basket_items, next_items, windows  # noqa: E402
from rayrec.fitting.training import train  # noqa: E402
from rayrec.models.recommender import Recommender  # noqa: E402

N, DIM = 30, 8
BUY = EVENT_TYPES.index("purchase")


def config(loss=None, epochs=10, **model):
    form = {"dim": 16, "length": 10, "dropout": 0, "content_dropout": 0, "id_dropout": 0, **model}
    return TrainConfig(
        model=RecommenderConfig(**form),
        loss=LossConfig(**(loss or {})),
        training=TrainingConfig(
            batch=64, learning_rate=1e-2, warmup=0, weight_decay=0, max_gradient_norm=10, patience=99
        ),
        epochs=epochs,
    )


def shop(n=N):
    rows = [
        {"item_id": f"{i:02}", "title": f"item {i}", "brand": f"b{i % 3}", "price_cents": 100 + i} for i in range(n)
    ]
    return pa.Table.from_pylist(rows, schema=ITEMS)


def cycles(people=120, seed=0, n=N):
    """After item i comes i + 1, around."""
    rng = np.random.default_rng(seed)
    return Histories.of_rows([(int(rng.integers(n)) + np.arange(rng.integers(4, 9))) % n for _ in range(people)])


def make(config, histories, text=None, queries=None, seed=0, split=None, **workers):
    learned, valid, test = split or leave_one_out(histories)
    schema = FeatureSchema.fit(shop(), DIM, 0, min_count=2, max_tokens=100)
    text = np.eye(N, DIM, dtype=np.float32) if text is None else text
    torch.manual_seed(seed)
    known = np.bincount(learned.rows[learned.rows >= 0], minlength=N) > 0
    model = Recommender(config.model, schema, known, 4)
    return RecommenderTask(config, model, schema.content(shop(), text, None), learned, valid, queries, **workers), test


@pytest.mark.parametrize("loss", [{"kind": "full"}, {"kind": "sampled", "log_q": True}, {"kind": "gbce"}])
@pytest.mark.parametrize("strategy", ["id", "weighted", "concat", "gated", "attention"])
def test_every_loss_and_strategy_learns_what_comes_next(loss, strategy):
    epochs = 80 if loss["kind"] == "gbce" else 10
    task, test = make(config({**loss, "negatives": 20}, epochs, strategy=strategy), cycles())
    before = task.judge(test).figures()["hr@5"]
    train(task, task.training())
    assert task.judge(test).figures()["hr@5"] > max(0.8, before)


def test_with_gates_heads_and_blocks_it_learns_too():
    task, test = make(config({"kind": "full"}, gates=True, heads=2, blocks=2, feed_forward=2), cycles())
    train(task, task.training())
    assert task.judge(test).figures()["hr@5"] > 0.8


def test_auto_is_exact_for_a_small_catalog():
    task, _ = make(config(), cycles())
    assert task._kind == "full"


@pytest.mark.parametrize("loss", [{"kind": "full"}, {"kind": "sampled", "negatives": 20, "log_q": True}])
def test_gradients_of_two_workers_are_those_of_one_with_the_whole_batch(loss):
    alone = config(loss)
    shared = alone.model_copy(update={"training": alone.training.model_copy(update={"batch": 32})})
    one, _ = make(alone, cycles())
    two = [make(shared, cycles(), rank=rank, world=2)[0] for rank in range(2)]
    assert one.steps_an_epoch == two[0].steps_an_epoch > 2
    for step in (0, 1, one.steps_an_epoch + 1):
        for task in (one, *two):
            task.module.train()
            task.module.zero_grad()
            task.loss(step).backward()
        for whole, first, second in zip(*(task.module.parameters() for task in (one, *two)), strict=True):
            if whole.grad is None:
                assert first.grad is None
                continue
            mean = (first.grad + second.grad) / 2
            torch.testing.assert_close(mean, whole.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strategy", ["id", "weighted", "attention"])
def test_in_half_precision_loss_and_gradients_stay_close(strategy):
    """As on a GPU, here on the CPU."""
    full, half = (make(config(strategy=strategy), cycles())[0] for _ in range(2))
    half.half = True
    losses = []
    for task in (full, half):
        loss = task.loss(0)
        loss.backward()
        losses.append(float(loss.detach()))
        assert loss.dtype == torch.float32
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    for one, other in zip(full.module.parameters(), half.module.parameters(), strict=True):
        if one.grad is not None:
            assert torch.isfinite(other.grad).all()
            assert torch.dist(one.grad, other.grad) < 0.1 * torch.linalg.norm(one.grad) + 1e-3


def test_an_epoch_has_every_event_once():
    task, _ = make(config(), cycles())
    for epoch in (0, 1):
        seen = np.sort(np.concatenate(task._plan(epoch)))
        np.testing.assert_array_equal(seen, np.arange(len(task._windows)))
    assert [len(b) for b in task._plan(0)] != [len(b) for b in task._plan(1)] or not np.array_equal(
        task._plan(0)[0], task._plan(1)[0]
    )


def test_a_new_item_is_recommended_by_what_it_is():
    """Shoppers stay within a kind of item, which the text tells; one item of each kind is new."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].astype(np.float32)
    kinds = np.arange(N) % DIM
    text = directions[kinds] + 0.05 * rng.normal(size=(N, DIM)).astype(np.float32)
    old = np.arange(N - DIM)
    people = [rng.permutation(old[kinds[old] == rng.integers(DIM)])[:2] for _ in range(600)]
    new = np.arange(N - DIM, N)
    asked = Cases(Histories.of_rows([[int(kinds[i])] for i in new]), np.arange(len(new) + 1), new)
    histories = Histories.of_rows(people)
    valid = Cases(Histories.of_rows([p[:1] for p in people]), np.arange(601), np.array([p[1] for p in people]))
    split = (histories, valid, asked)
    task, _ = make(config({"kind": "full"}, epochs=15, id_dropout=0.3), histories, text, split=split)
    train(task, task.training())
    assert not task._model.known[new].any()
    # of its kind there are two or three known ones, one of which was had
    assert judge(asked, task.scorer(), n_items=N, cuts=(3,)).figures()["hr@3"] > 0.7


def test_a_search_counts_like_what_was_bought():
    """What is bought depends on what was searched for before, and on nothing else."""
    rng = np.random.default_rng(0)
    people = 300
    asked = rng.integers(0, 4, (people, 3))
    rows = np.stack([rng.integers(4, N, (people, 3)), np.full((people, 3), -1), asked], axis=2).reshape(people, 9)
    queries = np.stack([np.full((people, 3), -1), asked, np.full((people, 3), -1)], axis=2)
    histories = Histories(
        np.arange(people).astype(str).astype(object),
        np.arange(people + 1) * 9,
        rows.ravel(),
        np.where(rows < 0, SEARCH, BUY).astype(np.int8).ravel(),
        np.tile(np.arange(9) * DAY_US, people),
        np.arange(people * 9),
        queries.ravel(),
        ["a", "b", "c", "d"],
    )
    task, _ = make(config({"kind": "full"}), histories, queries=np.eye(4, dtype=np.float32))
    ask = histories.window(np.arange(people), histories.start[:-1], histories.start[:-1] + 8)
    cases = Cases(ask, np.arange(people + 1), asked[:, 2])
    train(task, task.training())
    assert judge(cases, task.scorer(), n_items=N, mask_seen=False, cuts=(1,)).figures()["hr@1"] > 0.95


def test_beta_is_tuned_on_the_judging_cases():
    task, _ = make(config(epochs=3), cycles())
    train(task, task.training())
    before = task.evaluate()
    task.tune()
    assert task.evaluate() >= before  # nothing here is new, so newcomers change nothing
    assert bool((task._model.known == 1).all())


@pytest.mark.parametrize(("cost", "longest"), [(0.0, 1.3), (0.9, 2.0)])
def test_newcomers_are_lengthened_as_far_as_others_can_bear_it(cost, longest):
    task, _ = make(config(epochs=6, newcomer_cost=cost), cycles())
    train(task, task.training())
    task.tune()
    newcomers = float(task._model.fusion.newcomers)
    assert 1 <= newcomers <= longest
    assert cost == 0 or newcomers == 2.0
    task._model.known[:5] = 0
    lengthened = task.scorer()(Histories.of_rows([[7, 8]]))
    task._model.fusion.newcomers.fill_(1.0)
    plain = task.scorer()(Histories.of_rows([[7, 8]]))
    np.testing.assert_allclose(lengthened[:, :5], newcomers * plain[:, :5], rtol=1e-5)
    np.testing.assert_allclose(lengthened[:, 9:], plain[:, 9:], rtol=1e-5)


def test_long_histories_are_cut_so_that_each_event_is_foreseen_once():
    found = windows(Histories.of_rows([list(range(8)), [1], [2, 3]]), 3)
    cut = [found.rows[a:b].tolist() for a, b in zip(found.start[:-1], found.start[1:], strict=True)]
    assert cut == [[0, 1], [1, 2, 3, 4], [4, 5, 6, 7], [1], [2, 3]]


def test_next_items_by_hand():
    rows = np.array([[5, -1, 7, 8], [3, 4, -1, -1]])
    kinds = np.array([[BUY + 1, SEARCH + 1, 1, BUY + 1], [BUY + 1, BUY + 1, 0, 0]])
    weights = np.zeros(len(EVENT_TYPES))
    weights[[0, BUY]] = 0.1, 1.0
    target, weight = next_items(rows, kinds, weights)
    assert target.tolist() == [[7, 7, 8, -1], [4, -1, -1, -1]]
    assert weight.tolist() == [[0.1, 0.1, 1, 0], [1, 0, 0, 0]]


def test_what_is_not_taught_comes_before_what_is_and_counts_nothing():
    rows, kinds = np.array([[5, 6, 7, 8]]), np.full((1, 4), BUY + 1)
    taught = np.array([[True, False, True, False]])
    weights = np.ones(len(EVENT_TYPES))
    target, weight = next_items(rows, kinds, weights, taught)
    assert target.tolist() == [[6, 7, 8, -1]]
    assert weight.tolist() == [[0, 1, 0, 0]]
    baskets = np.array([[1, 2, 3, 4]])
    target, weight = next_basket_items(rows, kinds, baskets, weights, np.random.default_rng(0), taught)
    assert (target.tolist(), weight.tolist()) == ([[6, 7, 8, -1]], [[0, 1, 0, 0]])


def test_windows_without_anything_taught_take_no_step():
    histories = replace(cycles(), places=np.arange(len(cycles().rows)))
    whole, _ = make(config(), histories, split=(histories, *leave_one_out(histories)[1:]))
    taught = np.zeros(len(histories.rows), bool)
    taught[histories.start[1] - 1] = True  # the last event of the first shopper
    part, _ = make(config(), histories, split=(histories, *leave_one_out(histories)[1:]), taught=taught)
    assert len(whole._windows) == 120
    assert part._windows.users.tolist() == ["0"]
    with pytest.raises(SchemaError, match="nothing to learn from"):
        make(config(), histories, split=(histories, *leave_one_out(histories)[1:]), taught=taught & False)


def test_next_basket_items_are_of_the_basket_after_the_own_one():
    rows = np.array([[5, 6, 7, -1, 8, 9], [3, 4, -1, -1, -1, -1]])
    kinds = np.array([[4, 4, 4, SEARCH + 1, 4, 4], [4, 4, 0, 0, 0, 0]])
    baskets = np.array([[1, 1, 2, 3, 3, 3], [4, 4, -1, -1, -1, -1]])
    weights = np.ones(len(EVENT_TYPES))
    seen = set()
    for seed in range(30):
        target, weight = next_basket_items(rows, kinds, baskets, weights, np.random.default_rng(seed))
        assert target[0, :2].tolist() == [7, 7]
        assert weight.tolist() == [[1, 1, 1, 0, 0, 0], [0] * 6]
        assert target[1].tolist() == [-1] * 6
        seen.add(int(target[0, 2]))
    assert seen == {8, 9}


def test_the_next_basket_is_learned_where_the_order_within_one_says_nothing():
    """Every shopper buys the items of a kind in any order, and those of the next kind the time after."""
    rng = np.random.default_rng(0)
    people, baskets, size = 200, 4, 3
    kinds = (rng.integers(N // 5, size=(people, 1)) + np.arange(baskets)) % (N // 5)
    rows = np.stack([5 * kinds + i for i in range(5)], axis=2)
    rows = rng.permuted(rows, axis=2)[:, :, :size].reshape(people, -1)
    plain = Histories.of_rows(rows.tolist())
    of_basket = np.repeat(np.arange(people * baskets), size)
    histories = replace(plain, baskets=of_basket, ts_us=of_basket * DAY_US)
    end = histories.start[:-1] + (baskets - 1) * size
    learned = histories.window(np.arange(people), histories.start[:-1], end)
    wanted = np.arange(people + 1) * size
    cases = Cases(learned, wanted, rows[:, -size:].ravel())
    task, _ = make(config({"kind": "full", "target": "next_basket"}), histories, split=(learned, cases, cases))
    train(task, task.training())
    # of five items of the next kind three are bought
    assert task.judge(cases).figures()["recall@5"] > 0.9


def test_a_step_without_anything_to_foresee_changes_nothing():
    task, _ = make(config({"target": "next_basket"}), cycles())
    task._wanted = lambda step, batch, counts: (np.full(batch.rows.shape, -1), np.zeros(batch.rows.shape))
    task.loss(0).backward()
    assert all(p.grad is None or not p.grad.any() for p in task.module.parameters())


def test_of_one_basket_each_there_is_no_next_one():
    histories = Histories.of_rows([[1, 2, 3, 4]] * 10)
    with pytest.raises(SchemaError, match="two baskets"):
        make(config({"target": "next_basket"}), replace(histories, baskets=np.repeat(np.arange(10), 4)))


def test_events_that_tell_nothing_are_told():
    with pytest.raises(SchemaError, match="nothing to learn from"):
        make(config(), Histories.of_rows([[1], [2], [3]] * 10))


def test_a_worker_without_a_share_of_a_batch_has_no_gradient():
    small = config()
    small = small.model_copy(update={"training": small.training.model_copy(update={"batch": 2})})
    task, _ = make(small, cycles(people=12), rank=1, world=2)
    step = min(range(task.steps_an_epoch), key=lambda step: len(task._plan(0)[step]))
    assert len(task._plan(0)[step]) == 1
    task.loss(step).backward()
    assert all(p.grad is None or not p.grad.any() for p in task.module.parameters())
