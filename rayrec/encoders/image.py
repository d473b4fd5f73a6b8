"""Pictures to vectors at run time: preprocessing, and the onnxruntime session. Needs no torch.

An image encoder is a directory of `model.onnx`, `image.json` and `tower.safetensors`, made by `image_models`.

>>> encoder = OnnxImageEncoder("encoders/photos-1a2b3c")     # doctest: +SKIP
>>> encoder.encode([picture]).shape                          # doctest: +SKIP
(1, 384)
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rayrec.encoders.base import EncoderId, onnx_session
from rayrec.errors import IncompatibleArtifact

VARIANT = "onnx-fp32"
_LONGEST = 8  # times the shorter side
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers


class ImageEncoder(Protocol):
    """A loaded image model."""

    id: EncoderId
    dim: int
    preprocess: "Preprocess"

    def encode(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (B, D), each row L2-normalised. pictures: uint8 (H, W, 3) RGB, of any sizes."""
        ...


@dataclass(frozen=True)
class Preprocess:
    """What a model's weights want done to a picture, as their own transforms say.

    resize: pixels of the shorter side, or (height, width) regardless of shape; crop: the centre (height, width)
    that is kept; mean, std: per channel, of values in 0..1.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"

    @classmethod
    def of(cls, said: dict[str, Any]) -> "Preprocess":
        """From JSON."""
        resize = said["resize"]
        return cls(
            resize if isinstance(resize, int) else tuple(resize),
            tuple(said["crop"]),
            tuple(said["mean"]),
            tuple(said["std"]),
            said["interpolation"],
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def side(self) -> int:
        """The shorter side that a picture is worth decoding at."""
        return self.resize if isinstance(self.resize, int) else max(self.resize)

    def pixels(self, picture: np.ndarray) -> np.ndarray:
        """uint8 (crop height, crop width, 3): resized and cut, not yet normalised."""
        from PIL import Image

        if isinstance(self.resize, int):  # of a strip only the middle is kept, and the whole, enlarged, may be huge
            longest = min(picture.shape[:2]) * max(_LONGEST, -(-max(self.crop) // self.resize))
            top, left = (max(side - longest, 0) // 2 for side in picture.shape[:2])
            picture = picture[top : top + longest, left : left + longest]
        image = Image.fromarray(picture)
        width, height = image.size
        if isinstance(self.resize, int):
            short = min(width, height)
            tall, wide = self.resize * height // short, self.resize * width // short  # as torchvision rounds
        else:
            tall, wide = self.resize
        if (wide, tall) != (width, height):
            image = image.resize((wide, tall), Image.Resampling(RESAMPLING[self.interpolation]))
        crop_tall, crop_wide = self.crop
        pad_tall, pad_wide = max(crop_tall - tall, 0), max(crop_wide - wide, 0)
        values = np.asarray(image)
        if pad_tall or pad_wide:
            edges = ((pad_tall // 2, pad_tall - pad_tall // 2), (pad_wide // 2, pad_wide - pad_wide // 2), (0, 0))
            values = np.pad(values, edges)
        top, left = round((values.shape[0] - crop_tall) / 2), round((values.shape[1] - crop_wide) / 2)
        return values[top : top + crop_tall, left : left + crop_wide]

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """float32 (B, 3, H, W) of uint8 (B, H, W, 3)."""
        scale = np.float32(1 / 255) / np.array(self.std, np.float32)
        shift = np.array(self.mean, np.float32) / np.array(self.std, np.float32)
        return np.ascontiguousarray((pixels * scale - shift).transpose(0, 3, 1, 2))

    def apply(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (B, 3, H, W)."""
        return self.normalised(np.stack([self.pixels(picture) for picture in pictures]))


class OnnxImageEncoder:
    """An exported image model, loaded. `threads`: of this one session; many workers want 1 each."""

    def __init__(self, directory: str | Path, *, threads: int = 1, batch_size: int = 8):
        directory = Path(directory)
        try:
            said = json.loads((directory / "image.json").read_text())
            self.id = EncoderId.parse(said["id"])
            self.dim = int(said["dim"])
            self.preprocess = Preprocess.of(said["preprocess"])
            self._session = onnx_session(directory / "model.onnx", threads)
        except Exception as error:  # onnxruntime raises its own undeclared kinds
            raise IncompatibleArtifact(f"{directory}: not a usable image encoder ({error})") from error
        self._batch_size = batch_size

    def encode(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        out = np.empty((len(pictures), self.dim), np.float32)
        for first in range(0, len(pictures), self._batch_size):
            batch = slice(first, first + self._batch_size)
            out[batch] = self._session.run(None, {"pixels": self.preprocess.apply(pictures[batch])})[0]
        return out
