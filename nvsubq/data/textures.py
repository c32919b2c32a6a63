"""Is this patch of a texture turned by 90 degrees? A task that only a sense of direction solves."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nvsubq.data.base import DataModule
from nvsubq.data.baselines import pixel_classifiers
from nvsubq.data.errors import DataError
from nvsubq.data.images import Images, decode_image, image_shape
from nvsubq.data.sample import Sample

TEXTURES = ("brick", "grass", "gravel")
STRIPS, STRIP = 8, 64
VAL_STRIPS, TEST_STRIPS = 1, 2


class TextureRotation(DataModule):
    """Patches of scikit-image's brick, grass and gravel (512 x 512), as they are or turned by 90 degrees.

    Each patch is there both ways, so brightness and contrast say nothing. Each texture is cut into 8 vertical
    strips, which are dealt to training (5), validation (1) and test (2) by `split_seed`; no patch crosses a
    border, so no pixel is in two splits. Gravel has hardly a direction: 1.0 is out of reach.

    Args:
        batch_size, eval_batch_size, num_workers, seed, split_seed: as `DataModule`.
        patch: side of a patch, in pixels; at most 64.
        stride: from one patch to the next.

    Example:
        >>> data = TextureRotation(patch=32, stride=32)
        >>> data.describe()["sizes"]
        {'train': 960, 'val': 192, 'test': 384}
    """

    name = "texture rotation"
    provenance = "Patches of scikit-image's brick, grass and gravel, own split by region."
    spatial_dims, in_channels, num_classes = 2, 1, 2
    mean, std = 0.5, 0.25

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
        patch: int = 32,
        stride: int = 16,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            split_seed=split_seed,
        )
        if isinstance(patch, bool) or not isinstance(patch, int) or not 4 <= patch <= STRIP:
            raise ValueError(f"`patch` (={patch!r}) must be an integer from 4 to {STRIP}.")
        if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
            raise ValueError(f"`stride` (={stride!r}) must be an integer of at least 1.")
        self.patch, self.stride = patch, stride
        self.spatial_size = (patch, patch)
        self.class_names = ["upright", "turned"]

    def build(self) -> dict[str, Dataset]:
        generator = np.random.default_rng(self.split_seed)
        pixels: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
        for texture in _textures():
            strips = generator.permutation(STRIPS)
            first, second = TEST_STRIPS, TEST_STRIPS + VAL_STRIPS
            for split, dealt in (
                ("test", strips[:first]),
                ("val", strips[first:second]),
                ("train", strips[second:]),
            ):
                for number in sorted(dealt):
                    pixels[split] += self._patches(texture[:, number * STRIP : (number + 1) * STRIP])
        return {split: self._images(patches) for split, patches in pixels.items()}

    def _patches(self, strip: np.ndarray) -> list[np.ndarray]:
        height, width = strip.shape
        return [
            strip[top : top + self.patch, left : left + self.patch]
            for top in range(0, height - self.patch + 1, self.stride)
            for left in range(0, width - self.patch + 1, self.stride)
        ]

    def _images(self, patches: list[np.ndarray]) -> Images:
        upright = np.stack(patches)
        turned = np.rot90(upright, axes=(1, 2))
        pixels = np.stack([upright, turned], 1).reshape(-1, 1, self.patch, self.patch)
        return Images(
            torch.from_numpy(pixels),
            torch.tensor([0, 1]).repeat(len(patches)),
            size=(self.patch, self.patch),
            mean=[self.mean],
            std=[self.std],
            seed=self.seed,
        )

    def read_input(self, path: str | Path) -> Sample:
        """Any image file, made grey and resized to the size of a patch."""
        path = Path(path)
        pixels = decode_image(path, (self.patch, self.patch), 1)
        return Sample((pixels.float() / 255 - self.mean) / self.std, path, image_shape(path))

    def display(self, image: Tensor) -> Tensor:
        """Pixels in [0, 1]."""
        return (image * self.std + self.mean).clamp(0, 1)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Accuracy of 3 nearest neighbours and of a support vector machine, on pixels, on the test split."""
        train, test = self.dataset("train"), self.dataset("test")
        return pixel_classifiers(train.pixels, train.labels, test.pixels, test.labels)  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def _textures() -> tuple[np.ndarray, ...]:
    """The textures `[512, 512]` uint8, from the installed package's files; scikit-image is not imported."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise DataError(
            "The textures come with scikit-image, which is not installed: pip install 'nvsubq[train]'."
        )
    folder = Path(found.origin).parent / "data"
    return tuple(decode_image(folder / f"{name}.png", None, 1)[0].numpy() for name in TEXTURES)
