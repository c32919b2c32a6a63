"""Steps of whole cores on the native library, each in one call.

A step serves plain, dense tensors that fit exactly, and gives None for all else: the core then composes its
ops, which serve more and say what is wrong.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.native.library import Layout, bits
from nvsubq.ops.native.step_call import KEPT, Shape, StepCall, given, written

MAMBA = Layout(
    scalars=(
        "batch", "model", "width", "states", "rank", "taps",
        "flags", "discretization", "device", "threads", "level",
    ),
    tensors=(
        "x", "in_weight", "in_bias", "conv_state", "conv_weight", "conv_bias", "x_proj", "dt_weight",
        "dt_bias", "A_log", "D", "timesteps", "state", "out_weight", "out_bias", "y",
    ),
)  # fmt: skip
MAMBA2 = Layout(
    scalars=(
        "batch", "model", "width", "states", "heads", "groups", "taps", "mlp",
        "flags", "norm_before_gate", "channel_skip", "dt_low", "dt_high", "norm_eps",
        "device", "threads", "level",
    ),
    tensors=(
        "x", "in_weight", "in_bias", "conv_state", "conv_weight", "conv_bias", "dt_bias", "A_log", "D",
        "norm_weight", "state", "out_weight", "out_bias", "y",
    ),
)  # fmt: skip
RGLRU = Layout(
    scalars=("batch", "model", "width", "taps", "flags", "c", "device", "threads", "level"),
    tensors=(
        "x", "gate", "in_weight", "in_bias", "gate_weight", "gate_bias", "conv_state", "conv_weight",
        "conv_bias", "r_weight", "r_bias", "i_weight", "i_bias", "a_log", "state", "out_weight", "out_bias",
        "y",
    ),
)  # fmt: skip
S5 = Layout(
    scalars=(
        "batch", "width", "states", "flags", "discretization", "step_rescale", "kappa",
        "device", "threads", "level",
    ),
    tensors=("u", "A", "B", "C", "D", "log_dt", "timesteps", "state", "y"),
)  # fmt: skip
KINDS = {"mamba": 0, "zoh": 1, "async": 1, "bilinear": 2, "dirac": 3}

# Up to this many rows the library's own projections are at least as fast as torch's. Few CPUs multiply fp16,
# and torch's product of it is slow on the others; many do bf16.
_ROWS_INSIDE = {torch.float32: 64, torch.float64: 64, torch.float16: 64, torch.bfloat16: 4}
_ROWS_INSIDE_ON_CUDA = 16
# Beyond so many rows the ops are left to compose a step on CUDA: products that a kernel has inside read their
# weights for every four rows.
_ROWS_ON_CUDA = {"mamba": 4096, "mamba2": 4096, "rglru": 16, "s5": 256}

_MAMBA = StepCall(
    "mamba_step", MAMBA, ("in_weight", "in_bias", "x_proj", "dt_weight", "out_weight", "out_bias", "y")
)
_MAMBA2 = StepCall("mamba2_step", MAMBA2, ("in_weight", "in_bias", "out_weight", "out_bias", "y"))
_RGLRU = StepCall(
    "rglru_step",
    RGLRU,
    (
        "gate", "in_weight", "in_bias", "gate_weight", "gate_bias", "r_weight", "i_weight", "out_weight",
        "out_bias", "y",
    ),
)  # fmt: skip
_S5 = StepCall("s5_step", S5, ("B", "C", "y"), is_complex=True)


def _too_many(x: Tensor, core: str) -> bool:
    """Whether these rows are left to the ops."""
    return x.is_cuda and x.shape[0] > _ROWS_ON_CUDA[core]


def _inside(x: Tensor) -> bool:
    """Whether the native call multiplies by the projections in and out too."""
    return x.shape[0] <= (_ROWS_INSIDE_ON_CUDA if x.is_cuda else _ROWS_INSIDE.get(x.dtype, 0))


@lru_cache(KEPT)
def _mamba_shapes(
    batch: int, model: int, width: int, states: int, rank: int, taps: int, inside: bool
) -> tuple[Shape, ...]:
    first, last = (model, model) if inside else (2 * width, width)
    return (
        (batch, 1, first), (2 * width, model), (2 * width,), (batch, width, taps), (width, 1, taps),
        (width,), (rank + 2 * states, width), (width, rank), (width,), (width, states), (width,), (batch,),
        (batch, width, states), (model, width), (model,), (batch, 1, last),
    )  # fmt: skip


def mamba_step(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    out_weight: Tensor,
    out_bias: Tensor | None,
    timesteps: Tensor | None,
    discretization: str,
) -> Tensor | None:
    """Native form of `nvsubq.ops.steps.mamba_step`."""
    if _too_many(x, "mamba"):
        return None
    batch, _, model = x.shape
    (width, states), rank, taps = A_log.shape, dt_weight.shape[-1], conv_weight.shape[-1]
    inside = _inside(x)
    first: tuple[Any, ...] = in_weight, in_bias
    last: tuple[Any, ...] = out_weight, out_bias
    if inside:
        v, y = given(x), torch.empty_like(x, memory_format=torch.contiguous_format)
    else:
        v, y = F.linear(x, *first), x.new_empty((batch, 1, width))
        first = last = (None, None)
    served = _MAMBA(
        (batch, model, width, states, rank, taps, KINDS[discretization]),
        (
            v, *first, conv_state, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A_log, D,
            given(timesteps), state, *last, y,
        ),
        _mamba_shapes(batch, model, width, states, rank, taps, inside),
    )  # fmt: skip
    if not served:
        return None
    written(conv_state, state)
    return y if inside else F.linear(y, out_weight, out_bias)


@lru_cache(KEPT)
def _mamba2_shapes(
    batch: int, model: int, heads: int, head_width: int, states: int, groups: int, taps: int, mlp: int,
    skips: int, inside: bool,
) -> tuple[Shape, ...]:  # fmt: skip
    width = heads * head_width
    conv_width = width + 2 * groups * states
    rows = 2 * mlp + width + conv_width + heads
    first, last = (model, model) if inside else (rows, mlp + width)
    return (
        (batch, 1, first), (rows, model), (rows,), (batch, conv_width, taps), (conv_width, 1, taps),
        (conv_width,), (heads,), (heads,), (skips,), (width,), (batch, heads, head_width, states),
        (model, mlp + width), (model,), (batch, 1, last),
    )  # fmt: skip


def mamba2_step(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    norm_eps: float,
    norm_before_gate: bool,
    groups: int,
    channel_skip: bool,
    dt_limit: tuple[float, float],
) -> Tensor | None:
    """Native form of `nvsubq.ops.steps.mamba2_step`."""
    if state.dim() != 4 or _too_many(x, "mamba2"):
        return None
    batch, _, model = x.shape
    (_, heads, head_width, states), taps = state.shape, conv_weight.shape[-1]
    width = heads * head_width
    mlp = out_weight.shape[-1] - width
    if mlp < 0:
        return None
    inside = _inside(x)
    first: tuple[Any, ...] = in_weight, in_bias
    last: tuple[Any, ...] = out_weight, out_bias
    if inside:
        v, y = given(x), torch.empty_like(x, memory_format=torch.contiguous_format)
    else:
        v, y = F.linear(x, *first), x.new_empty((batch, 1, mlp + width))
        first = last = (None, None)
    options = int(norm_before_gate), int(channel_skip), *map(bits, dt_limit), bits(norm_eps)
    skips = width if channel_skip else heads
    served = _MAMBA2(
        (batch, model, width, states, heads, groups, taps, mlp, *options),
        (v, *first, conv_state, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, state, *last, y),
        _mamba2_shapes(batch, model, heads, head_width, states, groups, taps, mlp, skips, inside),
    )
    if not served:
        return None
    written(conv_state, state)
    return y if inside else F.linear(y, out_weight, out_bias)


@lru_cache(KEPT)
def _rglru_shapes(batch: int, model: int, width: int, taps: int, inside: bool) -> tuple[Shape, ...]:
    first, last = (model, model) if inside else (width, width)
    return (
        (batch, 1, first), (batch, 1, width), (width, model), (width,), (width, model), (width,),
        (batch, width, taps), (width, 1, taps), (width,), (width, width), (width,), (width, width), (width,),
        (width, 1), (batch, width, 1), (model, width), (model,), (batch, 1, last),
    )  # fmt: skip


def rglru_step(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    r_weight: Tensor,
    r_bias: Tensor,
    i_weight: Tensor,
    i_bias: Tensor,
    a_log: Tensor,
    out_weight: Tensor,
    out_bias: Tensor | None,
    c: float,
) -> Tensor | None:
    """Native form of `nvsubq.ops.steps.rglru_step`."""
    if _too_many(x, "rglru"):
        return None
    batch, _, model = x.shape
    width, taps = a_log.shape[0], conv_weight.shape[-1]
    inside = _inside(x)
    first: tuple[Any, ...] = in_weight, in_bias, gate_weight, gate_bias
    last: tuple[Any, ...] = out_weight, out_bias
    gate: Tensor | None = None
    if inside:
        v, y = given(x), torch.empty_like(x, memory_format=torch.contiguous_format)
    else:
        v, gate = F.linear(x, *first[:2]), F.linear(x, *first[2:])
        y = x.new_empty((batch, 1, width))
        first, last = (None,) * 4, (None, None)
    served = _RGLRU(
        (batch, model, width, taps, bits(c)),
        (
            v, gate, *first, conv_state, conv_weight, conv_bias, r_weight, r_bias, i_weight, i_bias, a_log,
            state, *last, y,
        ),
        _rglru_shapes(batch, model, width, taps, inside),
    )  # fmt: skip
    if not served:
        return None
    written(conv_state, state)
    return y if inside else F.linear(y, out_weight, out_bias)


@lru_cache(KEPT)
def _s5_shapes(batch: int, width: int, states: int) -> tuple[Shape, ...]:
    return (
        (batch, 1, width), (states, 2), (states, width, 2), (width, states, 2), (width,), (states,),
        (batch,), (batch, states), (batch, 1, width),
    )  # fmt: skip


def s5_step(
    u: Tensor,
    state: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    log_dt: Tensor,
    timesteps: Tensor | None,
    discretization: str,
    step_rescale: float,
    conj_sym: bool,
) -> Tensor | None:
    """Native form of `nvsubq.ops.steps.s5_step`."""
    if _too_many(u, "s5"):
        return None
    if state.is_conj():
        return None
    batch, _, width = u.shape
    states = A.shape[0]
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    served = _S5(
        (batch, width, states, KINDS[discretization], bits(step_rescale), bits(2.0 if conj_sym else 1.0)),
        (given(u), A, B, C, D, log_dt, given(timesteps), state, y),
        _s5_shapes(batch, width, states),
    )
    if not served:
        return None
    written(state)
    return y
