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
import io
import ipaddress
import os
import re
import socket
import ssl
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from http.client import HTTPException
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urljoin

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from pyarrow import fs as pafs
from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationParseError, NewConnectionError
from urllib3.exceptions import TimeoutError as HTTPTimeout
from urllib3.util import parse_url

from rayrec.config import PicturesConfig
from rayrec.errors import BadPicture, SchemaError

_MAX_URI_CHARS = 4096
_MAX_REDIRECTS = 3
_CHUNK = 1 << 16
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}|\[[0-9a-f:.]+\]")
_GLOBAL = ipaddress.IPv6Network("2000::/3")  # what is handed out to be reached; the rest has special uses
_TUNNELS = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32"))  # 6to4, Teredo
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits

_MAX_PARTS = 1 << 16  # segments or chunks of one file; 20 MiB of PNG in chunks of 1 KiB has 20,000
_MAX_PASSES = 32  # over max_pixels; progressive JPEGs go over the picture some 10 times, hostile ones 100,000 times
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")
_JPEG_METADATA = frozenset({*range(0xE1, 0xF0), 0xFE} - {0xEE})  # APPn but JFIF and Adobe, which tell colours; comments
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def resolve(host: str, port: int) -> list[str]:
    """Every address of a name, or the one that `2130706433` and `0x7f.1` are other spellings of."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet's, and no way around into a private network."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _GLOBAL or any(ip in tunnel for tunnel in _TUNNELS):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


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
        self._web = _Web(config, resolve, public)
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
        limits = self._config
        with _told_of(uri):
            return decode(self._fetch(uri), max_bytes=limits.max_bytes, max_pixels=limits.max_pixels, side=side)

    def _fetch(self, uri: str) -> bytes:
        if not 0 < len(uri) <= _MAX_URI_CHARS:
            raise BadPicture("bad_uri", f"got {len(uri):,} characters; expected 1 to {_MAX_URI_CHARS:,}")
        if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", uri):
            raise BadPicture("bad_uri", "control characters in a URI; percent-encode them")
        scheme, _, rest = uri.partition("://") if "://" in uri else ("", "", uri)
        scheme = scheme.lower()
        if scheme in _PORTS:
            read = functools.partial(self._web.get, uri)
        elif scheme in ("s3", "gs"):
            read = functools.partial(self._read_object, f"{scheme}://{rest}")
        elif scheme == "file":
            read = functools.partial(self._read_file, _path_of(rest))
        elif not scheme and not uri.lower().startswith("data:"):
            read = functools.partial(self._read_file, uri)
        else:
            raise BadPicture("bad_uri", "expected a path, or file://, s3://, gs://, http:// or https://")
        data = _in_time(self._config.timeout_s, read)
        if len(data) > self._config.max_bytes:
            raise _too_large(self._config.max_bytes)
        return data

    def _read_file(self, path: str, deadline: "_Deadline") -> bytes:
        """A file under an allowed directory; relative paths are of the first that has them."""
        places = [(os.path.realpath(folder), os.path.realpath(os.path.join(folder, path))) for folder in self._folders]
        allowed = [(root, real) for root, real in places if os.path.commonpath([root, real]) == root]
        if not allowed:
            raise BadPicture("not_allowed", "the path is under none of allowed_roots; add its directory there")
        root, real = next((place for place in allowed if os.path.exists(place[1])), allowed[0])
        return _read_beneath(root, os.path.relpath(real, root).split("/"), self._config.max_bytes + 1)

    def _read_object(self, uri: str, deadline: "_Deadline") -> bytes:
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
        raise BadPicture("unreadable", f"{name}: cannot be read ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _too_large(max_bytes: int) -> BadPicture:
    return BadPicture("too_large", f"more than {max_bytes:,} bytes; make it smaller or raise max_bytes")


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


class _Deadline:
    """A moment, and the connection that is cut then: no timeout of a socket ends a server that drips."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._socket: socket.socket | None = None

    def left(self) -> float:
        """Seconds, more than 0."""
        if (left := self._end - time.monotonic()) <= 0:
            raise self.passed()
        return left

    def passed(self) -> BadPicture:
        return BadPicture("timeout", f"not read within {self.seconds:g} s; try again, or raise timeout_s")

    def guard(self, connected: socket.socket) -> None:
        self._socket = connected
        connected.settimeout(self.left())  # raises if `cut` came before there was a socket

    def cut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # not SSLSocket's own, which takes the TLS layer from under a thread that reads
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _in_time(seconds: float, read: Callable[[_Deadline], bytes]) -> bytes:
    """What `read` returns. In a thread that is left behind when time is up, since nothing ends a DNS lookup."""
    deadline = _Deadline(seconds)
    future: Future[bytes] = Future()

    def run() -> None:
        try:
            future.set_result(read(deadline))
        except Exception as error:  # raised again below
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="read picture").start()
    if not wait([future], timeout=seconds).done:
        deadline.cut()
        raise deadline.passed()
    return future.result()


class _Target(NamedTuple):
    """One hop: `host` in ASCII, lower case; `path` with its query, percent-encoded."""

    scheme: str
    host: str
    port: int
    path: str


class _Web:
    """GET from allowed hosts at public addresses.

    The connection goes to an address that was checked: a second lookup could answer with another one (DNS rebinding).
    Proxies that the environment names are not used (urllib3's connections know of none), since a proxy looks names up
    itself and nothing checked here would hold.
    """

    def __init__(
        self, config: PicturesConfig, resolve: Callable[[str, int], Sequence[str]], public: Callable[[str], bool]
    ):
        self._max_bytes = config.max_bytes
        self._allowed = [_allowed_host(entry) for entry in config.allowed_hosts]
        self._resolve = resolve
        self._public = public

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    def get(self, url: str, deadline: _Deadline) -> bytes:
        try:
            for _ in range(1 + _MAX_REDIRECTS):
                answer = self._hop(self._target(url), deadline)
                if isinstance(answer, bytes):
                    return answer
                url = urljoin(url, answer)
        except (OSError, HTTPError, HTTPException, ValueError) as error:
            # to urllib3 a connection that is refused is a timeout too
            if isinstance(error, (TimeoutError, HTTPTimeout)) and not isinstance(error, NewConnectionError):
                raise deadline.passed() from error
            raise BadPicture("http_error", f"no answer ({_first_line(error)})") from error
        raise BadPicture("http_error", f"more than {_MAX_REDIRECTS} redirects")

    def _target(self, url: str) -> _Target:
        try:
            parsed = parse_url(url)
        except LocationParseError as error:
            raise BadPicture("bad_uri", "not a URL") from error
        host = (parsed.host or "").lower().removesuffix(".")
        if not _HOST.fullmatch(host):
            raise BadPicture("bad_uri", "no host name in it")
        if parsed.auth is not None:
            raise BadPicture("bad_uri", "a user or password in it; take them out")
        if parsed.scheme not in _PORTS:
            raise BadPicture("not_allowed", f"leads to {parsed.scheme}://; only http and https are followed")
        port = parsed.port or _PORTS[parsed.scheme]
        for name, only_port in self._allowed:
            same = host.endswith(name) if name.startswith(".") else host == name
            if same and (port == only_port if only_port else port in _PORTS.values()):
                return _Target(parsed.scheme, host, port, parsed.request_uri)
        raise BadPicture("not_allowed", f"{host}:{port} is none of allowed_hosts; add it there")

    def _hop(self, target: _Target, deadline: _Deadline) -> bytes | str:
        """The body, or the URL that a redirect leads to."""
        headers = {
            "Host": target.host if target.port == _PORTS[target.scheme] else f"{target.host}:{target.port}",
            "Accept": "image/jpeg, image/png, image/webp, image/gif, image/bmp",
            "Accept-Encoding": "identity",  # 10 KB of gzip may be 10 MB
            "User-Agent": "rayrec",
        }
        with contextlib.closing(self._connect(target, deadline)) as connection:
            connection.request("GET", target.path, headers=headers, preload_content=False, decode_content=False)
            with contextlib.closing(connection.getresponse()) as response:
                return response.get_redirect_location() or self._body(response)

    def _connect(self, target: _Target, deadline: _Deadline) -> HTTPConnection:
        """Connected to the first address that answers, if all are public."""
        name = target.host.strip("[]")
        addresses = list(dict.fromkeys(self._resolve(name, target.port)))
        if not all(map(self._public, addresses)):
            raise BadPicture("not_allowed", f"{target.host} is at an address that is not public")
        failure: Exception = OSError(f"{target.host} has no address")
        for address in addresses:
            share = deadline.left() / len(addresses)
            if target.scheme == "https":
                connection: HTTPConnection = HTTPSConnection(
                    address, target.port, timeout=share, ssl_context=self._tls, server_hostname=name
                )
            else:
                connection = HTTPConnection(address, target.port, timeout=share)
            try:
                connection.connect()
                deadline.guard(connection.sock)
                return connection
            except (HTTPError, OSError, BadPicture) as error:
                connection.close()
                failure = error
        raise failure

    def _body(self, response: BaseHTTPResponse) -> bytes:
        if response.status in (404, 410):
            raise BadPicture("not_found", f"the host answers {response.status}")
        if response.status != 200:
            raise BadPicture("http_error", f"the host answers {response.status}")
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise BadPicture("http_error", "the host answers with a compressed body, which was not asked for")
        body = bytearray()
        while chunk := response.read(_CHUNK):  # Content-Length is a claim, so count
            body += chunk
            if len(body) > self._max_bytes:
                raise _too_large(self._max_bytes)
        return bytes(body)


def _allowed_host(entry: str) -> tuple[str, int | None]:
    """Name (".name" for all below it) and port of an entry of allowed_hosts."""
    below, name = ("." if entry.startswith(".") else ""), entry.removeprefix(".")
    try:
        parsed = parse_url(f"http://{name}")
    except LocationParseError:
        parsed = parse_url("")
    host = (parsed.host or "").lower()
    if parsed.auth is not None or parsed.request_uri != "/" or not _HOST.fullmatch(host):
        expected = "expected a name such as 'img.example.com', '.example.com' or 'img.example.com:8080'"
        raise SchemaError(f"allowed_hosts: got {entry!r}; {expected}")
    return below + host, parsed.port


def decode(data: bytes, *, max_bytes: int, max_pixels: int, side: int | None = None) -> np.ndarray:
    """A JPEG, PNG, WebP, GIF (its first frame) or BMP as uint8 (H, W, 3) RGB: upright, transparency on white.

    side: the caller is content with a picture whose shorter side has at least so many pixels, so JPEGs are decoded
    at 1/2, 1/4 or 1/8 and what is left is reduced by a whole factor. Raises BadPicture, nothing else.
    """
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    form = next((form for form in _FORMATS if form.magic.match(data)), None)
    if form is None:
        raise BadPicture("not_a_picture", f"begins with {data[:12]!r}; expected JPEG, PNG, WebP, GIF or BMP")
    whole = False
    try:
        bare, exif, whole = form.strip(data)
        # not Image.open: it hands some JPEGs to the MPO plugin, and its own limit on pixels is one for all threads
        with form.plugin(io.BytesIO(bare)) as image:
            passes = bare.count(b"\xff\xda") if form.plugin is JpegImagePlugin.JpegImageFile else 1
            _check_pixels(image.size, passes, max_pixels)
            return _pixels(image, _orientation(exif or image.info.get("exif", b"")), side)
    except BadPicture:
        raise
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPicture("too_many_pixels", "more pixels than there is memory for; make it smaller") from error
    except Exception as error:  # whatever PIL stumbles on: OSError, SyntaxError, ValueError, struct.error, zlib.error
        if whole:
            raise BadPicture("damaged", f"is damaged ({_first_line(error)}); save it anew") from error
        raise BadPicture("truncated", f"is cut short ({_first_line(error)}); send the whole file") from error


def _check_pixels(size: tuple[int, int], passes: int, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        got = f"{width:,} x {height:,} pixels, more than {max_pixels:,}"
        raise BadPicture("too_many_pixels", f"{got}; make it smaller or raise max_pixels")
    if width * height * passes > max_pixels * _MAX_PASSES:
        got = f"{passes:,} scans of {width:,} x {height:,} pixels"
        raise BadPicture("too_many_pixels", f"{got}; save it as a baseline JPEG")


def _pixels(image: ImageFile.ImageFile, orientation: int, side: int | None) -> np.ndarray:
    if side is not None:
        image.draft(None, (side, side))
    picture: Image.Image = image if image.mode != "I;16" else _eight_bits(image)
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    if picture.mode != mode:  # to convert is to copy
        picture = picture.convert(mode)
    if side is not None and (factor := min(picture.size) // side) > 1:
        picture = picture.reduce(factor)
    if picture.mode == "RGBA":
        white = Image.new("RGB", picture.size, (255, 255, 255))
        white.paste(picture, mask=picture)
        picture = white
    if orientation in _TRANSPOSE:
        picture = picture.transpose(_TRANSPOSE[orientation])
    return np.array(picture)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray by its high byte, which PIL would clip; the transparent value becomes white."""
    values = np.asarray(image)
    gray = (values >> 8).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        gray[values == transparent] = 255
    return Image.fromarray(gray)


class _Bare(NamedTuple):
    """A file without what is not pixels; its EXIF block; whether the end that its format has was there.

    Metadata is kept from PIL, since it is where files cost it much (Pillow 13: two minutes for 20 MB of EXIF in small
    segments, 45 s for as much of zipped colour profiles) and where they confuse it (a text named "transparency").
    """

    data: bytes
    exif: bytes
    whole: bool


def _too_many_parts(kind: str) -> BadPicture:
    return BadPicture("damaged", f"more than {_MAX_PARTS:,} {kind}; save it anew")


def _strip_jpeg(data: bytes) -> _Bare:
    kept, exif, position = [data[:2]], b"", 2
    for _ in range(_MAX_PARTS):
        marker = _JPEG_MARKER.search(data, position)
        if marker is None:
            return _Bare(b"".join(kept), exif, False)
        start, code = marker.start(), data[marker.start() + 1]
        if code == 0xDA:  # start of scan: pixels, to the end
            return _Bare(b"".join([*kept, data[start:]]), exif, data.rfind(b"\xff\xd9") > start)
        alone = code == 0x01 or 0xD0 <= code <= 0xD9
        position = start + 2 + (0 if alone else int.from_bytes(data[start + 2 : start + 4], "big"))
        if code not in _JPEG_METADATA:
            kept.append(data[start:position])
        elif code == 0xE1 and data[start + 4 : start + 10] == b"Exif\0\0":
            exif = exif or data[start + 10 : position]
    raise _too_many_parts("segments")


def _strip_png(data: bytes) -> _Bare:
    kept, exif, position = [data[:8]], b"", 8
    for _ in range(_MAX_PARTS):
        name = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if name in _PNG_PIXELS:
            kept.append(data[position:end])
        elif name == b"eXIf":
            exif = data[position + 8 : end - 4]
        if name == b"IEND" or end >= len(data):
            return _Bare(b"".join(kept), exif, name == b"IEND" and end <= len(data))
        position = end
    raise _too_many_parts("chunks")


def _strip_gif(data: bytes) -> _Bare:
    """Up to the end of the first frame. Raises IndexError if that is not there."""
    position = 13 + _colours(data[10])
    kept = [data[:position]]
    for _ in range(_MAX_PARTS):
        kind, end = data[position], position + 2  # an extension: "!", its label, blocks
        if kind == ord(","):  # a frame: its place and size, flags, colours, code size, blocks
            end = position + 11 + _colours(data[position + 9])
        while data[end]:
            end += 1 + data[end]
        if kind == ord(",") or data[position : position + 2] == b"!\xf9":
            kept.append(data[position : end + 1])
        if kind != ord("!"):
            return _Bare(b"".join([*kept, b";"]), b"", True)
        position = end + 1
    raise _too_many_parts("extensions")


def _colours(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _strip_webp(data: bytes) -> _Bare:
    """Nothing: libwebp steps over metadata quickly, and the plugin hands EXIF on unread."""
    return _Bare(data, b"", 8 + int.from_bytes(data[4:8], "little") <= len(data))


def _strip_bmp(data: bytes) -> _Bare:
    return _Bare(data, b"", int.from_bytes(data[2:6], "little") <= len(data))


def _orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory of an EXIF block, which is a small TIFF; 1, upright, if that is not there.

    Read here since PIL's reader warns of each of the many EXIF blocks that are broken behind this tag.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = ">" if exif.startswith(b"MM") else "<"
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(f"{order}4xI", exif)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(entries):
            tag, _type, _count, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * entry)
            if tag == 0x0112:
                return value
    return 1


class _Format(NamedTuple):
    magic: re.Pattern[bytes]
    plugin: type[ImageFile.ImageFile]
    strip: Callable[[bytes], _Bare]


_FORMATS = (
    _Format(re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile, _strip_jpeg),
    _Format(re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile, _strip_png),
    _Format(re.compile(rb"(?s)RIFF.{4}WEBPVP8[ LX]"), WebPImagePlugin.WebPImageFile, _strip_webp),
    _Format(re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile, _strip_gif),
    _Format(re.compile(rb"(?s)BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}"), BmpImagePlugin.BmpImageFile, _strip_bmp),
)
