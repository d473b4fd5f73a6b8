"""Pictures over http(s): from allowed hosts at public addresses, and never for longer or more than was allowed."""

import datetime
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rayrec.config import PicturesConfig
from rayrec.data.pictures import PictureReader
from rayrec.data.web import is_public
from rayrec.errors import BadPicture, SchemaError
from tests.fakes import make_photo

PNG = make_photo("red", (64, 48))


def reason_of(call: Callable[..., object], *args: Any) -> str:
    with pytest.raises(BadPicture) as caught:
        call(*args)
    return caught.value.reason


class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Site"

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.requests.append((self.path, dict(self.headers)))
        self.server.pages[self.path](self)

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"content_length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


class Site(ThreadingHTTPServer):
    """http://pictures.test:<port>, on 127.0.0.1."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.pages: dict[str, Callable[[Page], None]] = {
            "/a.png": lambda page: page.answer(body=PNG),
        }
        self.root = f"http://pictures.test:{self.server_port}"

    def redirect(self, path: str, to: str, status: int = 302) -> str:
        self.pages[path] = lambda page: page.answer(status, location=to)
        return self.root + path

    def reader(self, **config: Any) -> PictureReader:
        """One to whom 127.0.0.1 is the public internet, and any other address is not."""
        config = {"allowed_hosts": (f"pictures.test:{self.server_port}",), **config}
        public = "127.0.0.1"
        return PictureReader(PicturesConfig(**config), resolve=lambda host, port: [public], public=public.__eq__)

    def handle_error(self, request: Any, client_address: Any) -> None: ...  # a reader that hung up


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.01,))
        thread.start()
        yield site
        site.shutdown()
        thread.join()


def test_a_picture_is_read_from_an_allowed_host(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody there, if it were used
    assert site.reader().read(f"{site.root}/a.png").shape == (48, 64, 3)
    (path, headers), *more = site.requests
    assert (path, headers["Host"], headers["Accept-Encoding"]) == (
        "/a.png", f"pictures.test:{site.server_port}", "identity",
    )  # fmt: skip
    assert more == []


def test_a_url_is_sent_as_it_should_have_been_written(site: Site) -> None:
    site.pages["/%C3%A4%20b.png?x=1"] = site.pages["/a.png"]
    assert site.reader().fetch(f"{site.root.upper()}/ä b.png?x=1#part") == PNG


PRIVATE = [
    "127.0.0.1", "localhost", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "2130706433", "0x7f.1", "0177.0.0.1", "0x7f000001", "127.1",
    "[::1]", "[::]",
    "[::ffff:10.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[fe80::1]", "[fd00::1]", "[ff02::1]", "[fec0::1]",
    "[64:ff9b::10.0.0.1]", "[64:ff9b:1::a00:1]", "[2002:a00:1::1]", "[2001:0:4136:e378:8000:63bf:f5ff:fffe]",
    "[2001:db8::1]",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_by_default_no_spelling_of_a_private_address_is_reached(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    reader = PictureReader(PicturesConfig(allowed_hosts=(host,)))
    for uri in (f"http://{host}/", f"https://{host}/latest/meta-data/"):
        with pytest.raises(BadPicture, match="is at an address that is not public") as caught:
            reader.fetch(uri)
        assert caught.value.reason == "not_allowed"


def test_public_addresses_are_public() -> None:
    public = ("8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "64:ff9b::808:808")
    assert [address for address in public if not is_public(address)] == []


@pytest.mark.parametrize("addresses", [["8.8.8.8", "10.0.0.1"], ["2606:4700::1", "::1"]])
def test_one_private_address_among_public_ones_is_enough_to_refuse(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    reader = PictureReader(PicturesConfig(allowed_hosts=("example.com",)), resolve=lambda host, port: addresses)
    assert reason_of(reader.fetch, "http://example.com/a.png") == "not_allowed"


def test_a_name_that_is_rebound_after_the_check_is_not_looked_up_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])
    config = PicturesConfig(allowed_hosts=(f"pictures.test:{site.server_port}",))
    reader = PictureReader(config, resolve=lambda host, port: next(answers), public="127.0.0.1".__eq__)
    looked_up, lookup = [], socket.getaddrinfo

    def watched(host: str, *args: Any, **options: Any) -> Any:
        looked_up.append(host)
        return lookup(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    assert reader.fetch(f"{site.root}/a.png") == PNG
    assert looked_up == ["127.0.0.1"]
    assert reason_of(reader.fetch, f"{site.root}/a.png") == "not_allowed"  # the second answer, checked anew


def test_the_next_address_is_tried_when_one_does_not_answer(site: Site) -> None:
    config = PicturesConfig(allowed_hosts=(f"pictures.test:{site.server_port}",))
    reader = PictureReader(config, resolve=lambda host, port: ["127.0.0.9", "127.0.0.1"], public=lambda _: True)
    assert reader.fetch(f"{site.root}/a.png") == PNG


HOSTS = {
    "http://example.com/": True,
    "http://EXAMPLE.com./": True,
    "https://example.com:443/": True,
    "http://example.com:80/": True,
    "http://example.com:8080/": False,
    "http://example.com.evil.test/": False,
    "http://example.com\\@evil.test/": True,  # of example.com, as it is sent
    "http://evil.test\\@example.com/": False,
    "http://evil.test/?http://example.com": False,
    "http://evilexample.com/": False,
    "http://a.example.com/": False,
    "http://a.cdn.test/": True,
    "http://A.b.CDN.test/": True,
    "http://cdn.test/": False,
    "http://evilcdn.test/": False,
    "http://port.test:8080/": True,
    "http://port.test/": False,
    "http://bücher.test/": True,
    "http://BÜCHER.test/": True,
    "http://xn--bcher-kva.test/": True,
    "http://bucher.test/": False,
}


@pytest.mark.parametrize("uri", HOSTS)
def test_only_allowed_hosts_are_even_looked_up(uri: str) -> None:
    looked_up = []

    def resolve(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["10.0.0.1"]

    allowed = ("Example.com", ".cdn.test", "port.test:8080", "bücher.test")
    reader = PictureReader(PicturesConfig(allowed_hosts=allowed), resolve=resolve)
    assert reason_of(reader.fetch, uri) == "not_allowed"
    assert bool(looked_up) == HOSTS[uri]
    assert all(host.isascii() and host == host.lower() for host in looked_up)


@pytest.mark.parametrize("uri", ["http://ｅxample.com/", "http://example。com/", "http://exam\u00adple.com/"])
def test_a_host_that_only_looks_allowed_is_no_host(uri: str) -> None:
    reader = PictureReader(PicturesConfig(allowed_hosts=("example.com",)))
    assert reason_of(reader.fetch, uri) == "bad_uri"


@pytest.mark.parametrize("entry", ["", ".", "*.example.com", "http://example.com", "example.com/a", "a@b.com", "a b"])
def test_an_allowed_host_that_would_never_match_is_refused_at_the_start(entry: str) -> None:
    with pytest.raises(SchemaError, match=r"allowed_hosts.*expected a name such as"):
        PictureReader(PicturesConfig(allowed_hosts=(entry,)))


def test_three_redirects_are_followed_and_no_more(site: Site) -> None:
    for number, status in enumerate((301, 302, 303, 307, 308)):
        site.redirect(f"/{number + 1}", f"/{number}" if number else "a.png", status)
    assert site.reader().fetch(f"{site.root}/3") == PNG
    assert reason_of(site.reader().fetch, f"{site.root}/4") == "http_error"
    assert reason_of(site.reader().fetch, f"{site.root}/5") == "http_error"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://evil.test/a.png", "not_allowed"),
        ("http://127.0.0.1/a.png", "not_allowed"),
        ("http://pictures.test:22/", "not_allowed"),
        ("file:///etc/passwd", "bad_uri"),
        ("ftp://pictures.test/a.png", "not_allowed"),
        ("gopher://pictures.test:70/_x", "not_allowed"),
        ("http://user:pass@pictures.test/a.png", "bad_uri"),
        ("http://[", "http_error"),
        ("", "http_error"),
    ],
)
def test_a_redirect_leads_nowhere_that_a_uri_may_not(location: str, reason: str, site: Site) -> None:
    uri = site.redirect("/there", location)
    assert reason_of(site.reader().fetch, uri) == reason
    assert [path for path, _ in site.requests] == ["/there"]


def test_the_addresses_of_a_redirect_are_checked_too(site: Site) -> None:
    places = {"pictures.test": "127.0.0.1", "inside.test": "127.0.0.2"}
    config = PicturesConfig(allowed_hosts=(f"pictures.test:{site.server_port}", "inside.test"))
    reader = PictureReader(config, resolve=lambda host, port: [places[host]], public="127.0.0.1".__eq__)
    uri = site.redirect("/there", "http://inside.test/a.png")
    with pytest.raises(BadPicture, match=r"inside\.test is at an address that is not public"):
        reader.fetch(uri)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, "not_found"),
        (410, "not_found"),
        (403, "http_error"),
        (500, "http_error"),
        (204, "http_error"),
        (206, "http_error"),
        (304, "http_error"),
    ],
)
def test_an_answer_without_a_picture_is_told_by_its_status(status: int, reason: str, site: Site) -> None:
    site.pages["/no"] = lambda page: page.answer(status)
    with pytest.raises(BadPicture, match=f"answers {status}") as caught:
        site.reader().fetch(f"{site.root}/no")
    assert caught.value.reason == reason


def chunked(page: Page) -> None:
    page.send_response(200)
    page.send_header("Transfer-Encoding", "chunked")
    page.end_headers()
    while True:  # until the reader hangs up
        page.wfile.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")


def one_line(page: Page) -> None:
    page.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        page.wfile.write(bytes(0x1000))


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (lambda page: page.answer(body=bytes(10_001)), "too_large"),
        (lambda page: page.answer(body=bytes(99), content_length=str(1 << 40)), "http_error"),
        (chunked, "too_large"),
        (one_line, "http_error"),
        (lambda page: page.answer(body=gzip.compress(PNG), content_encoding="gzip"), "http_error"),
        (lambda page: page.answer(body=PNG, content_encoding="br"), "http_error"),
        (lambda page: page.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n"), "http_error"),
        (lambda page: None, "http_error"),
    ],
    ids=["heavy", "shorter than said", "endless", "endless header", "gzip", "br", "no http", "nothing"],
)
def test_a_server_that_misbehaves_costs_no_more_than_the_limit(
    page: Callable[[Page], None], reason: str, site: Site
) -> None:
    site.pages["/x.png"] = page
    assert reason_of(site.reader(max_bytes=10_000).fetch, f"{site.root}/x.png") == reason


def test_a_body_of_just_the_limit_is_read(site: Site) -> None:
    site.pages["/x.png"] = lambda page: page.answer(body=bytes(10_000))
    assert len(site.reader(max_bytes=10_000).fetch(f"{site.root}/x.png")) == 10_000


def test_a_host_that_nobody_answers_at_is_an_http_error() -> None:
    with Site() as closed:
        pass
    assert reason_of(closed.reader().fetch, f"{closed.root}/a.png") == "http_error"


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: ", b""])
def test_a_server_that_drips_is_cut_when_time_is_up(start: bytes, site: Site) -> None:
    cut = threading.Event()

    def drip(page: Page) -> None:
        page.wfile.write(start)
        try:
            while True:
                time.sleep(0.02)
                page.wfile.write(b"1")
        except OSError:
            cut.set()

    site.pages["/x.png"] = drip
    started = time.monotonic()
    assert reason_of(site.reader(timeout_s=0.2).fetch, f"{site.root}/x.png") == "timeout"
    assert time.monotonic() - started < 2
    assert cut.wait(2)


def test_a_lookup_that_hangs_is_left_behind() -> None:
    hangs = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        hangs.wait(10)
        return ["127.0.0.1"]

    config = PicturesConfig(allowed_hosts=("example.com",), timeout_s=0.1)
    assert reason_of(PictureReader(config, resolve=resolve).fetch, "http://example.com/") == "timeout"
    hangs.set()


# TLS


def certificate(path: Path, name: str) -> Path:
    """A key and a certificate for `name` that it signed itself, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form) + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize(
    ("name", "trusted", "reason"),
    [("pictures.test", True, None), ("other.test", True, "http_error"), ("pictures.test", False, "http_error")],
)
def test_a_certificate_must_be_of_the_name_though_the_address_is_connected_to(
    name: str, trusted: bool, reason: str | None, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate(tmp_path / "server.pem", name)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem if trusted else certificate(tmp_path / "ca.pem", name)))
    asked_for: list[str | None] = []
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    tls.sni_callback = lambda _socket, server_name, _context: asked_for.append(server_name)
    site.socket = tls.wrap_socket(site.socket, server_side=True)
    url = f"https://pictures.test:{site.server_port}/a.png"
    if reason is None:
        assert site.reader().fetch(url) == PNG
    else:
        with pytest.raises(BadPicture, match="certificate verify failed") as caught:
            site.reader().fetch(url)
        assert caught.value.reason == reason
    assert asked_for == ["pictures.test"]


def test_a_handshake_that_hangs_is_a_timeout(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        reader = site.reader(allowed_hosts=(f"pictures.test:{port}",), timeout_s=0.2)
        assert reason_of(reader.fetch, f"https://pictures.test:{port}/a.png") == "timeout"
