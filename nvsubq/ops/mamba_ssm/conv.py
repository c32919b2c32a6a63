"""`causal_conv1d` by the package causal-conv1d, which takes channels-last memory as `[B, D, L]`."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.mamba_ssm.found import module

_ALIGNED = 8
"""Channels, and strides of channels-last memory, are multiples of this; other memory is copied."""


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    dilation: int = 1,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    order: Tensor | None = None,
    reverse: bool | Sequence[bool] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Backend of `nvsubq.ops.causal_conv1d`, with its arguments; none is given that `declines` refuses."""
    del dilation, initial_state, seq_idx, order, reverse
    # The package's public function has kept its form; the functions of its compiled module have not.
    y = (
        module("causal_conv1d")
        .causal_conv1d_fn(_theirs(x), weight, bias, activation=activation)
        .movedim(1, 2)
    )
    if not return_final_state:
        return y
    reach = weight.shape[1] - 1
    return y, F.pad(x[:, -reach:].movedim(1, 2), (max(0, reach - x.shape[1]), 0))


def _theirs(x: Tensor) -> Tensor:
    """`[B, L, D]` as `[B, D, L]`: the same memory where the kernel can read it, else L contiguous."""
    if x.shape[1] == 1:  # either layout: a stride of 1 tells the kernel that it is the plain one
        return x.reshape(x.shape[0], x.shape[2], 1)
    strides_fit = all(stride % _ALIGNED == 0 for stride in x.stride()[:2])
    if x.stride(2) == 1 and x.shape[2] % _ALIGNED == 0 and strides_fit and x.stride(1) > 1:
        return x.movedim(1, 2)
    return x.movedim(1, 2).contiguous()
