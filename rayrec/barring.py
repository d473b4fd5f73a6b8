"""Whose past is over: bars, kept by keyed marks and never by ids.

Who is forgotten must stay so when a file that still names them is loaded again, and the list of them must not itself be
one of their names. So a bar holds HMACs under a secret of the workspace: whoever has an id and the secret can look
it up, and nobody can read ids out of it. What happened at or before the bar's moment is gone for good; the
same id may come back, and is a stranger then.

>>> bars = Bars(ws)                                                 # doctest: +SKIP
>>> bars.add(["u:ann", "s:her-session"], until_us)                  # doctest: +SKIP
>>> events.filter(pa.array(~bars.forgotten(events)))                # doctest: +SKIP
"""

import contextlib
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.errors import NotFound
from rayrec.store.base import EVERYBODY
from rayrec.workspace import Workspace

_FOLDER = "barred"
_SECRET = ("keys", "forget.secret")
_NEVER = -1
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_SEPARATORS = re.compile(r"[,;\t|{}\[\]]|(?<=[\"'])\s*:|:\s*(?=[\"'])")


class Bars:
    """The bars of a workspace, as last read; `refresh` reads what others added.

    A file each, `barred/<mark>-<random>.json`, with the marks of the sessions that were the shopper's; none changes.
    """

    def __init__(self, ws: Workspace):
        self._ws = ws
        self._secret = b""
        self._files: dict[str, dict[str, int]] = {}
        self._until: dict[str, int] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Whether anything is new."""
        files = self._read()
        while files is None:
            files = self._read()
        if self._ws.exists(*_SECRET):
            self._secret = self._ws.read_bytes(*_SECRET)
        before, self._files, self._until = self._until, files, _latest(files.values())
        return before != self._until

    def _read(self) -> dict[str, dict[str, int]] | None:
        """None: one of them was replaced meanwhile by one that says more, and they have to be listed again."""
        names = [name for name in self._ws.names(_FOLDER) if name.endswith(".json")]
        files = {name: self._files[name] for name in names if name in self._files}
        for name in set(names) - set(files):
            try:
                files[name] = json.loads(self._ws.read_bytes(_FOLDER, name))["until_us"]
            except NotFound:
                return None
        return files

    def create_secret(self) -> None:
        """So that no replica is without one when the first shopper is forgotten."""
        if not self._ws.exists(*_SECRET):
            self._ws.write_once(secrets.token_bytes(32), *_SECRET)
        self._secret = self._ws.read_bytes(*_SECRET)

    def mark(self, shopper: str) -> str:
        """What a bar knows of a shopper (as `store.base.shopper` names one): 32 hex digits."""
        if not self._secret:
            self.create_secret()
        return hmac.new(self._secret, shopper.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]

    def add(self, shoppers: Sequence[str], until_us: int) -> None:
        """Bar a user and their sessions, the user first; none at all: everybody. Durable when it returns."""
        marks = [self.mark(shopper) for shopper in shoppers] or [EVERYBODY]
        before = [name for name in self._ws.names(_FOLDER) if name.startswith(f"{marks[0]}-")]
        self.refresh()
        known = [self._files[name] for name in before if name in self._files]
        until = _latest([*known, dict.fromkeys(marks, until_us)])
        name = f"{marks[0]}-{secrets.token_hex(4)}.json"
        self._ws.write_bytes(json.dumps({"until_us": until}).encode(), _FOLDER, name)
        for old in before:
            with contextlib.suppress(FileNotFoundError):  # somebody else replaced it too, and knew it
                self._ws.fs.delete_file(self._ws.path(_FOLDER, old))
        self.refresh()

    def known(self) -> Mapping[str, int]:
        """Mark -> the moment up to which it is barred."""
        return self._until

    def until(self, shopper: str | None) -> int:
        """The moment up to which nothing of a shopper may be known; -1: of a shopper nobody asked to forget."""
        everybody = self._until.get(EVERYBODY, _NEVER)
        if shopper is None or not self._until:
            return everybody
        return max(everybody, self._until.get(self.mark(shopper), _NEVER))

    def forgotten(self, events: pa.Table) -> np.ndarray:
        """bool (E,): what must not be there. events: user_id, session_id and ts_us of EVENTS.

        What names a user is theirs; what names a session alone is of whoever the session was.
        """
        if not self._until:
            return np.zeros(events.num_rows, bool)
        user = events.column("user_id")
        until = np.where(user.is_valid().to_numpy(), self._of(user, "u:"), self._of(events.column("session_id"), "s:"))
        return events.column("ts_us").to_numpy() <= until

    def _of(self, column: pa.ChunkedArray, kind: str) -> np.ndarray:
        coded = pc.dictionary_encode(column).combine_chunks()
        if isinstance(coded, pa.ChunkedArray):  # of a table without rows
            return np.empty(0, np.int64)
        until = [self.until(f"{kind}{name}") for name in coded.dictionary.to_pylist()]
        codes = pc.fill_null(coded.indices, len(until)).to_numpy()
        return np.array([*until, self._until.get(EVERYBODY, _NEVER)], np.int64)[codes]

    def mentions(self, record: str) -> bool:
        """Whether a raw record, of which nobody knows what is what, has a barred user or session among its values."""
        names = {self.mark(f"{kind}{word}") for word in _words(record) for kind in ("u:", "s:")}
        return not names.isdisjoint(self._until)


def _latest(bars: Iterable[Mapping[str, int]]) -> dict[str, int]:
    latest: dict[str, int] = {}
    for bar in bars:
        for mark, until_us in bar.items():
            latest[mark] = max(until_us, latest.get(mark, _NEVER))
    return latest


def _words(record: str) -> set[str]:
    """The keys and values of a record that is JSON; of one that is not, what stands between separators or quotes."""
    try:
        return set(_leaves(json.loads(record)))
    except (ValueError, RecursionError):
        said = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), record)
        quoted = [part for quotes in "\"'" for part in said.split(quotes)]
        parts = [*_SEPARATORS.split(said), *said.split(), *quoted]
        return {part.strip().strip("\"'").strip() for part in parts}


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, str) and value[:1] in ("{", "["):  # a nested value, which readers keep as text
        yield from _words(value)
    elif value is not None:
        yield str(value)
