"""Pictures from strangers: an array or a BadPicture, from allowed folders and prefixes and from nowhere else."""

import contextlib
import functools
import gzip
import io
import os
import pickle
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from pyarrow import fs as pafs

from rayrec.config import PicturesConfig
from rayrec.data.decoding import decode
from rayrec.data.pictures import PictureReader
from rayrec.errors import BadPicture, SchemaError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def solid(colour: tuple[int, ...], size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def photo(width: int = 64, height: int = 48) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def read(data: bytes, side: int | None = None, max_bytes: int = 1 << 20, max_pixels: int = 1 << 20) -> np.ndarray:
    return decode(data, max_bytes=max_bytes, max_pixels=max_pixels, side=side)


def reason_of(call: Callable[..., object], *args: Any, **options: Any) -> str:
    with pytest.raises(BadPicture) as caught:
        call(*args, **options)
    return caught.value.reason


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes, *chunks: bytes, bits: int = 8, colour: int = 0) -> bytes:
    """A PNG by hand; colour 0 is gray, 2 RGB. `pixels` as they are before they are zipped."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND")


def jpeg_with(*segments: bytes) -> bytes:
    data = encoded(photo(), "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def segment(code: int, data: bytes = b"") -> bytes:
    return bytes([0xFF, code]) + struct.pack(">H", len(data) + 2) + data


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


WHOLE = {
    "jpeg": encoded(photo(), "JPEG"),
    "progressive": encoded(photo(), "JPEG", progressive=True, exif=exif(6)),
    "png": encoded(photo(), "PNG", exif=exif(8)),
    "webp": encoded(photo(), "WEBP", exif=exif(3)),
    "lossless": encoded(photo(), "WEBP", lossless=True),
    "gif": encoded(photo(), "GIF", comment=b"x" * 600),
    "bmp": encoded(photo(), "BMP"),
}


# What a picture becomes


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        *[("JPEG", mode) for mode in ("L", "RGB", "CMYK")],
        *[("PNG", mode) for mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")],
        *[("WEBP", mode) for mode in ("L", "RGB", "RGBA")],
        *[("GIF", mode) for mode in ("1", "L", "P", "RGB")],
        *[("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")],
    ],
)
def test_every_kind_of_pixel_becomes_rgb(format: str, mode: str) -> None:
    half_white = Image.new("L", (32, 24), 0)
    half_white.paste(255, (0, 12, 32, 24))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(half_white).astype(np.uint16) * 257)
    else:
        image = half_white.convert("RGB").convert(mode)
    got = read(encoded(image, format))
    assert (got.shape, got.dtype) == ((24, 32, 3), np.uint8)
    assert got[:10].max() < 12
    assert got[14:].min() > 243


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    data = png(3, 1, b"\0" + struct.pack(">HHH", 0, 0x8000, 0xFFFF), bits=16)
    assert read(data)[0, :, 0].tolist() == [0, 128, 255]


def test_transparency_is_composed_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 51, 255)):
        image.putpixel((x, 0), (0, 0, 0, alpha))
    for data in (encoded(image, "PNG"), encoded(image, "WEBP", lossless=True, exact=True)):
        assert read(data)[0, :, 0].tolist() == [255, 204, 0]  # 255 * (1 - alpha / 255)


@pytest.mark.parametrize(
    "data",
    [
        png(2, 1, b"\0\x07\x09", chunk(b"tRNS", b"\0\x07")),
        png(2, 1, b"\0\0\x07\0\x09", chunk(b"tRNS", b"\0\x07"), bits=16),
        png(2, 1, b"\0" + b"\x07" * 3 + b"\x09" * 3, chunk(b"tRNS", b"\0\x07" * 3), colour=2),
        encoded(Image.fromarray(np.array([[0, 1]], np.uint8)), "GIF", transparency=0),
    ],
    ids=["gray", "gray16", "rgb", "gif"],
)
def test_the_one_transparent_colour_becomes_white(data: bytes) -> None:
    first, second = read(data)[0].tolist()
    assert first == [255, 255, 255]
    assert max(second) < 10


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    image = solid(BLUE, (32, 16))
    image.paste(RED, (0, 0, 8, 8))  # top left
    data = encoded(image, format, exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as reference:
        upright = np.array(ImageOps.exif_transpose(reference))
    assert read(data).shape == upright.shape
    assert np.array_equal(read(data), upright)


def test_a_photo_taken_upright_stands_upright() -> None:
    image = solid(BLUE, (32, 16))
    image.paste(RED, (0, 0, 8, 8))
    got = read(encoded(image, "PNG", exif=exif(6)))  # "row 0 is at the right", so its left end is the top right
    assert got.shape == (32, 16, 3)
    assert got[0, 15].tolist() == list(RED)
    assert got[0, 0].tolist() == list(BLUE)


def test_exif_in_a_webp_may_begin_as_it_does_in_a_jpeg() -> None:
    data = encoded(photo(), "WEBP", exif=exif(6))
    start = data.index(b"EXIF")
    block = b"Exif\0\0" + data[start + 8 :]
    data = data[12:start] + b"EXIF" + struct.pack("<I", len(block)) + block
    assert read(b"RIFF" + struct.pack("<I", len(data) + 4) + b"WEBP" + data).shape == (64, 48, 3)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12" + tail))
def test_no_exif_spoils_a_picture(block: bytes) -> None:
    for data in (png(2, 1, b"\0\x07\x09", chunk(b"eXIf", block)), jpeg_with(segment(0xE1, b"Exif\0\0" + block))):
        assert read(data).size in (2 * 3, 64 * 48 * 3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "MPO"])
def test_of_several_frames_the_first_is_read(format: str) -> None:
    frames = {"save_all": True, "append_images": [solid(BLUE), solid(BLUE)]}
    got = read(encoded(solid(RED), format, **frames))
    assert got.shape == (8, 8, 3)
    assert np.abs(got.astype(int) - RED).max() < 12


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1)])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP"])
def test_tiny_and_endless_pictures_are_pictures(format: str, size: tuple[int, int]) -> None:
    assert read(encoded(solid(RED, size), format), side=224).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize(("side", "height"), [(None, 480), (481, 480), (250, 480), (200, 240), (100, 120), (30, 30)])
def test_a_large_picture_is_reduced_to_not_less_than_is_asked(format: str, side: int | None, height: int) -> None:
    got = read(encoded(photo(640, 480), format), side=side)
    assert got.shape == (height, height * 4 // 3, 3)
    assert abs(int(got[-1, 0, 0]) - 255) < 24  # a gradient from black to white, still
    assert got[0, 0, 0] < 24


def test_a_large_jpeg_is_not_decoded_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, prepare = [], ImageFile.ImageFile.load_prepare

    def watched(image: ImageFile.ImageFile) -> None:
        decoded.append(image.size)
        prepare(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", watched)
    read(encoded(photo(640, 480), "JPEG"), side=100)
    assert decoded == [(160, 120)]  # by 4, to no less than 100


def test_what_is_transparent_leaves_no_dark_rim_when_reduced() -> None:
    image = solid((0, 0, 0, 0), (16, 16), "RGBA")
    image.paste((255, 0, 0, 255), (1, 1, 16, 16))
    got = read(encoded(image, "PNG"), side=8)
    assert got[..., 0].min() == 255  # red on white is 255 in red all along


# Limits


@pytest.mark.parametrize("name", WHOLE)
def test_the_limits_are_the_largest_that_pass(name: str) -> None:
    data = WHOLE[name]
    read(data, max_bytes=len(data), max_pixels=64 * 48)
    assert reason_of(read, data, max_bytes=len(data) - 1) == "too_large"
    assert reason_of(read, data, max_pixels=64 * 48 - 1) == "too_many_pixels"
    assert reason_of(read, data, side=1, max_pixels=64 * 48 - 1) == "too_many_pixels"


@functools.cache
def bombs() -> dict[str, bytes]:
    """Small files that say they are 2 to 4 thousand million pixels, each in its own way."""
    zeros = zlib.compress(bytes(50 << 20), 1)[: 50 << 10]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    jpeg = bytearray(encoded(photo(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    gif = b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0)
    small_screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    frame_of = b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x02\x44\x01\0;"
    bmp = bytearray(encoded(solid(RED), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, -60_000)
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (59_999).to_bytes(3, "little") * 2
    webp = canvas + WHOLE["lossless"][12:]
    return {
        "bomb.png": b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zeros) + chunk(b"IEND"),
        "bomb.jpg": bytes(jpeg),
        "bomb.gif": gif + frame_of,
        "frame over screen.gif": small_screen + frame_of,
        "bomb.bmp": bytes(bmp),
        "bomb.webp": b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp,
    }


@pytest.mark.parametrize("name", list(bombs()))
def test_a_bomb_is_refused_by_its_header(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    started = time.monotonic()
    assert reason_of(read, bombs()[name], max_pixels=50_000_000) == "too_many_pixels"
    assert time.monotonic() - started < 1


def test_pils_own_limit_for_all_threads_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("jpeg", "png", "gif", "bmp"):
        assert read(WHOLE[name]).size == 64 * 48 * 3


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8 << 20))),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(8 << 20))),
        chunk(b"iTXt", b"Comment\0\x01\0\0\0" + zlib.compress(bytes(8 << 20))),
        chunk(b"tEXt", b"transparency\0nonsense"),
        chunk(b"tEXt", b"bbox\0nonsense"),
        chunk(b"acTL", struct.pack(">II", 1 << 30, 0)),
    ],
    ids=["zTXt", "iCCP", "iTXt", "transparency", "bbox", "acTL"],
)
def test_what_a_png_says_besides_its_pixels_is_not_listened_to(metadata: bytes) -> None:
    assert np.array_equal(read(png(2, 1, b"\0\x07\x09", metadata)), read(png(2, 1, b"\0\x07\x09")))


@pytest.mark.parametrize(
    "data",
    [
        jpeg_with(segment(0xE5) * 70_000),
        png(2, 1, b"\0\x07\x09", chunk(b"prVt") * 70_000),
        b"GIF89a" + bytes(7) + b"!\x01\0" * 70_000,
    ],
    ids=["jpeg", "png", "gif"],
)
def test_a_file_of_countless_parts_is_given_up(data: bytes) -> None:
    assert reason_of(read, data) == "damaged"


def test_a_jpeg_of_countless_scans_is_refused_before_it_is_decoded() -> None:
    data = encoded(photo(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scans = data[:-2] + data[last:-2] * 200 + data[-2:]
    assert read(scans).shape == (48, 64, 3)  # 200 times a small picture is not much
    assert reason_of(read, scans, max_pixels=64 * 48) == "too_many_pixels"


# Broken files


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_is_cut_is_no_half_gray_picture(name: str) -> None:
    data, whole = WHOLE[name], read(WHOLE[name])
    for end in range(30, len(data) - 24, max(1, len(data) // 50)):
        assert reason_of(read, data[:end]) == "truncated", end
    for end in range(len(data) - 24, len(data)):  # a PNG ends with sums and a chunk that are no pixels
        with contextlib.suppress(BadPicture):
            assert np.array_equal(read(data[:end]), whole), end


@settings(max_examples=150)
@given(
    name=st.sampled_from(sorted(WHOLE)),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    head=st.floats(0, 0.2) | st.just(1.0),
    keep=st.floats(0, 1) | st.just(1.0),
    side=st.none() | st.integers(1, 64),
)
def test_whatever_the_bytes_only_a_picture_or_bad_picture_comes_out(
    name: str, edits: list[tuple[float, int]], head: float, keep: float, side: int | None
) -> None:
    data = bytearray(WHOLE[name])
    for place, byte in edits:
        data[int(place * len(data) * head)] = byte  # often in the header, which matters most
    with contextlib.suppress(BadPicture):
        got = read(bytes(data[: int(keep * len(data))]), side=side)
        assert (got.ndim, got.shape[2], got.dtype) == (3, 3, np.uint8)


@given(st.binary(max_size=100), st.sampled_from([data[:n] for data in WHOLE.values() for n in (0, 3, 12, 30)]))
def test_what_only_begins_like_a_picture_is_none(tail: bytes, start: bytes) -> None:
    assert reason_of(read, start + tail) in {"not_a_picture", "truncated", "damaged", "too_many_pixels"}


def test_a_folder_of_hostile_files_is_told_apart(tmp_path: Path) -> None:
    hostile = {
        **{name: (data, "too_many_pixels") for name, data in bombs().items()},
        "empty.jpg": (b"", "not_a_picture"),
        "noise.png": (np.random.default_rng(0).bytes(5_000), "not_a_picture"),
        "drawing.jpg": (
            b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
            "not_a_picture",
        ),
        "page.jpg": (b"<!DOCTYPE html><script>alert(1)</script>", "not_a_picture"),
        "paper.jpg": (b"%PDF-1.7\n", "not_a_picture"),
        "print.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_a_picture"),
        "photo.tiff.jpg": (encoded(photo(), "TIFF"), "not_a_picture"),
        "icon.png": (encoded(photo(), "ICO"), "not_a_picture"),
        "letter.bmp": (b"BM means something else here, at some length", "not_a_picture"),
        "script.gif": (b"GIF89a/*" + b" " * 60 + b"*/=1;alert(1)", "truncated"),
        "half.jpg": (WHOLE["jpeg"][:400], "truncated"),
        "half.png": (WHOLE["png"][:100], "truncated"),
        "half.gif": (WHOLE["gif"][:-50], "truncated"),
        "half.webp": (WHOLE["webp"][:-1], "truncated"),
        "wrong sum.png": (WHOLE["png"].replace(b"IHDR\0\0\0\x40", b"IHDR\0\0\0\x41"), "damaged"),
        "no zip.png": (png(2, 1, b"").replace(zlib.compress(b""), b"abcdefgh"), "damaged"),
        "heavy.bmp": (encoded(photo(700, 600), "BMP"), "too_large"),
    }
    reader = PictureReader(PicturesConfig(allowed_roots=(str(tmp_path),), max_bytes=1 << 20))
    for name, (data, _) in hostile.items():
        (tmp_path / name).write_bytes(data)
    got = {name: reason_of(reader.read, name) for name in hostile}
    assert got == {name: reason for name, (_, reason) in hostile.items()}


def test_a_picture_with_a_page_behind_it_is_the_picture() -> None:
    for name, data in WHOLE.items():
        assert np.array_equal(read(data + b"<script>alert(1)</script>"), read(data)), name


def test_a_bad_picture_keeps_its_reason_between_replicas() -> None:
    error = pickle.loads(pickle.dumps(BadPicture("timeout", "not read within 10 s")))
    assert (error.reason, str(error)) == ("timeout", "not read within 10 s")


# Files


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory of pictures, beside one that is not to be read."""
    for name in ("pics/sub/a b.png", "pics-private/a.png", "private/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(WHOLE["png"])
    return tmp_path


def reader_of(*roots: Path | str, **config: Any) -> PictureReader:
    return PictureReader(PicturesConfig(allowed_roots=tuple(map(str, roots)), **config))


def test_a_file_may_be_named_in_each_way(shop: Path) -> None:
    reader = reader_of(shop / "none", shop / "pics")
    absolute = f"{shop}/pics/sub/a b.png"
    for uri in (
        "sub/a b.png",
        "sub/../sub/a b.png",
        absolute,
        f"file://{shop}/pics/sub/a%20b.png",
        f"FILE://localhost{absolute}",
    ):
        assert reader.fetch(uri) == WHOLE["png"], uri


def test_a_relative_path_is_of_the_first_root_that_has_it(shop: Path) -> None:
    (shop / "pics" / "a.png").write_bytes(WHOLE["gif"])
    assert reader_of(shop / "private", shop / "pics").fetch("a.png") == WHOLE["png"]
    assert reader_of(shop / "pics", shop / "private").fetch("a.png") == WHOLE["gif"]
    assert reader_of(shop / "private", shop / "pics").fetch("sub/a b.png") == WHOLE["png"]


def test_a_link_is_followed_within_the_root_and_not_out_of_it(shop: Path) -> None:
    (shop / "pics" / "within.png").symlink_to("sub/a b.png")
    (shop / "pics" / "out.png").symlink_to("../private/a.png")
    (shop / "pics" / "outdir").symlink_to(shop / "private")
    (shop / "pics" / "loop.png").symlink_to("loop.png")
    (shop / "link").symlink_to(shop / "pics")
    reader = reader_of(shop / "pics")
    assert reader.fetch("within.png") == WHOLE["png"]
    assert reader_of(shop / "link").fetch("within.png") == WHOLE["png"]
    for name in ("out.png", "outdir/a.png"):
        assert reason_of(reader.fetch, name) == "not_allowed"
    assert reason_of(reader.fetch, "loop.png") == "unreadable"


def test_what_is_outside_is_refused_whether_or_not_it_is_there(shop: Path) -> None:
    reader = reader_of(shop / "pics")
    for path in ("../private/a.png", "/etc/passwd", f"{shop}/pics-private/a.png", "../nothing", "file:///etc/passwd"):
        assert reason_of(reader.fetch, path) == "not_allowed"
    for path in (f"file://{shop}/pics/%2e%2e/private/a.png", f"file://{shop}/pics/..%2fprivate/a.png"):
        assert reason_of(reader.fetch, path) == "not_allowed"
    assert reason_of(reader.fetch, "sub/none.png") == "not_found"
    assert reason_of(reader.fetch, "sub/a b.png/c.png") == "not_found"


def test_a_link_put_there_after_the_path_was_checked_is_not_followed(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop / "pics" / "late.png").symlink_to("../private/a.png")
    (shop / "pics" / "late").symlink_to(shop / "private")
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)  # as the path was when it was resolved
    for name in ("late.png", "late/a.png"):
        assert reason_of(reader_of(shop / "pics").fetch, name) in {"unreadable", "not_found"}


def test_only_regular_files_are_read(shop: Path) -> None:
    os.mkfifo(shop / "pics" / "fifo.png")
    for root, name in ((shop / "pics", "fifo.png"), (shop / "pics", "sub"), (shop / "pics", "."), ("/dev", "zero")):
        assert reason_of(reader_of(root).fetch, name) == "not_allowed"


def test_a_file_over_the_limit_is_too_large(shop: Path) -> None:
    size = len(WHOLE["png"])
    assert len(reader_of(shop / "pics", max_bytes=size).fetch("sub/a b.png")) == size
    assert reason_of(reader_of(shop / "pics", max_bytes=size - 1).fetch, "sub/a b.png") == "too_large"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "a\0.png",
        "a\n.png",
        "file:///a%00.png",
        "file://elsewhere/a.png",
        "\ud800.png",
        "x" * 5_000,
        "data:image/png;base64,iVBORw0KGgo=",
        "DATA:image/png,x",
        "ftp://example.com/a.png",
        "gopher://example.com/",
        "http://",
        "http:///a.png",
        "http://[::1/a.png",
        "http://exa mple.com/a.png",
        "http://example.com:99999/a.png",
        "http://user:secret@example.com/a.png",
        "http://example.com@/a.png",
    ],
)
def test_what_is_no_uri_of_a_picture_is_said_to_be_none(uri: str, tmp_path: Path) -> None:
    reader = reader_of(tmp_path, allowed_hosts=("example.com",))
    with pytest.raises(BadPicture) as caught:
        reader.read(uri)
    assert caught.value.reason == "bad_uri"
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_by_default_nothing_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(WHOLE["png"])
    reader = PictureReader(PicturesConfig())
    for uri in (f"{tmp_path}/a.png", "a.png", "s3://bucket/a.png", "gs://bucket/a.png", "https://example.com/a.png"):
        assert reason_of(reader.fetch, uri) == "not_allowed"


# Object stores


@pytest.fixture
def bucket(tmp_path: Path) -> PictureReader:
    """s3://bucket/pics is a local directory here."""
    for key in ("pics/a.png", "pics/100% ?a.png", "pics/a.png.gz", "pics-private/a.png", "secret.png"):
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(gzip.compress(b"x" * 9) if key.endswith("gz") else WHOLE["png"])

    def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
        assert uri == "s3://bucket/pics/?region=eu-west-1"
        return pafs.LocalFileSystem(), f"{tmp_path}/pics/"

    config = PicturesConfig(allowed_roots=("s3://bucket/pics/?region=eu-west-1",))
    return PictureReader(config, open_filesystem=open_filesystem)


def test_a_key_under_an_allowed_prefix_is_read_as_it_is_written(bucket: PictureReader) -> None:
    assert bucket.fetch("s3://bucket/pics/a.png") == WHOLE["png"]
    assert bucket.fetch("S3://bucket/pics/100% ?a.png") == WHOLE["png"]
    assert gzip.decompress(bucket.fetch("s3://bucket/pics/a.png.gz")) == b"x" * 9
    assert reason_of(bucket.fetch, "s3://bucket/pics/none.png") == "not_found"
    assert reason_of(bucket.fetch, "s3://bucket/pics/%61.png") == "not_found"
    assert reason_of(bucket.fetch, "s3://bucket/pics/a.png?endpoint_override=evil.example") == "not_found"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/secret.png",
        "s3://bucket/pics-private/a.png",
        "s3://bucket/pics/../secret.png",
        "s3://bucket/pics//a.png",
        "s3://bucket/pics/",
        "s3://other/pics/a.png",
        "gs://bucket/pics/a.png",
    ],
)
def test_a_key_under_no_allowed_prefix_is_refused(uri: str, bucket: PictureReader) -> None:
    assert reason_of(bucket.fetch, uri) == "not_allowed"


def test_what_a_store_fails_with_is_a_bad_picture() -> None:
    def broken(uri: str) -> tuple[pafs.FileSystem, str]:
        raise OSError("When resolving region: AWS Error NETWORK_CONNECTION\nat line 2")

    reader = PictureReader(PicturesConfig(allowed_roots=("s3://bucket",)), open_filesystem=broken)
    with pytest.raises(
        BadPicture, match=r"'s3://bucket/a.png': cannot be read \(When resolving.*CONNECTION\)$"
    ) as caught:
        reader.read("s3://bucket/a.png")
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("root", ["ftp://host/pics", "http://host/pics", "memory://pics"])
def test_a_root_of_another_kind_is_refused_at_the_start(root: str) -> None:
    with pytest.raises(SchemaError, match="allowed_roots"):
        reader_of(root)
