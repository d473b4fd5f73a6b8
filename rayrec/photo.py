"""A photo to search with: known by its digest, and read into what an image encoder wants to see of it.

>>> Photo.of(b"the bytes of photo.jpg")
Photo(digest='7818f0b5ca484482d06804360c6eec1c')
"""

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from rayrec.config import PicturesConfig
from rayrec.data.decoding import decode
from rayrec.encoders.image import Preprocess
from rayrec.errors import BadPicture, InvalidRequest

LIMITS = PicturesConfig()
_LONGEST = 4  # times the shorter side


@dataclass(frozen=True)
class Photo:
    """content: a picture file's bytes, or pixels uint8 (H, W, 3) RGB.

    Compared, shown and pickled by its digest alone: the content stays in the process that it came to, where the
    encoder's picture is made of it.
    """

    digest: str
    content: bytes | np.ndarray = field(default=b"", repr=False, compare=False)

    @classmethod
    def of(cls, content: bytes | np.ndarray) -> "Photo":
        """Raises InvalidRequest for anything else."""
        if isinstance(content, bytes):
            return cls(hashlib.blake2b(content, digest_size=16).hexdigest(), content)
        pixels = isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.ndim == 3
        if not (pixels and content.shape[2] == 3 and content.size):
            got = f"{content.dtype} {content.shape}" if isinstance(content, np.ndarray) else type(content).__name__
            raise invalid_image(f"expected a picture file's bytes, or uint8 (height, width, 3) in RGB; got {got}")
        shape = str(content.shape).encode()
        return cls(hashlib.blake2b(shape + content.tobytes(), digest_size=16).hexdigest(), content)

    def __reduce__(self) -> tuple[type["Photo"], tuple[str]]:
        return type(self), (self.digest,)

    def picture(self, preprocess: Preprocess, limits: PicturesConfig = LIMITS) -> np.ndarray:
        """uint8 (H, W, 3) for an encoder that reads pictures like `preprocess`. Raises InvalidRequest."""
        if isinstance(self.content, np.ndarray):
            return _resized(self.content, preprocess)
        try:
            pixels = decode(
                self.content, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels, side=preprocess.side
            )
        except BadPicture as error:
            raise invalid_image(str(error)) from error
        return _resized(pixels, preprocess)


def _resized(picture: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """As large as the encoder's own preprocessing makes it before it cuts, so that it finds nothing left to resize.

    Of a strip only the middle is kept, which is all that would be seen of it: one of 1 x 60,000 pixels whose shorter
    side is made 256 has four billion.
    """
    if not isinstance(preprocess.resize, int):
        return replace(preprocess, crop=preprocess.resize).pixels(picture)
    short = min(picture.shape[:2])
    top, left = (max(side - _LONGEST * short, 0) // 2 for side in picture.shape[:2])
    picture = picture[top : top + _LONGEST * short, left : left + _LONGEST * short]
    height, width = (preprocess.resize * side // short for side in picture.shape[:2])
    return replace(preprocess, crop=(height, width)).pixels(picture)


def invalid_image(message: str) -> InvalidRequest:
    return InvalidRequest("invalid_image", f"image: {message}", field="image")


def no_pictures() -> InvalidRequest:
    return InvalidRequest(
        "no_pictures",
        "image: this index holds no pictures",
        field="image",
        hint="fit an image encoder with 'rayrec fit images' and index with images",
    )
