"""Linear layers of a core as CUDA devices like them: outputs in whole packs, a norm's weight taken along."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvsubq.cores.fusing import Weights, linears_of, weights_of
from nvsubq.cores.norm import GroupRMSNorm

# Of a row of 16-bit activations in packs of 16 bytes, which matrix products and kernels read at once.
_PACK = 8


def split_project(core: nn.Module, name: str, x: Tensor, rows: Sequence[int]) -> tuple[Tensor, ...]:
    """Apply a linear layer of a core and split the result; on CUDA cells lie at multiples of a pack.

    Args:
        core: the core.
        name: of the layer.
        x: `[..., C]`.
        rows: how many of the layer's outputs each part has.

    Returns:
        the parts, parts of one tensor.

    Example:
        >>> layer = nn.Sequential(nn.Linear(4, 3))
        >>> [part.shape[-1] for part in split_project(layer, "0", torch.zeros(2, 4), (1, 2))]
        [1, 2]
    """
    layer = getattr(core, name)
    weights, lacking = _plain(core, name) if x.is_cuda else None, -sum(rows) % _PACK
    if weights is None or not lacking:
        parts: tuple[Tensor, ...] = layer(x).split(rows, dim=-1)
        return parts
    bias = weights["bias"]
    padded = F.pad(weights["weight"], (0, 0, 0, lacking))
    y = F.linear(x, padded, None if bias is None else F.pad(bias, (0, lacking)))
    return y.split((*rows, lacking), dim=-1)[:-1]


def normed_project(core: nn.Module, norm: str, name: str, x: Tensor) -> Tensor | None:
    """Apply a group norm and a linear layer to `x` `[..., D]`, the norm's weight as a part of the layer's.

    None where that cannot be: off CUDA, or where a part is not as the core made it.
    """
    weights = _plain(core, name) if x.is_cuda and _HAS_RMS_NORM else None
    own = weights_of(getattr(core, norm), GroupRMSNorm)
    if weights is None or own is None:
        return None
    layer: GroupRMSNorm = getattr(core, norm)
    with torch.autocast(
        x.device.type, enabled=False
    ):  # one kernel, in fp32 inside; autocast would store fp32
        y = F.rms_norm(x.unflatten(-1, (layer.groups, -1)), (layer.width // layer.groups,), None, layer.eps)
        weight = (weights["weight"] * own["weight"]).to(weights["weight"].dtype)
    return F.linear(y.flatten(-2), weight, weights["bias"])


# Before it, the norm was composed of many kernels.
_HAS_RMS_NORM = hasattr(torch.ops.aten, "_fused_rms_norm")


def _plain(core: nn.Module, name: str) -> Weights | None:
    """The parameters of a linear layer that is as the core made it and has no hooks of its own."""
    if torch.compiler.is_compiling():
        return None
    found = linears_of(core, name)
    layer = getattr(core, name)
    return None if found is None or layer._backward_hooks or layer._backward_pre_hooks else found[0]
