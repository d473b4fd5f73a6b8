"""An image tower for a text space: pictures learn to stand where their item's description stands.

The text vectors stay as they are, so a text search costs nothing and changes nothing, and an item without a
picture is where it was. The projection starts as the ridge regression from features to text vectors; then it and
the last layers of the backbone are trained, a photo against the texts of other items, and against their text and
picture together (Zhai et al., CVPR 2022: locked-image tuning, with text and image changing places).

>>> task = ImageTask(config, texts, pictures, photos, judges)      # doctest: +SKIP
>>> train(task, config.training)                                   # doctest: +SKIP
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from rayrec.config import FitImagesConfig
from rayrec.encoders import image_models
from rayrec.encoders.base import EncoderId
from rayrec.encoders.image_models import ImageModel, Tower
from rayrec.encoders.item import fuse
from rayrec.fitting.text import half_pays

Photos = list[tuple[str, int]]
"""(uri, row of the item that it shows)"""
Read = Callable[[str], np.ndarray]
"""uri -> uint8 (H, W, 3)"""

CANDIDATES = 2_048
PICTURES_A_STEP = 8
SMOOTHING = 0.05
_RIDGE = 1e-2
IMAGE_WEIGHTS = (0.25, 0.5, 1.0, 2.0)


class ImageTask:
    """One worker's part of a fit.

    texts: float32 (N, D), unit text vectors of the catalog; pictures: row -> uri of the item's own; photos: to
    learn from, and judges: to judge by; read: how a picture is read. Items with equal texts count as one.
    """

    def __init__(
        self,
        config: FitImagesConfig,
        texts: np.ndarray,
        pictures: dict[int, str],
        photos: Photos,
        judges: Photos,
        read: Read,
        *,
        rank: int = 0,
    ):
        self._config = config
        self._rank = rank
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model = ImageModel.read(config.backbone, config.weights)
        if config.side is not None:
            larger = config.side * model.preprocess.side // model.preprocess.crop[0]
            model = replace(model, preprocess=replace(model.preprocess, resize=larger, crop=(config.side, config.side)))
        self.model = model
        self._pictures, self._photos, self._judges = pictures, photos, judges
        self._read = read
        _, self._same = np.unique(texts.round(5), axis=0, return_inverse=True)
        self._texts = torch.from_numpy(texts).to(self._device)
        torch.manual_seed(config.training.seed)
        tower = Tower(model.load(), model.features, texts.shape[1], config.training.dropout)
        self.module: nn.Module = nn.ModuleDict({"tower": tower.to(memory_format=torch.channels_last)}).to(self._device)
        self._tower: Tower = tower.to(self._device)
        self._scale = nn.Parameter(torch.tensor(3.0, device=self._device))  # of the logits, as its logarithm
        self.module.register_parameter("scale", self._scale)
        self._freeze()
        self._start()
        self.found = np.empty(0, bool)
        """Of each judging photo, whether its item came first, at the last evaluation."""
        self.image_weight = 1.0

    def _freeze(self) -> None:
        """Only the last layers learn; the others keep their batch statistics too."""
        layers = [m for m in self._tower.backbone.modules() if not list(m.children()) and list(m.parameters())]
        first = round(len(layers) * (1 - self._config.trained_share))
        self._frozen = layers[:first]
        self._tower.backbone.requires_grad_(False)
        for layer in layers[first:]:
            layer.requires_grad_(True)

    def _start(self) -> None:
        """The projection by ridge regression from the photos' features to their items' text vectors."""
        features = self._apply(self._tower.backbone, self._learned()).double()
        rows = torch.tensor([row for _, row in self._learned()], device=self._device)
        targets = self._texts[rows].double()
        middle, goal = features.mean(0), targets.mean(0)
        x, y = features - middle, targets - goal
        penalty = _RIDGE * x.pow(2).sum() / x.shape[1] * torch.eye(x.shape[1], device=self._device)
        weight = torch.linalg.solve(x.T @ x + penalty, x.T @ y).T
        projection = self._tower.projection
        assert isinstance(projection, nn.Linear)
        with torch.no_grad():
            projection.weight.copy_(weight)
            projection.bias.copy_(goal - weight @ middle)

    def _learned(self) -> Photos:
        return self._photos or [(uri, row) for row, uri in sorted(self._pictures.items())]

    @torch.no_grad()
    def _apply(self, module: nn.Module, photos: Photos, size: int = 32) -> torch.Tensor:
        """float32 (len(photos), F) of a part of the tower, without gradients."""
        self.module.eval()
        found = []
        for first in range(0, len(photos), size):
            images = [self._read(uri) for uri, _ in photos[first : first + size]]
            pixels = torch.from_numpy(self.model.preprocess.apply(images)).to(self._device)
            with torch.autocast(self._device, torch.bfloat16, enabled=half_pays(self._device)):
                found.append(module(pixels.contiguous(memory_format=torch.channels_last)).float())
        return torch.cat(found)

    def groups(self, rate: float) -> list[dict[str, Any]]:
        own = [*self._tower.projection.parameters(), self._scale]
        last = [p for p in self._tower.backbone.parameters() if p.requires_grad]
        return [{"params": own, "lr": 3 * rate}, *([{"params": last, "lr": rate}] if last else [])]

    # -- a step -----------------------------------------------------------------------------------

    def loss(self, step: int) -> torch.Tensor:
        for layer in self._frozen:
            layer.eval()
        config = self._config
        rng = np.random.default_rng([config.training.seed, step, self._rank])
        learned = self._learned()
        batch = [learned[i] for i in rng.choice(len(learned), min(config.training.batch, len(learned)), replace=False)]
        shown = [row for _, row in batch]
        rows = self._candidates(shown, rng)
        pictured = [place for place, row in enumerate(rows) if row in self._pictures]
        pictured = sorted(rng.choice(pictured, min(PICTURES_A_STEP, len(pictured)), replace=False)) if pictured else []
        uris = [uri for uri, _ in batch] + [self._pictures[int(rows[place])] for place in pictured]
        vectors = self._encode(uris, step)
        photos, own = vectors[: len(batch)], vectors[len(batch) :]
        texts = self._texts[torch.from_numpy(rows)]
        place_of = {self._same[row]: place for place, row in enumerate(rows)}
        target = torch.tensor([place_of[self._same[row]] for row in shown], device=self._device)
        scale = self._scale.clamp(max=4.6).exp()

        def cross(queries: torch.Tensor, items: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(scale * (queries @ items.T), wanted, label_smoothing=SMOOTHING)

        loss = cross(photos, texts, target)
        if pictured:
            places = torch.tensor(pictured, device=self._device)
            both = texts.index_copy(0, places, F.normalize(texts[places] + own, dim=-1))
            loss = loss + cross(photos, both, target) + 0.5 * cross(own, texts, places)
        return loss

    def _candidates(self, shown: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """Rows of distinct texts: those that are shown, and others up to CANDIDATES."""
        others = rng.permutation(len(self._texts))[:CANDIDATES]
        rows = np.concatenate([np.array(shown, np.int64), others])
        _, first = np.unique(self._same[rows], return_index=True)
        return rows[np.sort(first)]

    def _encode(self, uris: Sequence[str], step: int) -> torch.Tensor:
        """Augmented pictures -> unit (B, D) with gradients."""
        from torchvision.transforms import v2

        crop = self.model.preprocess.crop
        change = v2.Compose(
            [
                v2.RandomResizedCrop(crop, scale=(0.35, 1), ratio=(0.8, 1.25), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.3, 0.3, 0.2, 0.02),
                v2.RandomErasing(0.25),
            ]
        )
        torch.manual_seed(self._config.training.seed * 1_000_003 + 31 * step + self._rank)
        images = [change(torch.from_numpy(self._read(uri)).permute(2, 0, 1)).permute(1, 2, 0).numpy() for uri in uris]
        pixels = torch.from_numpy(self.model.preprocess.normalised(np.stack(images))).to(self._device)
        with torch.autocast(self._device, torch.bfloat16, enabled=half_pays(self._device)):
            return self._tower(pixels.contiguous(memory_format=torch.channels_last)).float()

    # -- judging ----------------------------------------------------------------------------------

    def vectors(self, photos: Photos) -> np.ndarray:
        """float32 (len(photos), D)."""
        return self._apply(self._tower, photos).cpu().numpy()

    def items(self, image_weight: float) -> np.ndarray:
        """float32 (N, D): text and picture, with what the tower makes of the pictures now."""
        return fuse(self._texts.cpu().numpy(), self._images(), image_weight)

    def _images(self) -> np.ndarray:
        """float32 (N, D) of the items' own pictures; zeros where there is none."""
        own = [(uri, row) for row, uri in sorted(self._pictures.items())]
        images = np.zeros((len(self._texts), self._texts.shape[1]), np.float32)
        if own:
            images[[row for _, row in own]] = self.vectors(own)
        return images

    def evaluate(self) -> float:
        """Recall@1 of the judging photos over all items; the weight of the picture is the best on them."""
        photos = self.vectors(self._judges)
        shown = self._same[[row for _, row in self._judges]]
        texts, images = self._texts.cpu().numpy(), self._images()
        scores = {}
        for weight in IMAGE_WEIGHTS:
            nearest = np.argmax(photos @ fuse(texts, images, weight).T, axis=1)
            scores[weight] = self._same[nearest] == shown
        self.image_weight = max(scores, key=lambda weight: float(scores[weight].mean()))
        self.found = scores[self.image_weight]
        return float(self.found.mean())

    def save(self, directory: Path, space: str) -> EncoderId:
        """Write the tower as an image encoder of a text space; its id."""
        import hashlib

        digest = hashlib.blake2b(digest_size=5)
        for value in self._tower.state_dict().values():
            digest.update(value.cpu().contiguous().numpy().tobytes())
        id = EncoderId(space, f"photos-{digest.hexdigest()}-fp32")
        image_models.write(self._tower, self.model, id, directory)
        return id
