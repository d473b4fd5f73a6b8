"""Pictures that strangers chose: fetched only from where the shop allows, decoded only within limits.

Sellers and feeds write a catalog's `image_uri`, so each is taken for an attack: on the network behind us (an address
inside it), on our files (`../`), on our memory (60,000 x 60,000 pixels in 50 KB). All of that ends here, in one
place, and whatever goes wrong is a BadPicture that says what.

>>> from rayrec.config import PicturesConfig
>>> PictureReader(PicturesConfig(allowed_hosts=("127.0.0.1",))).read("http://127.0.0.1/admin.png")
Traceback (most recent call last):
rayrec.errors.BadPicture: 'http://127.0.0.1/admin.png': 127.0.0.1 is at an address that is not public
"""

import contextlib
import functools
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import unquote_to_bytes

import numpy as np
from pyarrow import fs as pafs

from rayrec.config import PicturesConfig
from rayrec.data.decoding import decode
from rayrec.data.web import PORTS, Deadline, Web, first_line, in_time, is_public, resolve, too_large
from rayrec.errors import BadPicture, SchemaError

_MAX_URI_CHARS = 4096


class PictureReader:
    """Reads pictures by URI: a path or file://, s3:// or gs://, http:// or https://. Raises BadPicture, nothing else.

    resolve, public and open_filesystem: how names become addresses, which of those may be connected to, and how an
    allowed s3:// or gs:// prefix becomes a filesystem and a path on it.
    """

    def __init__(
        self,
        config: PicturesConfig,
        *,
        resolve: Callable[[str, int], Sequence[str]] = resolve,
        public: Callable[[str], bool] = is_public,
        open_filesystem: Callable[[str], tuple[pafs.FileSystem, str]] = pafs.FileSystem.from_uri,
    ):
        self._config = config
        self._web = Web(config, resolve, public)
        self._folders = [os.path.abspath(os.path.expanduser(r)) for r in config.allowed_roots if "://" not in r]
        self._prefixes = [root for root in config.allowed_roots if "://" in root]
        if unknown := [root for root in self._prefixes if not root.startswith(("s3://", "gs://"))]:
            raise SchemaError(f"allowed_roots: got {unknown[0]!r}; expected a directory, s3://bucket/... or gs://...")
        self._open_filesystem = open_filesystem
        self._stores: dict[str, tuple[pafs.FileSystem, str]] = {}

    def fetch(self, uri: str) -> bytes:
        """The file as it stands, at most max_bytes, within timeout_s."""
        with _told_of(uri):
            return self._fetch(uri)

    def read(self, uri: str, side: int | None = None) -> np.ndarray:
        """The picture as `decode` gives it."""
        return self.decode(uri, self.fetch(uri), side)

    def decode(self, uri: str, data: bytes, side: int | None = None) -> np.ndarray:
        """What was fetched from `uri`, as `decode` gives it."""
        limits = self._config
        with _told_of(uri):
            return decode(data, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels, side=side)

    def _fetch(self, uri: str) -> bytes:
        if not 0 < len(uri) <= _MAX_URI_CHARS:
            raise BadPicture("bad_uri", f"got {len(uri):,} characters; expected 1 to {_MAX_URI_CHARS:,}")
        if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", uri):
            raise BadPicture("bad_uri", "control characters in a URI; percent-encode them")
        scheme, _, rest = uri.partition("://") if "://" in uri else ("", "", uri)
        scheme = scheme.lower()
        if scheme in PORTS:
            read = functools.partial(self._web.get, uri)
        elif scheme in ("s3", "gs"):
            read = functools.partial(self._read_object, f"{scheme}://{rest}")
        elif scheme == "file":
            read = functools.partial(self._read_file, _path_of(rest))
        elif not scheme and not uri.lower().startswith("data:"):
            read = functools.partial(self._read_file, uri)
        else:
            raise BadPicture("bad_uri", "expected a path, or file://, s3://, gs://, http:// or https://")
        data = in_time(self._config.timeout_s, read)
        if len(data) > self._config.max_bytes:
            raise too_large(self._config.max_bytes)
        return data

    def _read_file(self, path: str, deadline: Deadline) -> bytes:
        """A file under an allowed directory; relative paths are of the first that has them."""
        places = [(os.path.realpath(folder), os.path.realpath(os.path.join(folder, path))) for folder in self._folders]
        allowed = [(root, real) for root, real in places if os.path.commonpath([root, real]) == root]
        if not allowed:
            raise BadPicture("not_allowed", "the path is under none of allowed_roots; add its directory there")
        root, real = next((place for place in allowed if os.path.exists(place[1])), allowed[0])
        return _read_beneath(root, os.path.relpath(real, root).split("/"), self._config.max_bytes + 1)

    def _read_object(self, uri: str, deadline: Deadline) -> bytes:
        """A key under an allowed prefix, as it is written: as a URI, its `?endpoint_override=` would lead elsewhere."""
        for prefix in self._prefixes:
            start = prefix.partition("?")[0].rstrip("/") + "/"
            key = uri.removeprefix(start)
            if key == uri or any(part in ("", ".", "..") for part in key.split("/")):
                continue
            if prefix not in self._stores:
                self._stores[prefix] = self._open_filesystem(prefix)
            filesystem, base = self._stores[prefix]
            with filesystem.open_input_stream(f"{base.rstrip('/')}/{key}", compression=None) as stream:
                return stream.read(self._config.max_bytes + 1)
        raise BadPicture("not_allowed", "the key is under none of allowed_roots; add its prefix there")


@contextlib.contextmanager
def _told_of(uri: str) -> Iterator[None]:
    """Every failure becomes a BadPicture that names the picture, but not what its URL may hold in secrets."""
    name = repr(re.sub(r"(?<=//)[^/]*@", "", uri.partition("?")[0])[:200])
    try:
        yield
    except BadPicture as error:
        raise BadPicture(error.reason, f"{name}: {error}") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadPicture("not_found", f"{name}: no such file") from error
    except Exception as error:  # of filesystems, each of which has kinds of its own
        raise BadPicture("unreadable", f"{name}: cannot be read ({first_line(error)})") from error


def _path_of(rest: str) -> str:
    """The path of file://<rest>."""
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise BadPicture("bad_uri", f"file:// of another host, {host[:100]!r}; write file:///path")
    decoded = unquote_to_bytes(path)
    if b"\0" in decoded:
        raise BadPicture("bad_uri", "a NUL byte in a path")
    return "/" + os.fsdecode(decoded)


def _read_beneath(root: str, names: list[str], limit: int) -> bytes:
    """Up to `limit` bytes of the regular file that is found from `root`, one name at a time, following no link.

    The names are those of a resolved path: a link among them was put there since, to lead us out.
    """
    directory, file = os.O_PATH | os.O_DIRECTORY, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO would block
    with contextlib.ExitStack() as opened:

        def step(name: str, flags: int, parent: int | None) -> int:
            descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            opened.callback(os.close, descriptor)
            return descriptor

        place = step(root, directory, None)
        for name in names[:-1]:
            place = step(name, directory, place)
        found = step(names[-1], file, place)
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise BadPicture("not_allowed", "not a regular file")
        with open(found, "rb", closefd=False) as stream:
            return stream.read(limit)
