"""What each fit does to a tiny model: who learns, who stays, what is saved, and that it gets better."""

import json

import numpy as np
import pytest

from rayrec.config import EncoderConfig, FitImagesConfig, FitTextConfig, TrainingConfig, TrimConfig
from rayrec.errors import SchemaError
from tests.fakes import make_items, make_tiny_model

torch = pytest.importorskip("torch")
from rayrec.encoders.text import TextModel, TorchTextEncoder  # noqa: E402
from rayrec.fitting.text import TextTask, held_out  # noqa: E402
from rayrec.fitting.training import judge, train  # noqa: E402
from rayrec.fitting.trimming import TrimTask, check_layers, trimmed  # noqa: E402

pytestmark = pytest.mark.model

WORDS = ["usb", "cable", "frozen", "pizza", "thin", "crust", "four", "cheeses", "red", "blue", "shoe"]


def shop():
    """110 items of two words each: every pair of words once, both ways."""
    pairs = [(a, b) for a in WORDS for b in WORDS if a != b]
    return make_items({"item_id": f"i{n:03d}", "title": f"{a} {b}"} for n, (a, b) in enumerate(pairs))


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def tiny(request, tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp(request.param), request.param))


def training(**values):
    return TrainingConfig(**{"steps": 20, "batch": 16, "learning_rate": 0.01, "evaluate_every": 10, **values})


def text_task(model, vectors=None, **values):
    encoder = EncoderConfig(model=model, max_tokens=16)
    config = FitTextConfig(**{"encoder": encoder, "training": training(), "held_out": 0.3, "rank": 4, **values})
    items = shop()
    if vectors is None:
        vectors = TorchTextEncoder(TextModel.of(encoder), device="cpu").encode(items.column("title").to_pylist())
    return TextTask(config, items, vectors), items, vectors


def keep_last(task):
    """Let each evaluation be better than the one before, so that the last weights are kept."""
    calls = iter(range(99))
    task.evaluate = lambda: float(next(calls))


@pytest.fixture(autouse=True)
def all_words_may_be_asked(monkeypatch):
    monkeypatch.setattr("rayrec.fitting.pairs.MAX_SHARE", 1.0)
    monkeypatch.setattr("rayrec.fitting.pairs.MIN_ITEMS", 1)


@pytest.mark.parametrize("side", ["query", "both"])
def test_a_fit_learns_its_adapter_alone_and_gets_better(tiny, side):
    anywhere = np.random.default_rng(0).normal(size=(110, 32)).astype(np.float32)
    anywhere /= np.linalg.norm(anywhere, axis=1, keepdims=True)
    task, _, _ = text_task(tiny, vectors=anywhere if side == "query" else None, side=side)
    before = {name: p.detach().clone() for name, p in task.module.named_parameters()}
    task.module.eval()
    first = float(task.loss(99).detach())
    keep_last(task)
    train(task, training(steps=60, learning_rate=3e-3))
    task.module.eval()
    assert float(task.loss(99).detach()) < 0.95 * first
    changed = {name for name, p in task.module.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_what_is_saved_is_what_was_fitted_and_maps_queries_into_the_bases_space(tiny, tmp_path):
    task, _, _ = text_task(tiny)
    keep_last(task)
    train(task, training())
    task.module.eval()
    with torch.no_grad():
        wanted = task._encode(["usb cable", "red shoe"], "query").numpy()
    directory = task.save(tmp_path)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    model = TextModel.read(str(directory), max_tokens=16)
    base = TextModel.read(tiny, max_tokens=16)
    assert model.space == base.space
    assert model.fitted.startswith("query-")
    found = TorchTextEncoder(model, device="cpu").encode(["usb cable", "red shoe"], "query")
    assert (found * wanted).sum(1).min() > 0.999  # bf16 while fitting
    plain = TorchTextEncoder(base, device="cpu").encode(["usb cable", "red shoe"])
    assert (found * plain).sum(1).max() < 0.9999


def test_a_model_fitted_on_both_sides_has_a_space_of_its_own(tiny, tmp_path):
    task, _, _ = text_task(tiny, side="both")
    train(task, training(steps=2))
    model = TextModel.read(str(task.save(tmp_path)), max_tokens=16)
    assert model.fitted == ""
    assert model.space != TextModel.read(tiny, max_tokens=16).space


def test_a_share_of_an_adapter_is_between_nothing_and_all_of_it(tiny):
    task, _, _ = text_task(tiny, share=0.5)
    keep_last(task)
    train(task, training())
    deltas = []
    for _ in range(2):
        layer = next(m for m in task.module.modules() if hasattr(m, "get_delta_weight"))
        deltas.append(layer.get_delta_weight("default").detach().clone())
        task.soften()
    torch.testing.assert_close(deltas[1], deltas[0] / 2)


def test_held_out_queries_are_never_learned_and_alone_judge(tiny):
    task, _, _ = text_task(tiny)
    judges = {query for query, _ in task._judges}
    rng = np.random.default_rng(0)
    learned = {task._draw(rng).query for _ in range(500)}
    assert all(held_out(query, 0.3) for query in judges)
    assert not judges & learned
    assert not any(held_out(query, 0.3) for query in learned)


def test_frozen_layers_get_no_adapter(tiny):
    task, _, _ = text_task(tiny, frozen_layers=1)
    adapted = [name for name, _ in task.module.named_parameters() if "lora_" in name]
    assert adapted
    assert all(".1." in name for name in adapted)
    with pytest.raises(SchemaError, match="leaves no layer"):
        text_task(tiny, frozen_layers=2)


@pytest.mark.parametrize(
    ("option", "seen"),
    [
        ({"word_dropout": 0.5}, lambda q: len(q.split()) == 1),
        ({"synonyms": {"cable": ["cord"]}, "synonym_share": 1.0}, lambda q: "cord" in q),
    ],
)
def test_augmented_queries_reach_the_encoder(tiny, monkeypatch, option, seen):
    task, _, _ = text_task(tiny, sources={"title": 1}, **option)
    asked = []
    encode = task._encode
    monkeypatch.setattr(task, "_encode", lambda texts, role: asked.extend(texts) or encode(texts, role))
    for step in range(8):
        task.loss(step)
    assert any(seen(query) for query in asked)
    if "synonyms" in option:
        assert not any("cable" in query for query in asked)


def test_the_adversary_reaches_the_embeddings_and_leaves_them_as_they_were(tiny):
    task, _, _ = text_task(tiny, training=training(adversarial_epsilon=0.5))
    before = [m.weight.detach().clone() for m in task.module.modules() if isinstance(m, torch.nn.Embedding)]
    train(task, training(steps=3, adversarial_epsilon=0.5))
    after = [m.weight.detach() for m in task.module.modules() if isinstance(m, torch.nn.Embedding)]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(old, new)


def test_the_same_seed_fits_the_same_and_another_does_not(tiny):
    def weights(seed):
        config = training(steps=3, seed=seed, dropout=0.1)
        task, _, _ = text_task(tiny, training=config)
        train(task, config)
        return torch.cat([p.detach().flatten() for name, p in task.module.named_parameters() if "lora_" in name])

    first = weights(0)
    torch.testing.assert_close(weights(0), first)
    assert not torch.allclose(weights(1), first)


# -- fewer layers ---------------------------------------------------------------------------------


def test_a_student_has_the_layers_that_are_kept(tiny):
    model = TextModel.read(tiny, max_tokens=16)
    from rayrec.encoders.text import load_torch

    whole = load_torch(model)
    student = trimmed(whole, [1])
    assert student.backbone.config.num_hidden_layers == 1
    last = [p for name, p in whole.named_parameters() if ".1." in name]
    own = [p for name, p in student.named_parameters() if ".0." in name]
    for theirs, ours in zip(last, own, strict=True):
        torch.testing.assert_close(theirs, ours)
    for layers in (0, 2):
        with pytest.raises(SchemaError, match="expected 1 to 1"):
            check_layers(layers, 2)


@pytest.mark.parametrize("idle", [0, 1])
def test_a_student_starts_without_the_layer_that_it_misses_least(tmp_path, idle):
    encoder = EncoderConfig(model=str(make_tiny_model(tmp_path / "gpt2", "gpt2")), max_tokens=16)
    task = TrimTask(TrimConfig(encoder=encoder, layers=1, training=training(), held_out=0.3), "space-1", shop())
    layers = task._teacher.backbone.h
    with torch.no_grad():  # a layer that adds nothing to what it is given
        for projection in (layers[idle].attn.c_proj, layers[idle].mlp.c_proj):
            projection.weight.zero_()
            projection.bias.zero_()
    kept = task._start().backbone.h[0]
    torch.testing.assert_close(kept.mlp.c_proj.weight, layers[1 - idle].mlp.c_proj.weight)


def test_a_student_comes_closer_to_its_teacher_and_is_saved_as_a_variant_of_the_space(tiny, tmp_path):
    encoder = EncoderConfig(model=tiny, max_tokens=16)
    base = TextModel.of(encoder)
    config = TrimConfig(
        encoder=encoder, layers=1, training=training(steps=40, batch=32, learning_rate=1e-3), held_out=0.3
    )
    task = TrimTask(config, base.space, shop())
    before = judge(task)
    train(task, config.training)
    assert judge(task) > before or before > 0.9999  # random bert puts all texts in one place
    with torch.no_grad():
        wanted = task.vectors()
    directory = task.save(tmp_path)
    model = TextModel.read(str(directory), max_tokens=16)
    assert (model.space, model.fitted[:3]) == (base.space, "1l-")
    found = TorchTextEncoder(model, device="cpu").encode(task.judges, "query")
    assert (found * wanted).sum(1).min() > 0.99
    assert json.loads((directory / "rayrec.json").read_text())["space"] == base.space


# -- pictures -------------------------------------------------------------------------------------


def image_task(tmp_path, **values):
    """Ten items, each of its own colour; photos are that colour with noise."""
    from rayrec.fitting.images import ImageTask
    from tests.unit.encoders.test_image_models import transformers_directory

    directory, _ = transformers_directory("clip", tmp_path / "clip")
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (10, 3))

    def read(uri):
        row, number = map(int, uri.split("-"))
        noise = np.random.default_rng(number).integers(-20, 20, (40, 40, 3))
        return (colors[row] + noise).clip(0, 255).astype(np.uint8)

    texts = rng.normal(size=(10, 8)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    photos = [(f"{row}-{n}", row) for row in range(10) for n in range(1, 9)]
    judges = [(f"{row}-{n}", row) for row in range(10) for n in range(20, 24)]
    pictures = {row: f"{row}-0" for row in range(9)}  # the last item has none
    config = FitImagesConfig(
        backbone=str(directory), training=training(batch=20, learning_rate=0.003, dropout=0), **values
    )
    return ImageTask(config, texts, pictures, photos, judges, read), texts


def test_the_start_is_the_ridge_regression_and_already_finds_items(tmp_path):
    task, _ = image_task(tmp_path)
    assert judge(task) > 0.3  # one in ten by chance


def test_a_tower_gets_better_and_an_item_without_a_picture_keeps_its_text(tmp_path):
    task, texts = image_task(tmp_path)
    before = judge(task)
    train(task, training(steps=60, batch=20, learning_rate=0.003, dropout=0, patience=9))
    assert judge(task) > max(before, 0.6)
    items = task.items(1.0)
    np.testing.assert_allclose(items[9], texts[9], atol=1e-6)
    assert (items[:9] * texts[:9]).sum(1).max() < 0.999
    shown = [row for _, row in task._judges]
    assert task.found[[row == 9 for row in shown]].mean() > 0.5  # its photos find it by its text


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_only_the_last_layers_of_the_backbone_learn(tmp_path, share):
    task, _ = image_task(tmp_path, trained_share=share)
    task.module.train()
    task.loss(0).backward()
    learning = [p for p in task._tower.backbone.parameters() if p.grad is not None]
    assert bool(learning) == (share > 0)
    frozen = {id(p) for layer in task._frozen for p in layer.parameters()}
    assert not any(id(p) in frozen for p in learning)
    assert {id(p) for group in task.groups(0.1) for p in group["params"]} >= {id(p) for p in learning}


def test_a_saved_tower_gives_the_vectors_that_were_judged(tmp_path):
    from rayrec.encoders.image import OnnxImageEncoder

    task, _ = image_task(tmp_path)
    judge(task)
    photos = task._judges[:6]
    wanted = task.vectors(photos)
    id = task.save(tmp_path / "out", "texts-1")
    assert id.space == "texts-1"
    assert id.variant.startswith("photos-")
    found = OnnxImageEncoder(tmp_path / "out").encode([task._read(uri) for uri, _ in photos])
    assert (found * wanted).sum(1).min() > 0.99


def test_items_with_equal_texts_count_as_one(tmp_path):
    task, _ = image_task(tmp_path)
    task._same[1] = task._same[0]
    rows = task._candidates([0, 1], np.random.default_rng(0))
    assert len(rows) == 9
