"""Photos on their way in: base64 to a file, a file to what an image encoder sees; never in the event loop.

One thread a replica decodes: a picture at the limit of pixels may take half a GiB meanwhile.
"""

import asyncio
import base64
import binascii
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from rayrec.config import PicturesConfig, ServeConfig
from rayrec.encoders.image import Preprocess
from rayrec.photo import Photo, invalid_image


def from_text(text: str) -> Photo:
    """A picture file in base64, bare or as a data: URL. Raises InvalidRequest."""
    head, comma, rest = text.partition(",")
    if comma and not (head.startswith("data:") and head.endswith(";base64")):
        raise invalid_image("expected base64, or data:image/...;base64,...")
    try:
        content = base64.b64decode("".join((rest if comma else text).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_image("not base64") from error
    if not content:
        raise invalid_image("an empty file")
    return Photo.of(content)


class Decoder:
    """The thread, and the limits of a picture that comes over HTTP. Lives in one event loop."""

    def __init__(self, config: ServeConfig):
        self._limits = PicturesConfig(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rayrec-photos")

    async def picture(self, photo: Photo, preprocess: Preprocess) -> np.ndarray:
        """uint8 (H, W, 3). Raises InvalidRequest."""
        work = partial(photo.picture, preprocess, self._limits)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
