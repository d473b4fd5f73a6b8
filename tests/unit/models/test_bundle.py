"""A bundle answers without torch as the model does with it, and refuses what does not fit."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.config import RecommenderConfig
from rayrec.data.histories import SEARCH, Histories
from rayrec.errors import IncompatibleArtifact
from rayrec.models.features import FeatureSchema, collate
from rayrec.schema import ITEMS

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from rayrec.models import bundle  # noqa: E402
from rayrec.models.recommender import Recommender, Tensors, to_tensors  # noqa: E402

N, DIM, IMAGE = 12, 6, 6
ITEMS_TABLE = pa.Table.from_pylist(
    [{"item_id": f"{i:02}", "title": str(i), "brand": f"b{i % 2}", "price_cents": 100 * i} for i in range(N)],
    schema=ITEMS,
)


def make(strategy="weighted", images=True, **form):
    rng = np.random.default_rng(0)
    text = rng.normal(size=(N, DIM)).astype(np.float32)
    image = rng.normal(size=(N, IMAGE)).astype(np.float32) if images else None
    if image is not None:
        image[::3] = 0
    schema = FeatureSchema.fit(ITEMS_TABLE, DIM, IMAGE if images else 0, min_count=2, max_tokens=10)
    torch.manual_seed(0)
    config = RecommenderConfig(strategy=strategy, dim=8, length=5, heads=2, gates=True, **form)
    model = Recommender(config, schema, np.arange(N) < N - 2, 4).eval()
    for parameter in model.parameters():  # what starts at zero would hide a mistake
        torch.nn.init.normal_(parameter, std=0.3)
    return model, schema, text, image


def histories():
    """Three items, a search between; one item; nothing; more than the model sees."""
    rows = [[3, -1, 5, 7], [1], [], [1, 2, 3, 4, 5, 6, 7]]
    flat = np.array([row for each in rows for row in each], np.int64)
    return Histories(
        np.array(list("abcd"), object),
        np.cumsum([0, *map(len, rows)]),
        flat,
        np.where(flat < 0, SEARCH, 3).astype(np.int8),
        np.arange(len(flat)) * 3_600_000_000,
        np.arange(len(flat)),
        np.where(flat < 0, 0, -1),
        ["tea"],
    )


@pytest.mark.parametrize("strategy", ["id", "weighted", "gated"])
def test_a_restored_model_is_the_same_over_a_catalog_that_grew_and_lost_items(strategy, tmp_path):
    model, schema, text, image = make(strategy, newcomer_cost=0.1)
    model.fusion.newcomers.fill_(1.5)
    bundle.write(model, schema, "space-1", ITEMS_TABLE.column("item_id"), tmp_path)
    grown = ITEMS_TABLE.take([3, 0, 11, 5])  # without eight, in another order; 11 has no id of its own
    newer = [{"item_id": name, "title": name, "price_cents": 5} for name in ("new", "newer")]
    grown = pa.concat_tables([grown, pa.Table.from_pylist(newer, schema=ITEMS)])
    touched = np.array([False, False, False, True, True, False])
    again, features = bundle.restore(tmp_path, "space-1", grown.column("item_id").combine_chunks(), touched)
    assert features == schema
    assert again.known[:, 0].tolist() == [1, 1, 0, 1, 1, 0]
    at = [3, 0, 11, 5]
    torch.testing.assert_close(again.ids.weight[:2], model.ids.weight[at[:2]])
    assert not again.ids.weight[[2, 4, 5]].any()
    with torch.no_grad():
        before = model.eval().table(to_tensors(schema.content(ITEMS_TABLE, text, image), "cpu"))
        some = schema.content(grown.slice(0, 4), text[at], image[at])
        after = again.eval().fusion(again.ids.weight[:4], again.known[:4], to_tensors(some, "cpu"))
    torch.testing.assert_close(after, before[at])
    for name, value in model.state_dict().items():
        if name not in ("ids.weight", "known"):
            torch.testing.assert_close(again.state_dict()[name], value)


def test_a_model_is_not_restored_into_another_space_or_from_half_a_file(tmp_path):
    model, schema, _, _ = make()
    ids = ITEMS_TABLE.column("item_id").combine_chunks()
    bundle.write(model, schema, "space-1", ids, tmp_path)
    with pytest.raises(IncompatibleArtifact, match="space-1, the index holds space-2"):
        bundle.restore(tmp_path, "space-2", ids, np.zeros(N, bool))
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(IncompatibleArtifact, match="not a usable model"):
        bundle.restore(tmp_path, "space-1", ids, np.zeros(N, bool))


@pytest.mark.parametrize("strategy", ["id", "weighted", "concat", "gated", "attention"])
@pytest.mark.parametrize("images", [True, False])
def test_the_bundle_answers_as_torch_does(strategy, images, tmp_path):
    model, schema, text, image = make(strategy, images)
    bundle.write(model, schema, "space-1", ITEMS_TABLE.column("item_id"), tmp_path)
    loaded = bundle.BundledModel.load(tmp_path, space="space-1")
    with torch.no_grad():
        wanted = model.table(to_tensors(schema.content(ITEMS_TABLE, text, image), "cpu")).numpy()
    table = loaded.items(ITEMS_TABLE, text, image)
    np.testing.assert_allclose(table, wanted, rtol=1e-4, atol=1e-5)
    asked = np.random.default_rng(1).normal(size=(1, 4)).astype(np.float32)
    batch = collate(histories(), 5)
    with torch.no_grad():
        seen = model.shoppers(Tensors(batch, "cpu"), torch.from_numpy(wanted), torch.from_numpy(asked)).numpy()
    found = loaded.shoppers(histories(), table, asked)
    for h, length in enumerate(batch.lengths):
        if length:
            np.testing.assert_allclose(found[h], seen[h, length - 1], rtol=1e-4, atol=1e-5)
    assert not found[2].any()


def test_a_new_item_and_one_that_nobody_touched_have_a_vector_without_their_id(tmp_path):
    model, schema, text, image = make()
    bundle.write(model, schema, "space-1", ITEMS_TABLE.column("item_id"), tmp_path)
    loaded = bundle.BundledModel.load(tmp_path, space="space-1")
    table = loaded.items(ITEMS_TABLE, text, image)
    renamed = ITEMS_TABLE.set_column(0, ITEMS.field("item_id"), pa.array([f"new{i}" for i in range(N)]))
    as_new = loaded.items(renamed, text, image)
    assert np.abs(as_new[:-2] - table[:-2]).max(1).min() > 0.01
    np.testing.assert_allclose(as_new[-2:], table[-2:], rtol=1e-5)
    reordered = loaded.items(ITEMS_TABLE.take(pa.array([4, 1])), text[[4, 1]], image[[4, 1]])
    np.testing.assert_allclose(reordered, table[[4, 1]], rtol=1e-5, atol=1e-6)


def test_everything_learned_is_kept_beside_the_items_it_is_of(tmp_path):
    model, schema, _, _ = make()
    bundle.write(model, schema, "space-1", ITEMS_TABLE.column("item_id"), tmp_path)
    kept = load_file(tmp_path / "weights.safetensors")
    assert kept.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(kept[name], value)
    assert pq.read_table(tmp_path / "items.parquet").column("known").to_pylist() == [True] * (N - 2) + [False] * 2


def test_what_does_not_fit_is_refused(tmp_path):
    model, schema, _, _ = make()
    bundle.write(model, schema, "space-1", ITEMS_TABLE.column("item_id"), tmp_path)
    with pytest.raises(IncompatibleArtifact, match="trained on space space-1"):
        bundle.BundledModel.load(tmp_path, space="space-2")
    said = json.loads((tmp_path / "model.json").read_text())

    def with_change(**change):
        (tmp_path / "model.json").write_text(json.dumps({**said, **change}))
        return pytest.raises(IncompatibleArtifact)

    with with_change(features={**said["features"], "tokens": ["other"]}) as told:
        bundle.BundledModel.load(tmp_path, space="space-1")
    assert "train it again" in str(told.value)
    with with_change(format=99):
        bundle.BundledModel.load(tmp_path, space="space-1")
    with with_change(items=3):
        bundle.BundledModel.load(tmp_path, space="space-1")
    with with_change():
        (tmp_path / "shopper.onnx").write_bytes(b"no graph")
        bundle.BundledModel.load(tmp_path, space="space-1")
