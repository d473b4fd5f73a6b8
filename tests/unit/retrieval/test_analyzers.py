import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrec.errors import NotFound
from rayrec.retrieval import analyzers
from rayrec.retrieval.analyzers import Chinese, analyzer

SHOP = Path(__file__).parents[2] / "data" / "zh_shop.csv"
RUNS = sorted(set(re.findall("[\u4e00-\u9fff]+", SHOP.read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def zh():
    return analyzer("zh")


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("手机壳", ["手机", "壳"]),
        ("数据线", ["数据", "数据线"]),
        ("苹果手机，防水！手机", ["苹果", "手机", "防水"]),
        ("适用iPhone15手机", ["适用", "iphone15", "iphone", "15", "手机"]),
        ("Type-C 65W", ["typec", "type", "65w", "65"]),
        ("3-6岁", ["3", "6", "岁"]),
        ("ＵＳＢ２．０ ①", ["usb2", "usb", "0", "1"]),
        ("小猫的窝", ["小猫", "窝"]),
        ("手機殼", ["手", "機", "殼"]),
        ("的了吗", []),
        ("？！ ，。🍕", []),
        ("", []),
    ],
)
def test_terms_are_the_words_of_any_script_in_order(zh, text, terms):
    assert zh.terms(text) == terms


def test_an_index_has_every_word_that_stands_in_a_text_and_each_character(zh):
    assert zh.indexed("烤鸡翅 Type-C").split() == ["烤鸡", "鸡翅", "烤", "鸡", "翅", "typec", "type"]


@given(data=st.data())
def test_whatever_a_title_says_asks_for_words_that_the_index_has(zh, data):
    run = data.draw(st.sampled_from(RUNS))
    start = data.draw(st.integers(0, len(run) - 1))
    said = run[start : data.draw(st.integers(start + 1, len(run)))]
    assert set(zh.terms(said)) <= set(zh.indexed(run).split())


@pytest.mark.parametrize(
    ("query", "text", "words"),
    [
        ("手机壳", "磁吸透明手机壳", ["手机壳"]),
        ("手机壳", "手机保护壳", ["手机", "壳"]),
        ("手机壳", "手机支架", ["手机"]),
        ("苹果数据线TypeC", "typec快充数据线", ["数据线", "typec"]),
        ("电动牙刷 iPhone15", "iPhone15 声波电动牙刷", ["电动牙刷", "iphone15"]),
        ("锅", "不粘锅", ["锅"]),
        ("耳机", "手机", []),
    ],
)
def test_shared_words_are_shown_as_long_as_the_text_has_them(zh, query, text, words):
    assert zh.shared(query, text) == words


def test_shared_words_of_other_languages_are_shown_as_they_were_typed():
    assert analyzer("english").shared("Red SHOES dress red", "A shoe, red") == ["Red", "SHOES", "red"]


def test_a_phrase_can_be_typed_from_each_word(zh):
    phrase = "磁吸手机壳 iphone15,防水"
    typed = [phrase[start:] for start in zh.starts(phrase)]
    assert {phrase, "手机壳 iphone15,防水", "壳 iphone15,防水", "iphone15,防水", "防水"} <= set(typed)
    assert "机壳 iphone15,防水" not in typed
    assert analyzer("english").starts("frozen thin pizza") == [0, 7, 12]


def test_a_language_is_loaded_once_whoever_asks():
    analyzers._load.cache_clear()
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(analyzer, ["zh"] * 16))) == 1


def test_threads_read_as_one_does(zh):
    texts = ["适用iPhone15手机壳防摔", "不粘锅炒锅家用", "red shoes"] * 20
    for read in (zh, analyzer("english")):
        alone = [read.terms(text) for text in texts]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(read.terms, texts)) == alone


def test_without_jieba_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(NotFound, match="pip install jieba"):
        Chinese()


@pytest.mark.parametrize("old_setuptools", [False, True])
def test_jieba_is_loaded_when_asked_for_without_a_word_and_without_a_file(tmp_path, old_setuptools):
    if old_setuptools:
        (tmp_path / "pkg_resources.py").write_text(
            "import os, sys, warnings\nwarnings.warn('pkg_resources is deprecated as an API', UserWarning)\n"
            "def resource_stream(package, name):\n"
            "    return open(os.path.join(os.path.dirname(sys.modules[package].__file__), name), 'rb')\n"
        )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from rayrec.retrieval.analyzers import analyzer\n"
        "early = 'jieba' in sys.modules\n"
        "print(early, *analyzer('zh').terms('数据线'), 'pkg_resources' in sys.modules)"
    )
    (tmp_path / "tmp").mkdir()
    # a fresh cache of byte code: Python warns of invalid escapes when it compiles
    command = [
        sys.executable,
        "-W",
        "error",
        "-X",
        f"pycache_prefix={tmp_path / 'compiled'}",
        "-c",
        code,
        str(tmp_path),
    ]
    environment = {"PATH": "/usr/bin", "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout.split(), done.stderr) == (["False", "数据", "数据线", str(old_setuptools)], "")
    assert list((tmp_path / "tmp").iterdir()) == []
