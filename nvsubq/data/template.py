"""The MNI152 template with its tissue labels, its slabs, and degraded parts of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nvsubq.data.augment import random_map, resampled
from nvsubq.data.degrade import degrade
from nvsubq.data.errors import DataError
from nvsubq.data.sampling import Key, generator
from nvsubq.data.volumes import Volume

GAP_MM = 8
LABELS = ("background", "other", "grey", "white")


@lru_cache(maxsize=2)
def load_template(resolution: int) -> Volume:
    """T1 `[X, Y, Z]` float32 and labels uint8 (numbers of `LABELS`), shared read-only.

    Grey and white matter are where their map exceeds 0.5 and the other map (ties are grey), background where
    T1 is below 0.05 of its maximum. T1 is divided by the maximum of the training slab, of which `noise` is
    a share: the maximum of the whole is a few bright voxels between the slabs.

    Raises:
        DataError: nilearn is not installed.
    """
    try:
        from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
    except ImportError as error:
        raise DataError(
            "MNI152 comes with nilearn, which is not installed: pip install 'nvsubq[train]'."
        ) from error

    loaders = (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    t1, grey, white = (np.asarray(load(resolution=resolution).dataobj, dtype=np.float32) for load in loaders)
    labels = (t1 >= 0.05 * t1.max()).astype(np.uint8)
    labels[(grey > 0.5) & (grey >= white)] = 2
    labels[(white > 0.5) & (white > grey)] = 3
    t1 = t1 / t1[:, : _train_end(t1.shape[1])].max()
    t1.setflags(write=False)
    labels.setflags(write=False)
    return t1, labels


def _train_end(length: int) -> int:
    return math.ceil(0.6 * length)


@dataclass(frozen=True)
class DegradedTemplate:
    """Parts of the template as a scanner would show them; a few numbers, so it travels to workers cheaply.

    Args:
        resolution: voxel size in mm, 2 or 4.
        bias: strength of the bias field.
        noise: standard deviation of the noise, as a share of the maximum.
        seed: of the degradation of training crops.
        split_seed: of the degradation of whole slabs.
        mean, std: that images are normalised with.
        rotation, scale: of training crops, as `random_map`.
    """

    resolution: int
    bias: float
    noise: float
    seed: int
    split_seed: int
    mean: float
    std: float
    rotation: float = 0.0
    scale: float = 0.0

    def slab(self, split: str) -> tuple[slice, slice, slice]:
        """The part of the template that belongs to a split: train y < 60 %, test y > 74 %, val between."""
        nx, ny, nz = load_template(self.resolution)[0].shape
        gap = GAP_MM // self.resolution
        first, last = _train_end(ny), math.floor(0.74 * ny) + 1
        y = {"train": slice(0, first), "val": slice(first + gap, last - gap), "test": slice(last, ny)}[split]
        return slice(0, nx), y, slice(0, nz)

    def whole(self, split: str, index: int) -> Volume:
        """The degraded slab number `index` of a split: intensities `[X, Y, Z]` and labels."""
        return self._part(self.slab(split), "slab", self.split_seed, split, index)

    def normalised(self, split: str, index: int) -> Volume:
        """`whole`, normalised, `[1, X, Y, Z]`, with int64 labels."""
        return self._for_model(self.whole(split, index))

    def val(self, index: int) -> Volume:
        """Validation volume `index`."""
        return self.normalised("val", index)

    def test(self, index: int) -> Volume:
        """Test volume `index`."""
        return self.normalised("test", index)

    def crop(self, which: int, place: tuple[slice, ...], key: Key) -> Volume:
        """A training crop with a degradation of its own, normalised (the training slab begins at voxel 0).

        A crop that is turned or scaled keeps its centre. It is taken from the clean slab, mirrored at its
        edges, and degraded after: interpolated noise would be smoother than a scanner's.
        """
        clean = None
        if self.rotation or self.scale:
            shown = random_map(self.rotation, self.scale, seed=self.seed, key=key)
            clean = self._resampled(place, shown)
        return self._for_model(self._part(place, "crop", self.seed, *key, clean=clean))

    def normalise(self, image: np.ndarray) -> np.ndarray:
        """`[X, Y, Z]` intensities as a model sees them, `[1, X, Y, Z]`."""
        return ((image - np.float32(self.mean)) / np.float32(self.std))[None]

    def _resampled(self, place: tuple[slice, ...], shown: np.ndarray) -> Volume:
        """The clean training slab seen through the map `shown` about the middle of `place`."""
        t1, labels = (part[self.slab("train")] for part in load_template(self.resolution))
        middle = [(part.start + part.stop - 1) / 2 for part in place]
        offsets = np.meshgrid(
            *(np.arange(part.start, part.stop) - m for part, m in zip(place, middle, strict=True)),
            indexing="ij",
        )
        cells = np.einsum("ij,j...->i...", shown, np.stack(offsets)) + np.reshape(middle, (3, 1, 1, 1))
        return resampled(t1, labels, cells)

    def _part(self, region: tuple[slice, ...], *key: int | str, clean: Volume | None = None) -> Volume:
        """`region` of the template, or `clean` in its stead, degraded as what lies there."""
        whole = load_template(self.resolution)
        t1, labels = clean or (whole[0][region], whole[1][region])
        rng = generator("degrade", *key)
        field = {"shape": whole[0].shape, "region": region}
        return degrade(t1, rng, bias=self.bias, noise=self.noise, **field), labels

    def _for_model(self, volume: Volume) -> Volume:
        return self.normalise(volume[0]), volume[1].astype(np.int64)
