"""Dense prediction of an image or a volume of any size by overlapping tiles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def tile_starts(size: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along one axis: evenly spread, the last one ending at the far edge.

    Example:
        >>> tile_starts(10, 4, 0.5), tile_starts(10, 4, 0.0), tile_starts(3, 4, 0.5)
        ([0, 2, 4, 6], [0, 3, 6], [0])
    """
    if tile >= size:
        return [0]
    stride = max(1, int(tile * (1.0 - overlap)))
    count = -(-(size - tile) // stride) + 1
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def tile_weights(shape: Sequence[int], like: Tensor) -> Tensor:
    """Weights `[*shape]` of a tile's cells: highest in the middle, never 0, so that no seams are seen."""
    weights = like.new_ones(())
    for size in shape:
        near = torch.arange(1, size + 1, device=like.device, dtype=like.dtype)
        weights = weights[..., None] * torch.minimum(near, near.flip(0)) / ((size + 1) // 2)
    return weights


def tiled(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    tile: Sequence[int],
    *,
    overlap: float = 0.25,
    batch_size: int = 4,
) -> Tensor:
    """Runs a dense model on overlapping tiles and blends its logits.

    Args:
        model: maps `[B, C, *tile]` to `[B, K, *tile]`.
        images: `[B, C, *spatial]`, any size; an axis no longer than the tile's is taken whole.
        tile: the spatial size that the model was trained on.
        overlap: fraction of a tile that neighbours share, at least; in [0, 1).
        batch_size: tiles that go through the model at once.

    Returns:
        Logits `[B, K, *spatial]`, fp32 (fp64 for fp64 logits).

    Raises:
        ValueError: `tile` has another rank than the images, or `overlap` or `batch_size` is out of range.

    Example:
        >>> volume = torch.randn(1, 2, 9, 20, 7)
        >>> torch.allclose(tiled(lambda x: 3 * x, volume, (8, 8, 8)), 3 * volume, atol=1e-5)
        True
    """
    spatial = images.shape[2:]
    if len(tile) != len(spatial) or any(t < 1 for t in tile):
        raise ValueError(
            f"`tile` (={tuple(tile)}) must have one positive size for each axis of {tuple(spatial)}."
        )
    if not 0.0 <= overlap < 1.0:
        raise ValueError(f"`overlap` (={overlap}) must be at least 0 and below 1.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` (={batch_size}) must be at least 1.")
    tile = tuple(min(t, s) for t, s in zip(tile, spatial, strict=True))
    if tile == tuple(spatial) and len(images) <= batch_size:
        logits = model(images)
        return logits if logits.dtype == torch.float64 else logits.float()
    starts = [tile_starts(s, t, overlap) for s, t in zip(spatial, tile, strict=True)]
    places = list(itertools.product(range(len(images)), *starts))
    total, norm, weight = (images.new_empty(0) for _ in range(3))
    for first in range(0, len(places), batch_size):
        chosen = places[first : first + batch_size]
        windows = [tuple(slice(a, a + t) for a, t in zip(place[1:], tile, strict=True)) for place in chosen]
        crops = [
            images[place[0]][(slice(None), *window)] for place, window in zip(chosen, windows, strict=True)
        ]
        logits = model(torch.stack(crops))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if first == 0:  # the model decides how many classes there are
            total = logits.new_zeros(len(images), logits.shape[1], *spatial)
            norm = logits.new_zeros(len(images), *spatial)
            weight = tile_weights(tile, logits)
        for place, window, answer in zip(chosen, windows, logits, strict=True):
            total[place[0]][(slice(None), *window)] += answer * weight
            norm[place[0]][window] += weight
    return total / norm[:, None]


def monai_windows(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    tile: Sequence[int],
    *,
    overlap: float = 0.25,
    batch_size: int = 4,
) -> Tensor:
    """The same by MONAI's `sliding_window_inference`, weighted by a Gaussian, for results beside MONAI's.

    An axis shorter than the tile's is mirrored up to its size, not taken as it is. MONAI itself would pad it
    with zeros, and a network that normalises over the tile has never seen a tile that is mostly empty.
    """
    from monai.inferers import sliding_window_inference

    spatial = images.shape[2:]
    starts = [max(t - s, 0) // 2 for t, s in zip(tile, spatial, strict=True)]
    padded = mirrored(images, tile)
    found = sliding_window_inference(padded, tuple(tile), batch_size, model, overlap=overlap, mode="gaussian")
    assert isinstance(found, Tensor)
    for axis, (start, size) in enumerate(zip(starts, spatial, strict=True), 2):
        found = found.narrow(axis, start, size)
    return found if found.dtype == torch.float64 else found.float()


def mirrored(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images `[B, C, *spatial]` whose axes are at least `size`: mirrored at both edges, as often as it takes.

    Example:
        >>> mirrored(torch.arange(3.0)[None, None], (9,))[0, 0].tolist()
        [2.0, 1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 1.0, 0.0]
    """
    for axis, wanted in enumerate(size, 2):
        length = images.shape[axis]
        if length < wanted:
            cells = torch.arange(wanted, device=images.device) - (wanted - length) // 2
            cells = cells % (2 * length)
            images = images.index_select(axis, torch.minimum(cells, 2 * length - 1 - cells))
    return images
