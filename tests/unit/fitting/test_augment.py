import numpy as np

from rayrec.fitting.augment import drop_words, replace_words


def test_words_are_left_out_by_their_share_and_one_always_stays():
    text = " ".join(f"w{i}" for i in range(1_000))
    kept = drop_words(text, 0.3, np.random.default_rng(0)).split()
    assert 660 < len(kept) < 740
    assert kept == [w for w in text.split() if w in set(kept)]  # in their order
    assert drop_words("one two", 0.999, np.random.default_rng(0)) in ("one", "two")
    assert drop_words("usb c cable", 0.0, np.random.default_rng(0)) == "usb c cable"
    assert drop_words("", 0.5, np.random.default_rng(0)) == ""


def test_words_are_replaced_by_their_synonyms_alone():
    table = {"laptop": ["notebook", "portable"]}
    rng = np.random.default_rng(0)
    found = [replace_words("red Laptop bag", table, 0.5, rng) for _ in range(400)]
    assert set(found) == {"red Laptop bag", "red notebook bag", "red portable bag"}
    assert 160 < found.count("red Laptop bag") < 240
    assert replace_words("red laptop", table, 0.0, rng) == "red laptop"
