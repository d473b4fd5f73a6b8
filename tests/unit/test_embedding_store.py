"""What is present is what was finished, and it comes back in the order asked for."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayrec.embedding_store import EmbeddingStore
from rayrec.errors import IncompatibleArtifact, NotFound
from rayrec.workspace import Workspace


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(Workspace.open(tmp_path / "ws"), "mini.onnx-fp32")


def keys(text: str) -> pa.Array:
    """One content hash per letter."""
    return pa.array([letter.encode() * 16 for letter in text], pa.binary(16))


def vectors(*firsts: float) -> np.ndarray:
    return np.array([[first, 0.5] for first in firsts], np.float32)


def test_vectors_come_back_in_the_order_asked_for_over_all_parts(store: EmbeddingStore) -> None:
    store.write(keys("ab"), vectors(1, 2))
    store.write(keys("c"), vectors(3))
    found = store.lookup(keys("cabc"))
    assert found.dtype == np.float32
    assert found.tolist() == [[3, 0.5], [1, 0.5], [2, 0.5], [3, 0.5]]
    assert set(store.present().to_pylist()) == set(keys("abc").to_pylist())


def test_nothing_is_present_before_the_first_part(store: EmbeddingStore) -> None:
    assert len(store.present()) == 0
    with pytest.raises(NotFound):
        store.lookup(keys("a"))


def test_missing_vectors_are_counted(store: EmbeddingStore) -> None:
    store.write(keys("a"), vectors(1))
    with pytest.raises(NotFound, match=r"2 of 3 items have no embedding by mini\.onnx-fp32; run 'rayrec embed'"):
        store.lookup(keys("xay"))


def test_a_block_written_twice_is_present_once(store: EmbeddingStore) -> None:
    for _ in range(2):
        store.write(keys("a"), vectors(1))
    assert store.present().to_pylist() == [b"a" * 16]
    assert store.lookup(keys("a")).tolist() == [[1, 0.5]]


def test_two_encoders_of_one_workspace_do_not_mix(store: EmbeddingStore) -> None:
    other = EmbeddingStore(store.ws, "mini.torch-bf16")
    other.write(keys("a"), vectors(9))
    assert len(store.present()) == 0


def test_what_a_killed_writer_left_is_ignored(store: EmbeddingStore) -> None:
    part = store.write(keys("a"), vectors(1))
    store.ws.write_bytes(b"PAR1 half", "embeddings", store.encoder_id, f"{part}.1f2e.tmp")
    assert store.present().to_pylist() == [b"a" * 16]


@pytest.mark.parametrize("size", [0, 40, -20])
def test_a_truncated_part_is_named(store: EmbeddingStore, size: int) -> None:
    store.write(keys("a"), vectors(1))
    part = store.write(keys("b"), vectors(2))
    whole = store.ws.read_bytes("embeddings", store.encoder_id, part)
    store.ws.write_bytes(whole[:size], "embeddings", store.encoder_id, part)
    for action in (store.present, lambda: store.lookup(keys("a"))):
        with pytest.raises(IncompatibleArtifact, match=rf"embeddings/mini\.onnx-fp32: .*{part}.*delete the part"):
            action()


def test_find_leaves_zeros_where_there_is_no_vector(store: EmbeddingStore) -> None:
    store.write(keys("ab"), vectors(1, 2))
    store.write(keys("c"), vectors(3))
    found, there = store.find(keys("xcay"))
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0], [3, 0.5], [1, 0.5], [0, 0]]
    assert there.tolist() == [False, True, True, False]


def test_find_takes_a_missing_key_for_no_vector(store: EmbeddingStore) -> None:
    store.write(keys("a"), vectors(1))
    found, there = store.find(pa.array([None, b"a" * 16, None], pa.binary(16)))
    assert found.tolist() == [[0, 0], [1, 0.5], [0, 0]]
    assert there.tolist() == [False, True, False]


def test_find_has_no_dimension_before_the_first_part(store: EmbeddingStore) -> None:
    found, there = store.find(keys("ab"))
    assert (found.shape, there.tolist()) == ((2, 0), [False, False])
