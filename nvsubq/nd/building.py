"""What NDMixer builds: a core for each walk from one factory or several, and what works beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nvsubq.nd.factory import ModuleFactory
from nvsubq.nd.schedule import Schedule

_DIRECTION_STD = 0.02


def builders_of(core: Any, plan: Schedule, share: str) -> list[ModuleFactory]:
    """The factory of all walks, or one for each."""
    if not isinstance(core, Sequence) or isinstance(core, str):
        return [ModuleFactory(core, "core")]
    if share != "none":
        raise ValueError(f"`core` (a list of {len(core)}) must be one factory where `share` (={share!r}).")
    if len(core) != len(plan.paths):
        walks = ", ".join(f"{path.order}{' from its end' if path.reverse else ''}" for path in plan.paths)
        raise ValueError(
            f"`core` (a list of {len(core)}) must have one factory for each of {len(plan.paths)} walks: "
            f"{walks}."
        )
    return [ModuleFactory(factory, "core") for factory in core]


def one_each(builders: list[ModuleFactory], count: int) -> list[ModuleFactory]:
    """As many as there are cores to build."""
    return builders if len(builders) == count else builders * count


def built(
    build: ModuleFactory, width: int | None, layer_idx: int | None, is_share: bool = False
) -> nn.Module:
    """A core of the width of its walk, or of its share of the channels; None: as wide as its factory says."""
    _check_width(width, build.bound.get("d_model"), is_share)
    core = build(d_model=width, layer_idx=layer_idx)
    _check_width(width, getattr(core, "d_model", None), is_share)
    return core


def _check_width(width: int | None, other: Any, is_share: bool) -> None:
    if width is None or not isinstance(other, int) or other == width:
        return
    if is_share:
        raise ValueError(
            f"The share of each walk in `d_model` (={width} channels) differs from the `d_model` (={other}) "
            f"that is bound in `core`; leave the core's out, or make them equal."
        )
    raise ValueError(
        f"`d_model` (={width}) differs from the `d_model` (={other}) that is bound in `core`; "
        f"leave the core's out, or make them equal."
    )


def share_of(d_model: int | None, walks: int) -> int | None:
    """The channels of each walk where they split `d_model`."""
    if d_model is not None and d_model % walks:
        raise ValueError(f"`d_model` (={d_model}) must be divisible by the {walks} walks that split it.")
    return None if d_model is None else d_model // walks


def made_like(core: nn.Module) -> dict[str, Any]:
    """The `device` and `dtype` of what works beside a core: of its parameters, those kept in fp32 apart."""
    floats = [p for p in core.parameters() if p.is_floating_point()]
    if not floats:
        return {}
    like = min(floats, key=lambda p: p.dtype.itemsize)
    return {"device": like.device, "dtype": like.dtype}


def directions(walks: int, width: int | None, made: dict[str, Any]) -> nn.Parameter | None:
    """A vector for each walk, `[P, C]`, added to the input of the core that they share."""
    if walks == 1:
        return None
    if width is None:
        raise ValueError("`share` (='all+direction') needs `d_model`: the core does not tell its width.")
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(walks, width, **made), std=_DIRECTION_STD))
