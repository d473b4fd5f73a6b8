"""GET of a URL that strangers chose: from allowed hosts, at public addresses, within a time and a size.

What could reach into the network behind us ends here: private addresses in all their spellings, names that change
between the check and the connection, redirects, servers that never end. What goes wrong is a BadPicture.

>>> from rayrec.config import PicturesConfig
>>> web = Web(PicturesConfig(allowed_hosts=("img.example.com",)), resolve, is_public)
>>> web.get("http://elsewhere.example.com/a.png", Deadline(1.0))
Traceback (most recent call last):
rayrec.errors.BadPicture: elsewhere.example.com:80 is none of allowed_hosts; add it there
"""

import contextlib
import functools
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from http.client import HTTPException
from typing import NamedTuple
from urllib.parse import urljoin

from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationParseError, NewConnectionError
from urllib3.exceptions import TimeoutError as HTTPTimeout
from urllib3.util import parse_url

from rayrec.config import PicturesConfig
from rayrec.errors import BadPicture, SchemaError

_MAX_REDIRECTS = 3
_CHUNK = 1 << 16
PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}|\[[0-9a-f:.]+\]")
_GLOBAL = ipaddress.IPv6Network("2000::/3")  # what is handed out to be reached; the rest has special uses
_TUNNELS = (ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32"))  # 6to4, Teredo
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits


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


class Deadline:
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


def in_time(seconds: float, read: Callable[[Deadline], bytes]) -> bytes:
    """What `read` returns. In a thread that is left behind when time is up, since nothing ends a DNS lookup."""
    deadline = Deadline(seconds)
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


class Web:
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

    def get(self, url: str, deadline: Deadline) -> bytes:
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
            raise BadPicture("http_error", f"no answer ({first_line(error)})") from error
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
        if parsed.scheme not in PORTS:
            raise BadPicture("not_allowed", f"leads to {parsed.scheme}://; only http and https are followed")
        port = parsed.port or PORTS[parsed.scheme]
        for name, only_port in self._allowed:
            same = host.endswith(name) if name.startswith(".") else host == name
            if same and (port == only_port if only_port else port in PORTS.values()):
                return _Target(parsed.scheme, host, port, parsed.request_uri)
        raise BadPicture("not_allowed", f"{host}:{port} is none of allowed_hosts; add it there")

    def _hop(self, target: _Target, deadline: Deadline) -> bytes | str:
        """The body, or the URL that a redirect leads to."""
        headers = {
            "Host": target.host if target.port == PORTS[target.scheme] else f"{target.host}:{target.port}",
            "Accept": "image/jpeg, image/png, image/webp, image/gif, image/bmp",
            "Accept-Encoding": "identity",  # 10 KB of gzip may be 10 MB
            "User-Agent": "rayrec",
        }
        with contextlib.closing(self._connect(target, deadline)) as connection:
            connection.request("GET", target.path, headers=headers, preload_content=False, decode_content=False)
            with contextlib.closing(connection.getresponse()) as response:
                return response.get_redirect_location() or self._body(response)

    def _connect(self, target: _Target, deadline: Deadline) -> HTTPConnection:
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
                raise too_large(self._max_bytes)
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


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def too_large(max_bytes: int) -> BadPicture:
    return BadPicture("too_large", f"more than {max_bytes:,} bytes; make it smaller or raise max_bytes")
