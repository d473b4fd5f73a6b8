"""Looking for what must not be there any more, in the bytes of every file of a folder."""

import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq


def faces(word: str) -> dict[str, bytes]:
    """A value as it might be at rest: in clear, in UTF-16, and as each hash that anybody would think of."""
    raw = word.encode()
    found = {f"{word} in clear": raw, f"{word} in UTF-16": word.encode("utf-16-le")}
    for name in ("md5", "sha1", "sha256", "blake2b"):
        for spelled in (raw, b"u:" + raw, b"s:" + raw):
            digest = hashlib.new(name, spelled)
            found[f"{name} of {spelled!r}"] = digest.digest()
            found[f"{name} of {spelled!r} in hex"] = digest.hexdigest().encode()
    for size in (8, 12, 16, 32):
        digest = hashlib.blake2b(raw, digest_size=size)
        found[f"blake2b-{size} of {word}"] = digest.digest()
        found[f"blake2b-{size} of {word} in hex"] = digest.hexdigest().encode()
    return found


def contents(file: Path) -> Iterator[bytes]:
    """The bytes of a file, and what they say where they are packed."""
    yield file.read_bytes()
    if file.suffix == ".parquet":
        yield repr(pq.read_table(file).to_pydict()).encode()
        yield repr(pq.read_metadata(file).to_dict()).encode()
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as packed:
            yield from (packed.read(name) for name in packed.namelist())


def found_in(folder: Path, words: Iterable[str]) -> set[str]:
    """Every face of every word that some file of the folder has."""
    wanted = {name: face for word in words for name, face in faces(word).items()}
    return {
        f"{file.relative_to(folder)}: {name}"
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        for content in contents(file)
        for name, face in wanted.items()
        if face in content
    }
