"""One vector for an item from its text and its picture, in the text encoder's space."""

import numpy as np


def fuse(texts: np.ndarray, images: np.ndarray, image_weight: float) -> np.ndarray:
    """Unit vectors of text + image_weight * image: a late sum, so each can be missing and each can be searched for.

    texts, images: float32 (N, D), unit rows; a row of zeros in `images` is an item without a picture, which stays
    where its text is.
    """
    both = texts + np.float32(image_weight) * images
    return both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-9)
