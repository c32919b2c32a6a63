"""Texture rotation: what is in a patch, and that no pixel is in two splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvsubq.data import DataError, TextureRotation
from nvsubq.data import textures as module


def test_each_patch_is_there_both_ways() -> None:
    data = TextureRotation(patch=16, stride=48)
    images = torch.stack([data.dataset("test")[i][0] for i in range(8)])
    labels = [int(data.dataset("test")[i][1]) for i in range(8)]
    assert labels == [0, 1] * 4
    torch.testing.assert_close(images[1::2], torch.rot90(images[0::2], dims=(2, 3)))
    assert not torch.allclose(images[1::2], images[0::2])
    assert data.class_names == ["upright", "turned"]


def test_regions_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """With pixels that say where they lie, no place is in two splits; another seed deals others."""
    columns = np.tile((np.arange(512) // 64).astype(np.uint8), (512, 1))
    monkeypatch.setattr(module, "_textures", lambda: (columns,))
    seen = {}
    for seed in (0, 1):
        data = TextureRotation(split_seed=seed)
        pixels = {
            split: set(data.dataset(split).pixels.unique().tolist()) for split in ("train", "val", "test")
        }
        assert [len(pixels[split]) for split in ("train", "val", "test")] == [5, 1, 2]
        assert set.union(*pixels.values()) == set(range(8))
        seen[seed] = pixels["test"]
    assert seen[0] != seen[1]


def test_loads_the_textures_and_shows_them() -> None:
    data = TextureRotation(stride=64)
    image, label = data.dataset("train")[(0, 0)]
    assert image.shape == (1, 32, 32)
    assert 0 <= float(data.display(image).min()) < float(data.display(image).max()) <= 1
    assert set(data.baselines()) == {"3 nearest neighbours", "support vector machine"}
    assert data.describe()["spatial_size"] == [32, 32]
    assert int(label) == 0


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (3, 65, 8.0):
        with pytest.raises(ValueError, match=rf"`patch` \(={value}\) must be an integer from 4 to 64"):
            TextureRotation(patch=value)
    with pytest.raises(ValueError, match=r"`stride` \(=0\) must be an integer of at least 1"):
        TextureRotation(stride=0)
    module._textures.cache_clear()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="The textures come with scikit-image, which is not installed"):
        TextureRotation().setup()
