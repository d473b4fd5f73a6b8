import json

import numpy as np
import pytest

from rayrec.encoders.text import TextModel, TorchTextEncoder, pad
from rayrec.errors import NotFound, SchemaError
from tests.fakes import make_tiny_model

TEXTS = ["usb c cable", "a", "frozen pizza , thin crust with four cheeses", "", "red shoe", "zzz " * 100]


def _directory(path, config=None, pooling=None, weights=b"weights"):
    """A model directory with only what TextModel.read looks at."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config or {"architectures": ["BertModel"]}))
    (path / "model.safetensors").write_bytes(weights)
    if pooling is not None:
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


def _read(path, max_tokens=128):
    return TextModel.read(str(path), max_tokens=max_tokens)


# -- what a directory says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "pooling"),
    [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_lasttoken", "last"),
    ],
)
def test_pooling_is_what_the_pooling_config_says(tmp_path, key, pooling):
    said = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": False, key: True}
    decoder = {"architectures": ["GPT2LMHeadModel"]}
    assert _read(_directory(tmp_path / "m", config=decoder, pooling=said)).pooling == pooling


@pytest.mark.parametrize(
    ("architectures", "pooling"),
    [
        (["Qwen3ForCausalLM"], "last"),
        (["GPT2LMHeadModel"], "last"),
        (["BertModel"], "mean"),
        (["BertForMaskedLM"], "mean"),
        (None, "mean"),
    ],
)
def test_pooling_is_by_default_last_for_decoders_and_mean_for_others(tmp_path, architectures, pooling):
    assert _read(_directory(tmp_path / "m", config={"architectures": architectures, "x": 1})).pooling == pooling


@pytest.mark.parametrize("said", [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, {}])
def test_conflicting_or_unknown_pooling_is_refused_by_file(tmp_path, said):
    with pytest.raises(SchemaError, match=r"1_Pooling/config\.json"):
        _read(_directory(tmp_path / "m", pooling=said))


@pytest.mark.parametrize(
    ("config", "sentence", "asked", "cut"),
    [
        ({"max_position_embeddings": 512}, {"max_seq_length": 256}, 128, 128),
        ({"max_position_embeddings": 512}, {"max_seq_length": 64}, 128, 64),
        ({"max_position_embeddings": 32}, {"max_seq_length": 64}, 128, 32),
        ({"n_positions": 32}, {"max_seq_length": None}, 128, 32),
        ({"x": 1}, {}, 128, 128),
        # RoBERTa's positions start after its padding token's
        ({"max_position_embeddings": 514, "model_type": "xlm-roberta", "pad_token_id": 1}, {}, 600, 512),
    ],
)
def test_texts_are_cut_at_the_least_of_all_limits(tmp_path, config, sentence, asked, cut):
    directory = _directory(tmp_path / "m", config=config)
    (directory / "sentence_bert_config.json").write_text(json.dumps(sentence))
    assert _read(directory, asked).max_tokens == cut


def test_the_tokenizers_own_limit_counts_too(tmp_path):
    directory = _directory(tmp_path / "m", config={"max_position_embeddings": 512})
    (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 48}))
    assert _read(directory).max_tokens == 48


def test_prefixes_are_the_models_own_unless_they_are_given(tmp_path):
    directory = _directory(tmp_path / "m")
    assert _read(directory).prefixes == {"query": "", "passage": ""}
    said = {"prompts": {"query": "query: ", "document": "passage: "}}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(said))
    own = _read(directory)
    assert own.prefixes == {"query": "query: ", "passage": "passage: "}
    given = TextModel.read(str(directory), max_tokens=128, query_prefix="", passage_prefix="text: ")
    assert given.prefixes == {"query": "", "passage": "text: "}
    assert given.space != own.space


def test_layers_after_the_pooling_are_refused_for_they_would_be_left_out(tmp_path):
    directory = _directory(tmp_path / "m")
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Dense")]
    (directory / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(SchemaError, match=r"modules\.json: \['Dense'\]"):
        _read(directory)


def test_the_space_changes_with_what_changes_vectors_and_not_with_the_place(tmp_path):
    model = _read(_directory(tmp_path / "here" / "m"))
    assert _read(_directory(tmp_path / "there" / "m")).space == model.space
    assert model.space.startswith("m-")
    changed = [
        _read(_directory(tmp_path / "weights" / "m", weights=b"other")),
        _read(_directory(tmp_path / "pooling" / "m", pooling={"pooling_mode_cls_token": True})),
        _read(tmp_path / "here" / "m", max_tokens=64),
        _read(_directory(tmp_path / "config" / "m", config={"architectures": ["BertModel"], "hidden_size": 8})),
        _read(_directory(tmp_path / "named" / "other")),
    ]
    (tmp_path / "there" / "m" / "tokenizer.json").write_text("{}")
    changed.append(_read(tmp_path / "there" / "m"))
    assert len({model.space, *(other.space for other in changed)}) == 7


def test_a_space_has_no_dot_for_the_variant_follows_one(tmp_path):
    assert "." not in _read(_directory(tmp_path / "bge-small-en-v1.5")).space


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(NotFound, match="give a local transformers model directory"):
        _read(tmp_path / "nowhere")
    directory = _directory(tmp_path / "m")
    (directory / "model.safetensors").unlink()
    with pytest.raises(NotFound, match=r"no weights .*safetensors"):
        _read(directory)
    (directory / "config.json").unlink()
    with pytest.raises(NotFound, match=r"no config\.json; give a transformers model directory"):
        _read(directory)


def test_a_config_that_is_not_json_is_refused_by_file(tmp_path):
    directory = _directory(tmp_path / "m")
    (directory / "config.json").write_text("{")
    with pytest.raises(SchemaError, match=r"config\.json: not JSON"):
        _read(directory)


# -- the torch runtime ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def tiny(request, tmp_path_factory):
    return _read(make_tiny_model(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def encoder(tiny):
    return TorchTextEncoder(tiny, device="cpu", batch_size=2)


@pytest.mark.model
def test_a_batch_equals_its_texts_one_by_one_in_order(encoder):
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert together.dtype == np.float32
    assert together.shape == (len(TEXTS), encoder.dim) == (6, 32)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1]), together[::-1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.abs(alone[0] - alone[4]).max() > 1e-3  # different texts do differ


@pytest.mark.model
def test_no_texts_make_no_vectors(encoder):
    assert encoder.encode([]).shape == (0, 32)


@pytest.mark.model
def test_what_stands_in_the_padding_does_not_matter(encoder):
    import torch

    encodings = encoder._tokenizer.encode_batch(["usb cable", "frozen pizza thin crust"])
    vectors = []
    for pad_id in (0, 5):
        ids, mask = pad(encodings, pad_id)
        with torch.inference_mode():
            vectors.append(encoder.module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy())
    np.testing.assert_allclose(*vectors, atol=1e-6)


@pytest.mark.model
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
def test_pooling_is_of_the_backbones_own_hidden_states(tiny, pooling):
    import torch

    encoder = TorchTextEncoder(
        TextModel(tiny.directory, pooling, 64, {"query": "", "passage": ""}, "space"), device="cpu"
    )
    found = encoder.encode(["usb c cable", "frozen pizza thin crust with four cheeses"])[0]
    ids = torch.tensor([encoder._tokenizer.encode("usb c cable").ids])
    with torch.inference_mode():
        hidden = encoder.module.backbone(input_ids=ids).last_hidden_state[0].numpy()
    pooled = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.max(0), "last": hidden[-1]}[pooling]
    np.testing.assert_allclose(found, pooled / np.linalg.norm(pooled), atol=1e-5)


@pytest.mark.model
def test_a_query_and_an_item_are_read_with_their_own_prefix(tiny):
    model = TextModel.read(str(tiny.directory), max_tokens=64, query_prefix="red ", passage_prefix="blue ")
    prefixed, plain = TorchTextEncoder(model, device="cpu"), TorchTextEncoder(tiny, device="cpu")
    np.testing.assert_allclose(prefixed.encode(["shoe"], "query"), plain.encode(["red shoe"]), atol=1e-6)
    np.testing.assert_allclose(prefixed.encode(["shoe"]), plain.encode(["blue shoe"]), atol=1e-6)


@pytest.mark.model
def test_bf16_is_close_to_fp32_and_another_variant(tiny, encoder):
    half = TorchTextEncoder(tiny, device="cpu", precision="bf16")
    assert (half.encode(TEXTS) * encoder.encode(TEXTS)).sum(1).min() > 0.99
    assert (str(encoder.id), str(half.id)) == (f"{tiny.space}.torch-fp32", f"{tiny.space}.torch-bf16")
