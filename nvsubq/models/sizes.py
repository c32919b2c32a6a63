"""Sizes and mixer of the presets, as `configs/model/{tiny,small,base}_{1,2,3}d.yaml` hold them too."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from nvsubq.cores import Mamba
from nvsubq.nd import NDMixer

__all__ = ["SIZES", "Size", "preset_mixer"]


class Size(NamedTuple):
    """Depths and widths of the stages, and the stochastic depth to train with."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    drop_path_rate: float


SIZES = {
    "tiny": Size((2, 2, 4, 2), (32, 64, 128, 256), 0.0),
    "small": Size((2, 2, 6, 2), (48, 96, 192, 384), 0.1),
    "base": Size((2, 2, 9, 2), (64, 128, 256, 512), 0.2),
}
# Layers take turns, so that each axis is the fastest in some of them.
_SCANS: dict[int, Any] = {
    1: "row_major",
    2: {"alternate": ["row_major", "column_major"]},
    3: {"alternate": ["row_major", "axes(2, 0, 1)", "axes(1, 2, 0)"]},
}


def preset_mixer(spatial_dims: int, core: Any = Mamba) -> functools.partial:
    """Both ways along orders that alternate by layer, fused by their mean.

    Example:
        >>> preset_mixer(2)(d_model=8, layer_idx=1).paths[1][:2]
        ('column_major', True)
    """
    return functools.partial(
        NDMixer, core=core, bidirectional=True, scan=_SCANS[spatial_dims], fuse="mean", share="none"
    )
