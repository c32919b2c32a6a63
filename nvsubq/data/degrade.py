"""What scanners do to an image: a smooth bias field and noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

KNOTS = 6
"""Knots of the bias field along an axis: 40 mm apart in a head."""


def bias_field(
    rng: np.random.Generator, shape: Sequence[int], region: Sequence[slice] | None = None
) -> np.ndarray:
    """A smooth random field `f` with `|f| <= 1`, over the part `region` of a lattice of `shape`.

    Uniform values in [-1, 1] on a coarse lattice of `KNOTS` knots an axis; a cell gets their average under a
    Gaussian of one knot's width. The field belongs to the whole lattice: a crop sees its own part of it, as
    smooth as in the whole.

    Args:
        rng: source of the knots; takes the same numbers for every region.
        shape: sizes of the whole lattice.
        region: the part to evaluate; all of it by default.

    Example:
        >>> whole = bias_field(np.random.default_rng(0), (20, 30))
        >>> part = bias_field(np.random.default_rng(0), (20, 30), (slice(3, 9), slice(30)))
        >>> bool(abs(whole).max() <= 1), bool(np.allclose(part, whole[3:9]))
        (True, True)
    """
    field = rng.uniform(-1, 1, (KNOTS,) * len(shape))
    region = region or [slice(n) for n in shape]
    for n, part in zip(shape, region, strict=True):
        distance = np.arange(n)[part, None] * ((KNOTS - 1) / max(n - 1, 1)) - np.arange(KNOTS)
        weights = np.exp(-(distance**2) / 2)
        weights /= weights.sum(axis=1, keepdims=True)
        # Contracts the first axis and appends the new one. einsum without `optimize` has its own loops: the
        # rounding of a matrix product may depend on the number of threads.
        field = np.einsum("k...,pk->...p", field, weights)
    return field.astype(np.float32)


def degrade(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    bias: float,
    noise: float,
    shape: Sequence[int] | None = None,
    region: Sequence[slice] | None = None,
) -> np.ndarray:
    """`image * exp(bias * f) + noise * n`, with `f` of `bias_field` and `n` standard normal.

    Args:
        image: `[*spatial]` intensities; `noise` is a share of their maximum if that is 1.
        rng: source of both.
        bias: strength of the field; 0 leaves it out.
        noise: standard deviation; 0 leaves it out.
        shape, region: of the lattice that the field spans, and where in it `image` lies; without them the
            field spans `image`.

    Returns:
        float32, the shape of `image`.

    Example:
        >>> degrade(np.ones((8, 8)), np.random.default_rng(0), bias=0.4, noise=0.0).shape
        (8, 8)
    """
    field = bias_field(rng, shape or image.shape, region)
    out = image.astype(np.float32) * np.exp(np.float32(bias) * field)
    return out + np.float32(noise) * rng.standard_normal(out.shape, dtype=np.float32)
