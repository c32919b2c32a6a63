"""Tiles: where they lie, how they blend, and what they refuse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from nvsubq.training.tiled import mirrored, tile_starts, tile_weights, tiled


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(("size", "tile"), [(1, 1), (7, 3), (8, 8), (31, 8), (64, 32), (97, 32)])
def test_starts_cover_the_axis_with_the_overlap(size, tile, overlap):
    starts = tile_starts(size, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == size - tile
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert all(0 < gap <= max(1, tile * (1 - overlap)) + 1e-9 for gap in gaps)


def test_weights_are_positive_symmetric_and_highest_in_the_middle():
    weights = tile_weights((4, 5), torch.zeros(()))
    assert weights.shape == (4, 5)
    assert (weights > 0).all()
    torch.testing.assert_close(weights, weights.flip(0, 1))
    assert weights.max() == 1


@pytest.mark.parametrize("shape", [(19,), (20, 13), (5, 20, 9)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_pointwise_model_is_unchanged(shape, batch_size):
    images = torch.randn(2, 3, *shape, dtype=torch.float64)
    model = lambda x: torch.stack([x.sum(1), x[:, 0] ** 2], 1)  # noqa: E731
    out = tiled(model, images, (8,) * len(shape), overlap=0.25, batch_size=batch_size)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, model(images))


def test_one_tile_is_the_model_itself():
    model, images = nn.Conv2d(1, 2, 3, padding=1), torch.randn(1, 1, 6, 7)
    assert torch.equal(tiled(model, images, (32, 32)), model(images))


def test_convolution_differs_at_tile_borders_alone():
    torch.manual_seed(0)
    model, images = nn.Conv1d(1, 1, 3, padding=1), torch.randn(1, 1, 16)
    difference = (tiled(model, images, (8,), overlap=0.0) - model(images)).abs()[0, 0]
    assert difference[[0, 3, 12, 15]].max() < 1e-6
    assert difference[7:9].max() > 1e-3


def test_refusals():
    images = torch.zeros(1, 1, 8, 8)
    with pytest.raises(
        ValueError, match=r"`tile` \(=\(4,\)\) must have one positive size for each axis of \(8, 8\)"
    ):
        tiled(nn.Identity(), images, (4,))
    with pytest.raises(ValueError, match=r"`overlap` \(=1\.0\) must be at least 0 and below 1"):
        tiled(nn.Identity(), images, (4, 4), overlap=1.0)
    with pytest.raises(ValueError, match=r"`batch_size` \(=0\) must be at least 1"):
        tiled(nn.Identity(), images, (4, 4), batch_size=0)


@pytest.mark.filterwarnings("ignore")  # whatever MONAI's imports warn of
def test_windows_by_monai() -> None:
    from nvsubq.training import SegmentationTask
    from nvsubq.training.tiled import monai_windows

    volume = torch.randn(2, 2, 9, 20, 7)
    found = monai_windows(lambda x: 3 * x, volume, (8, 8, 8), batch_size=3)
    torch.testing.assert_close(found, 3 * volume)
    seen = []
    monai_windows(
        lambda x: seen.append((x.shape[2:], x.min())) or x, volume.abs() + 1, (8, 24, 24), batch_size=3
    )
    assert {tuple(shape) for shape, _ in seen} == {(8, 24, 24)}
    assert min(least for _, least in seen) >= 1  # thin axes are mirrored, not filled with zeros
    task = SegmentationTask(
        torch.nn.Conv2d(1, 2, 3, padding=1), class_names=["sky", "land"], tile=(8, 8), windows="monai"
    )
    image = torch.randn(1, 1, 20, 13)
    assert task.logits(image).shape == (1, 2, 20, 13)
    with pytest.raises(ValueError, match=r"`windows` \(='others'\) must be one of 'nvsubq', 'monai'"):
        SegmentationTask(torch.nn.Identity(), class_names=["sky", "land"], windows="others")


@pytest.mark.parametrize("size", [3, 4, 5, 9, 20])
def test_mirrored_is_the_symmetric_padding_of_numpy(size: int) -> None:
    image = torch.randn(1, 2, 3, 5)
    before, short = (size - 3) // 2, max(size - 3, 0)
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), (before, short - before), (0, 0)], mode="symmetric")
    assert torch.equal(mirrored(image, (size, 2)), torch.from_numpy(padded))
