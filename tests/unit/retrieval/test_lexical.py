import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.errors import IncompatibleArtifact
from rayrec.retrieval.lexical import LexicalIndex

VOCABULARY = ["pizza", "cable", "blue", "shoe", "crust", "red"]


def _index(directory, texts, attributes=None):
    LexicalIndex.build(directory, texts, attributes or [""] * len(texts))
    return LexicalIndex.load(directory)


def _found(index, query, limit=100):
    """Positions, best first, ties by position."""
    rows, scores, _ = index.match(query, limit)
    return rows[np.argsort(-scores, kind="stable")].tolist()


def test_words_match_by_stem_and_without_case_or_accents(tmp_path):
    index = _index(tmp_path, ["Running Shoes", "Café crème", "usb cable"])
    assert _found(index, "run shoe") == [0]
    assert _found(index, "RUNS") == [0]
    assert _found(index, "cafe") == [1]
    assert _found(index, "CRÈME") == [1]


def test_the_language_of_the_stemmer_is_the_one_given(tmp_path):
    LexicalIndex.build(tmp_path, ["Häuser", "cable"], ["", ""], "german")
    assert _found(LexicalIndex.load(tmp_path, "german"), "Haus") == [0]


def test_terms_are_distinct_stems_in_order(tmp_path):
    assert _index(tmp_path, ["x"]).terms("Shoes, red shoe-RED!") == ["shoe", "red"]


def test_a_score_is_bm25_with_k1_of_1_2_and_b_of_three_quarters(tmp_path):
    _, scores, _ = _index(tmp_path, ["red", "blue", "blue"]).match("red", 10)
    # one of three documents, of average length, once: idf = ln(1 + 2.5 / 1.5), times 2.2 / (1 + 1.2)
    assert scores.tolist() == pytest.approx([math.log(1 + 2.5 / 1.5)])


def test_attributes_count_a_fifth_of_text(tmp_path):
    index = _index(tmp_path, ["red", "blue"], ["blue", "red"])
    rows, scores, _ = index.match("red", 10)
    assert rows.tolist() == [0, 1]
    assert scores[1] / scores[0] == pytest.approx(0.2)


def test_more_shared_words_score_higher_and_ties_go_by_position(tmp_path):
    assert _found(_index(tmp_path, ["blue", "red", "red blue", "blue", "green"]), "red blue")[:2] == [2, 1]
    assert _found(_index(tmp_path / "ties", ["green", "blue", "blue", "blue"]), "blue") == [1, 2, 3]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    texts = [" ".join(w for b, w in enumerate(VOCABULARY) if i >> b & 1) for i in range(64)]
    attributes = [VOCABULARY[i % 6] for i in range(64)]
    return _index(tmp_path_factory.mktemp("lexical"), texts, attributes), texts, attributes


@settings(max_examples=40, deadline=None)
@given(words=st.lists(st.sampled_from([*VOCABULARY, "unknown"]), max_size=4))
def test_matches_are_all_items_that_share_a_word_and_no_others(shop, words):
    index, texts, attributes = shop
    expected = {i for i in range(64) if set(words) & {*texts[i].split(), attributes[i]}}
    rows, scores, complete = index.match(" ".join(words), 100)
    assert complete
    assert len(rows) == len(expected)
    assert set(rows.tolist()) == expected
    assert (scores > 0).all()
    assert rows.tolist() == sorted(rows)


def test_a_cut_is_told_and_keeps_the_best(shop):
    index, _, _ = shop
    _, all_scores, _ = index.match("pizza cable", 100)
    rows, scores, complete = index.match("pizza cable", 5)
    assert (len(set(rows.tolist())), complete) == (5, False)
    assert sorted(scores) == sorted(all_scores)[-5:]
    assert index.match("pizza cable", len(all_scores))[2]


@pytest.mark.parametrize("query", ["", "   ", "?!", '"', "- : *", "🍕", "unknown"])
def test_a_query_without_known_words_finds_nothing_completely(shop, query):
    rows, scores, complete = shop[0].match(query, 10)
    assert (len(rows), len(scores), complete) == (0, 0, True)


@pytest.mark.parametrize(
    "query", ['"pizza', "pizza*", "-pizza", "+pizza", "text:pizza", "pizza AND", "NOT pizza", "(pizza", "pizza~2", "^"]
)
def test_query_syntax_is_only_words(shop, query):
    index, texts, attributes = shop
    pizza = {i for i in range(64) if "pizza" in (*texts[i].split(), attributes[i])}
    assert set(_found(index, query)) == (pizza if "pizza" in query else set())


def test_an_empty_index_answers(tmp_path):
    assert _index(tmp_path, []).match("pizza", 10)[2]


def test_what_is_no_index_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(IncompatibleArtifact, match=str(directory)):
            LexicalIndex.load(directory)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_damaged_index_is_refused(tmp_path):
    _index(tmp_path, ["red", "blue"])
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(IncompatibleArtifact, match=str(tmp_path)):
        LexicalIndex.load(tmp_path)


# -- Chinese --------------------------------------------------------------------------------------

CHINESE = [
    "磁吸透明手机壳 适用苹果15ProMax 防摔",
    "红米K70手机套 军工级防摔保护壳",
    "手机支架桌面懒人 铝合金",
    "麦饭石不粘锅炒锅 家用32cm",
    "空气炸锅 无油薯条烤鸡翅",
    "Type-C数据线 65W快充 iPhone 15",
    "透明螢幕保護貼",
]


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chinese")
    LexicalIndex.build(directory, CHINESE, ["颜色透明", "", "", "", "", "", ""], "zh")
    return LexicalIndex.load(directory, "zh")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("手机壳", [0, 1, 2]),
        ("手机", [0, 1, 2]),
        ("壳", [0, 1]),
        ("锅", [3, 4]),
        ("鸡翅", [4]),
        ("螢幕", [6]),
        ("荧幕", []),
        ("typec", [5]),
        ("TYPE-C", [5]),
        ("ｉＰｈｏｎｅ１５", [0, 5]),
        ("65w", [5]),
        ("65 W 的", [5]),
        ("耳机", []),
        ("的", []),
    ],
)
def test_chinese_is_found_by_word_character_and_latin_name(chinese, query, found):
    assert sorted(_found(chinese, query)) == found


def test_more_of_a_chinese_word_scores_higher(chinese):
    assert _found(chinese, "手机壳")[2] == 2  # the holder has no 壳


@pytest.mark.parametrize("query", ['"手机', "手机*", "+手机", "text:手机", "手机 AND", "(手机", "手机~2", "【手机】"])
def test_query_syntax_around_chinese_is_only_words(chinese, query):
    assert {0, 1, 2} <= set(_found(chinese, query))


def test_a_score_of_a_chinese_word_is_bm25_too(tmp_path):
    LexicalIndex.build(tmp_path, ["红", "蓝", "蓝"], ["", "", ""], "zh")
    _, scores, _ = LexicalIndex.load(tmp_path, "zh").match("红", 10)
    assert scores.tolist() == pytest.approx([math.log(1 + 2.5 / 1.5)])  # as above: one of three, of average length


def test_chinese_attributes_count_a_fifth_of_text(tmp_path):
    LexicalIndex.build(tmp_path, ["红", "蓝"], ["蓝", "红"], "zh")
    _, scores, _ = LexicalIndex.load(tmp_path, "zh").match("红", 10)
    assert scores[1] / scores[0] == pytest.approx(0.2)
