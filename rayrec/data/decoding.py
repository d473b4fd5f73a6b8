"""Picture files that strangers chose, as pixels: within limits, and without what is not pixels.

>>> decode(b"<svg>", max_bytes=100, max_pixels=100)
Traceback (most recent call last):
rayrec.errors.BadPicture: begins with b'<svg>'; expected JPEG, PNG, WebP, GIF or BMP
"""

import contextlib
import io
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from rayrec.data.web import first_line, too_large
from rayrec.errors import BadPicture

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


def decode(data: bytes, *, max_bytes: int, max_pixels: int, side: int | None = None) -> np.ndarray:
    """A JPEG, PNG, WebP, GIF (its first frame) or BMP as uint8 (H, W, 3) RGB: upright, transparency on white.

    side: the caller is content with a picture whose shorter side has at least so many pixels, so JPEGs are decoded
    at 1/2, 1/4 or 1/8 and what is left is reduced by a whole factor. Raises BadPicture, nothing else.
    """
    if len(data) > max_bytes:
        raise too_large(max_bytes)
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
            raise BadPicture("damaged", f"is damaged ({first_line(error)}); save it anew") from error
        raise BadPicture("truncated", f"is cut short ({first_line(error)}); send the whole file") from error


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
