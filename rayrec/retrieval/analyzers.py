"""How a language is read: texts as the words of a lexical index.

Languages with a stemmer are tantivy's own business. Chinese has no spaces: jieba cuts it here, and tantivy gets
words with spaces between them.

>>> analyzer("english").terms("Running shoes, red!")
['run', 'shoe', 'red']
>>> analyzer("zh").terms("适用iPhone15数据线")    # doctest: +SKIP
['适用', 'iphone15', 'iphone', '15', '数据', '数据线']
"""

import re
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, Protocol

import tantivy

from rayrec.errors import NotFound

CHINESE = "zh"
_MAX_BYTES = 60
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003fffd"
# a run of Chinese, or a word of anything else; a hyphen before letters stays inside: type-c
_RUNS = re.compile(rf"(?P<chinese>[{_HAN}]+)|[^\W_{_HAN}]+(?:-[^\W\d_{_HAN}]+)*")
_PARTS = re.compile(r"\d+|[^\d-]+")
_PARTICLES = frozenset("的了着吗呢吧啊呀嘛和与及或是在给把被")
_loading = threading.Lock()


class Analyzer(Protocol):
    """One language. Building an index, matching and explaining all read a text through the same one."""

    tokenizer: tantivy.TextAnalyzer
    """What cuts the text that the index is handed."""

    def indexed(self, text: str) -> str:
        """What the index is handed for `text`."""
        ...

    def terms(self, text: str) -> list[str]:
        """The distinct words that a query asks an index for, in its order."""
        ...

    def shared(self, query: str, text: str) -> list[str]:
        """The words of `query` that `text` says too, to be shown."""
        ...

    def starts(self, phrase: str) -> list[int]:
        """Where in a phrase words begin, for those who type one of them."""
        ...


def analyzer(language: str) -> Analyzer:
    """The one of a language in this process, thread-safe. Raises NotFound if a package for it is missing."""
    with _loading:
        return _load(language)


@cache
def _load(language: str) -> Analyzer:
    return Chinese() if language == CHINESE else Stemmed(language)


def normal(text: str) -> str:
    """One form of what is written in several: ＵＳＢ and usb, ① and 1."""
    return unicodedata.normalize("NFKC", text).casefold()


def after_spaces(phrase: str) -> list[int]:
    """Where words begin if there are spaces between them."""
    return [0, *(space.end() for space in re.finditer(" ", phrase))]


class Stemmed:
    """Words between spaces and punctuation, by their stem, without case and accents. language: of the stemmer."""

    def __init__(self, language: str):
        filters = tantivy.Filter
        builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        kept = (filters.remove_long(_MAX_BYTES), filters.lowercase(), filters.ascii_fold(), filters.stemmer(language))
        for each in kept:
            builder = builder.filter(each)
        self.tokenizer = builder.build()

    def indexed(self, text: str) -> str:
        return text

    def terms(self, text: str) -> list[str]:
        return list(dict.fromkeys(self.tokenizer.analyze(text)))

    def shared(self, query: str, text: str) -> list[str]:
        there = set(self.terms(text))
        return [word for word in dict.fromkeys(query.split()) if there.intersection(self.terms(word))]

    def starts(self, phrase: str) -> list[int]:
        return after_spaces(phrase)


class Chinese:
    """Chinese by jieba's dictionary.

    A text is known by every word that stands in it, also inside and across others, and by each character; a query is
    cut in jieba's search mode (数据线 asks for 数据 and 数据线; 手机壳, which the dictionary lacks, for 手机 and 壳).
    So whatever a text says finds it. With search mode on both sides and jieba's guesses at unknown words, which depend
    on the words beside, 锅 did not find 不粘锅 nor 鸡翅 烤鸡翅, and nDCG@10 of words on tests/data/zh_queries.csv was
    .619, not .663. Particles are left out: they are rare in titles, so BM25 would take them for telling words.

    Whatever else stands between (iPhone15, Type-C, 65W) is a word without case and, if it mixes letters and digits or
    has a hyphen, also its parts of two characters or more, so that `iPhone 15` and `typec` match. Traditional
    characters are not converted: words match only what is written the same way, vectors relate the two.
    """

    def __init__(self) -> None:
        whitespace = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace())
        self.tokenizer = whitespace.filter(tantivy.Filter.remove_long(_MAX_BYTES)).build()
        self._jieba = _jieba()

    def indexed(self, text: str) -> str:
        return " ".join(_words(normal(text), self._said))

    def terms(self, text: str) -> list[str]:
        return list(dict.fromkeys(_words(normal(text), self._asked)))

    def shared(self, query: str, text: str) -> list[str]:
        said = normal(text)
        there = set(_words(said, self._said))
        found: list[str] = []
        for word in self.terms(query):
            if word not in there:
                continue
            if found and found[-1] + word in said:  # 手机 and 壳 are shown as 手机壳 where that is what it says
                found[-1] += word
            else:
                found.append(word)
        return [w for w in dict.fromkeys(found) if not any(w != other and w in other for other in found)]

    def starts(self, phrase: str) -> list[int]:
        places = []
        for run in _RUNS.finditer(phrase):
            place = run.start()
            for word in self._jieba.cut(run.group(), HMM=False) if run["chinese"] else [run.group()]:
                places.append(place)
                place += len(word)
        return places

    def _asked(self, run: str) -> Iterable[str]:
        return self._jieba.cut_for_search(run, HMM=False)

    def _said(self, run: str) -> Iterable[str]:
        words = list(self._jieba.cut(run, cut_all=True))
        return [*words, *(each for each in run if each not in words)]


def _words(text: str, cut: Callable[[str], Iterable[str]]) -> Iterator[str]:
    """The words of a text in `normal` form. cut: of a run of Chinese."""
    for run in _RUNS.finditer(text):
        if run["chinese"]:
            yield from (word for word in cut(run.group()) if word not in _PARTICLES)
        else:
            yield run.group().replace("-", "")
            parts = _PARTS.findall(run.group())
            if len(parts) > 1:
                yield from (part for part in parts if len(part) > 1)


def _jieba() -> Any:
    """A tokenizer of our own, its dictionary read: 0.6 s, 55 MB.

    jieba itself would keep the parsed dictionary in the temporary directory, which every process and user of the
    machine shares, to save 0.4 s.
    """
    try:
        with warnings.catch_warnings():
            # invalid escapes in its source and, where setuptools still has it, pkg_resources
            warnings.simplefilter("ignore")
            import jieba
    except ImportError as error:
        raise NotFound("language zh needs jieba, which is not installed; run: pip install jieba") from error
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
