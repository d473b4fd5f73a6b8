"""An item's vector: its text's and its picture's sum, each by its weight, on the unit sphere."""

import numpy as np
import pytest

from rayrec.encoders.item import fuse

TEXT, PICTURE, NONE = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]


def rows(*vectors: list[float]) -> np.ndarray:
    return np.array(vectors, np.float32)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (0.0, [1.0, 0.0, 0.0]),
        (1.0, [0.5**0.5, 0.5**0.5, 0.0]),
        (0.75, [0.8, 0.6, 0.0]),  # 3-4-5
    ],
)
def test_the_weight_is_the_pictures_beside_the_texts(weight: float, expected: list[float]) -> None:
    fused = fuse(rows(TEXT), rows(PICTURE), weight)
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, [expected], atol=1e-6)


def test_without_a_picture_an_item_stays_where_its_text_is() -> None:
    fused = fuse(rows(TEXT, [0.6, 0.8, 0.0]), rows(NONE, NONE), 1.0)
    np.testing.assert_allclose(fused, rows(TEXT, [0.6, 0.8, 0.0]), atol=1e-7)


def test_a_picture_that_says_the_opposite_leaves_no_direction_and_no_nan() -> None:
    assert fuse(rows(TEXT), -rows(TEXT), 1.0).tolist() == [NONE]


def test_rows_do_not_mix_and_what_came_in_stays() -> None:
    texts, pictures = rows(TEXT, TEXT, PICTURE), rows(PICTURE, NONE, TEXT)
    together = fuse(texts, pictures, 0.5)
    alone = [fuse(texts[i : i + 1], pictures[i : i + 1], 0.5)[0] for i in range(3)]
    assert together.tolist() == np.array(alone).tolist()
    assert (texts.tolist(), pictures.tolist()) == ([TEXT, TEXT, PICTURE], [PICTURE, NONE, TEXT])


def test_no_items_are_no_vectors() -> None:
    assert fuse(np.empty((0, 3), np.float32), np.empty((0, 3), np.float32), 1.0).shape == (0, 3)
