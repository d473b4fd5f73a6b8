"""A photo: what it is known by, and that it is read as the image encoder would read it."""

import pickle
import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from rayrec.config import PicturesConfig
from rayrec.encoders.image import Preprocess
from rayrec.errors import InvalidRequest
from rayrec.photo import Photo
from rayrec.request import SearchRequest
from tests.fakes import make_photo

RED, BLUE = make_photo("red"), make_photo("blue")
CUT = Preprocess(64, (56, 56), (0.5,) * 3, (0.25,) * 3, "bicubic")
SQUEEZED = Preprocess((48, 64), (48, 64), (0.5,) * 3, (0.25,) * 3)
PADDED = Preprocess(32, (40, 40), (0.5,) * 3, (0.25,) * 3)


def test_a_photo_is_its_content_whoever_holds_it():
    assert Photo.of(RED) == Photo.of(bytes(RED))
    assert Photo.of(RED) != Photo.of(BLUE)
    assert len({Photo.of(RED), Photo.of(RED), Photo.of(BLUE)}) == 2
    pixels = np.zeros((2, 3, 3), np.uint8)
    assert Photo.of(pixels) == Photo.of(pixels.copy())
    assert Photo.of(pixels) != Photo.of(pixels.reshape(3, 2, 3))


def test_a_request_travels_without_the_photos_content():
    request = SearchRequest("pizza", image=Photo.of(RED * 100))
    travelled = pickle.dumps(request)
    assert len(travelled) < 1_000
    assert pickle.loads(travelled) == request
    assert pickle.loads(travelled).photo.content == b""
    assert len(repr(request)) < 300


@pytest.mark.parametrize("preprocess", [CUT, SQUEEZED, PADDED])
@pytest.mark.parametrize("size", [(300, 200), (64, 64), (63, 65), (10, 30), (997, 331), (64, 200)])
def test_an_encoder_sees_the_picture_as_if_it_came_at_full_size(preprocess, size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    small = Photo.of(pixels).picture(preprocess)
    assert preprocess.apply([small]).tolist() == preprocess.apply([pixels]).tolist()
    assert min(small.shape[:2]) == (64 if preprocess is CUT else 48 if preprocess is SQUEEZED else 32)


def test_a_file_is_read_upright_and_small():
    small = Photo.of(make_photo("red", (4_000, 3_000), "JPEG")).picture(CUT)
    assert small.shape == (64, 85, 3)
    assert small[0, 0].tolist() == pytest.approx([254, 0, 0], abs=2)


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_a_strip_takes_no_more_memory_than_other_pictures(size):
    tracemalloc.start()
    small = Photo.of(make_photo("red", size)).picture(CUT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sorted(small.shape[:2]) == [64, 256]
    assert peak < 16 << 20


def bomb() -> bytes:
    """A PNG of few bytes that says that it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<svg/>", "expected JPEG, PNG"),
        (RED[:60], "cut short"),
        (bomb(), "60,000 x 60,000 pixels"),
        (make_photo("red", (101, 100)), "more than 10,000"),
        (make_photo("red") + bytes(10_000), "more than 10,000 bytes"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(content, said):
    with pytest.raises(InvalidRequest, match=said) as refused:
        Photo.of(content).picture(CUT, PicturesConfig(max_bytes=10_000, max_pixels=10_000))
    assert (refused.value.code, refused.value.field) == ("invalid_image", "image")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \(4, 4, 4\)"),
        (np.zeros((4, 4, 3)), r"float64 \(4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \(0, 4, 3\)"),
        ("photo.jpg", "str"),
    ],
)
def test_what_is_neither_a_file_nor_pixels_is_refused(content, got):
    with pytest.raises(InvalidRequest, match=got) as refused:
        Photo.of(content)
    assert refused.value.code == "invalid_image"


def test_words_alone_cannot_see_a_photo():
    with pytest.raises(InvalidRequest) as refused:
        SearchRequest(mode="lexical", image=Photo.of(RED))
    assert (refused.value.code, refused.value.field) == ("invalid_mode", "mode")
    request = SearchRequest("pizza", mode="lexical", image=Photo.of(RED))
    assert request.photo is None
