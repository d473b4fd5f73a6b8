"""Words left out and words replaced, so that a few labels say more."""

from collections.abc import Mapping, Sequence

import numpy as np


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """Each word is left out with probability `share`; at least one stays (Wei & Zou, EMNLP 2019)."""
    words = text.split()
    kept = [word for word, chance in zip(words, rng.random(len(words)), strict=True) if chance >= share]
    return " ".join(kept) if kept else (words[int(rng.integers(len(words)))] if words else text)


def replace_words(text: str, synonyms: Mapping[str, Sequence[str]], share: float, rng: np.random.Generator) -> str:
    """Each word that has synonyms is replaced by one of them with probability `share`. synonyms: by lowercase word."""

    def instead(word: str) -> str:
        others = synonyms.get(word.lower())
        return others[int(rng.integers(len(others)))] if others and rng.random() < share else word

    return " ".join(instead(word) for word in text.split())
