"""Steps of whole cores on the native library, each in one call.

A step serves plain, dense tensors that fit exactly, and gives None for all else: the core then composes its
ops, which serve more and say what is wrong.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from nvsubq.ops.native import library
from nvsubq.ops.native.library import ABI, DOUBLE, PRESENT, Layout

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
        "batch",
        "width",
        "states",
        "flags",
        "discretization",
        "step_rescale",
        "kappa",
        "device",
        "threads",
        "level",
    ),
    tensors=("u", "A", "B", "C", "D", "log_dt", "timesteps", "state", "y"),
)
KINDS = {"mamba": 0, "zoh": 1, "async": 1, "bilinear": 2, "dirac": 3}

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_STATES = {torch.float32: 0, torch.float64: 1, torch.complex64: 0, torch.complex128: 1}
_F64, _COMPLEX = 1, 2
_PLAIN = (Tensor, Parameter)
_STRIDED = torch.strided
_ABSENT = (0, 0, 0, 0, 0, 0, 0)
_NONE: tuple[None, None] = (None, None)
_SHAPES_KEPT = 1024

# Up to this many rows the library's own projections are at least as fast as torch's. Few CPUs multiply fp16,
# and torch's product of it is slow on the others; many do bf16.
_ROWS_INSIDE = {torch.float32: 16, torch.float64: 16, torch.float16: 64, torch.bfloat16: 4}

Shape = tuple[int, ...]
Dense = tuple[Shape, tuple[int, ...]]  # a shape, and the four strides of a dense tensor of it


_AS_DOUBLE, _AS_INTEGER = struct.Struct("=d"), struct.Struct("=q")


@lru_cache(256)
def bits(value: float) -> int:
    """A double as the integer of the same bits: the struct's scalars are integers."""
    found: int = _AS_INTEGER.unpack(_AS_DOUBLE.pack(value))[0]
    return found


class Unserved(Exception):
    """The call is left to the composition."""


def dense(*shape: int) -> Dense:
    """A shape and its strides, of which torch is free in those of an axis of one element.

    Example:
        >>> dense(2, 3)
        ((2, 3), (3, 1, 0, 0))
    """
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return shape, (*strides, 0, 0, 0)[:4]


class Fields:
    """The tensors of a call as the struct has them, or Unserved."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self.double = False

    def rows(self, tensor: Tensor, width: int) -> None:
        """Activations `[B, width]`; their rows may lie apart."""
        code = _DTYPES.get(tensor.dtype)
        if code is None or type(tensor) not in _PLAIN or tensor.layout is not _STRIDED or not tensor.is_cpu:
            raise Unserved
        between, within = tensor.stride()
        if tensor.shape[1] != width or (within != 1 and width > 1) or tensor.is_neg():
            raise Unserved
        self.double |= code == _F64
        self.values += (tensor.data_ptr(), between, 1, 0, 0, code, PRESENT)

    def weights(self, tensors: Sequence[Tensor | None], shapes: Sequence[Dense]) -> None:
        """Weights and what is kept of a convolution: dense, each of its shape."""
        for tensor, (shape, strides) in zip(tensors, shapes, strict=True):
            if tensor is None:
                self.values += _ABSENT
                continue
            code = _DTYPES.get(tensor.dtype)
            if (
                code is None
                or type(tensor) not in _PLAIN
                or tensor.layout is not _STRIDED
                or not tensor.is_cpu
                or tensor.shape != shape
                or not tensor.is_contiguous()
            ):
                raise Unserved
            self.double |= code == _F64
            self.values += (tensor.data_ptr(), *strides, code, PRESENT)

    def state(self, tensor: Tensor, shape: Dense, *, is_complex: bool = False) -> None:
        """The recurrent state, after all inputs: fp32, or fp64 where any of them is."""
        code = _STATES.get(tensor.dtype)
        if (
            code is None
            or type(tensor) not in _PLAIN
            or tensor.layout is not _STRIDED
            or not tensor.is_cpu
            or tensor.shape != shape[0]
            or not tensor.is_contiguous()
            or tensor.is_complex() != is_complex
            or (is_complex and tensor.is_conj())
            or (code == _F64) < self.double
        ):
            raise Unserved
        self.double = code == _F64
        flags = PRESENT | _COMPLEX if is_complex else PRESENT
        self.values += (tensor.data_ptr(), *shape[1], code, flags)

    def output(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Make the output, once all else is there."""
        y = torch.empty((rows, width), dtype=dtype, device="cpu")
        self.values += (y.data_ptr(), width, 1, 0, 0, _DTYPES[dtype], PRESENT)
        return y

    @property
    def flags(self) -> int:
        return DOUBLE if self.double else 0


class _Call:
    """One C function, its struct packed anew for each call into memory of this thread."""

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = f"nvsubq_{name}"
        self.layout = layout
        self.packer = layout.packer()
        self.local = threading.local()

    def __call__(self, scalars: Sequence[int], fields: Sequence[int]) -> None:
        local = self.local
        if not hasattr(local, "buffer"):
            local.buffer = ctypes.create_string_buffer(self.packer.size)
            local.work = torch.empty(0, dtype=torch.uint8, device="cpu")
            local.needed = {}  # bytes by the call's scalars
            local.function = getattr(library.library(), self.name)
        scalars = (*scalars, 0, torch.get_num_threads(), library.forced_level)  # device, threads, level
        if scalars not in local.needed:
            self._reserve(scalars, fields)
        buffer, work = local.buffer, local.work
        memory = (work.data_ptr(), work.numel(), 0, 0, 0)
        self.packer.pack_into(buffer, 0, self.packer.size, ABI, *scalars, *memory, *fields)
        if local.function(buffer):
            raise RuntimeError(f"{self.name}: {library.library().nvsubq_last_error().decode()}.")

    def _reserve(self, scalars: Sequence[int], fields: Sequence[int]) -> None:
        """Make the workspace of this thread, which is kept, large enough."""
        local = self.local
        memory = (0, 0, 0, 0, 0)
        self.packer.pack_into(local.buffer, 0, self.packer.size, ABI, *scalars, *memory, *fields)
        needed = getattr(library.library(), f"{self.name}_workspace")(local.buffer)
        if needed < 0:
            raise RuntimeError(f"{self.name}_workspace: {library.library().nvsubq_last_error().decode()}.")
        if needed > local.work.numel():
            local.work = torch.empty(needed, dtype=torch.uint8, device="cpu")
        if len(local.needed) >= _SHAPES_KEPT:
            local.needed.clear()
        local.needed[scalars] = needed


_MAMBA, _MAMBA2 = _Call("mamba_step", MAMBA), _Call("mamba2_step", MAMBA2)
_RGLRU, _S5 = _Call("rglru_step", RGLRU), _Call("s5_step", S5)


def _inside(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether the projections go into the call; Unserved where torch would not multiply these dtypes."""
    dtype = x.dtype
    if dtype not in _ROWS_INSIDE:
        raise Unserved
    for weight in weights:
        if weight is not None and weight.dtype != dtype:
            raise Unserved
    return x.shape[0] <= _ROWS_INSIDE[dtype]


def _written(*states: Tensor) -> None:
    """Tell autograd that the states have changed, so that a graph that kept one says so."""
    for state in states:
        if not state.is_inference():
            increment_version(state)


@lru_cache(_SHAPES_KEPT)
def _mamba_shapes(batch: int, model: int, width: int, states: int, rank: int, taps: int) -> tuple[Dense, ...]:
    return (
        dense(2 * width, model), dense(2 * width), dense(batch, width, taps), dense(width, 1, taps),
        dense(width), dense(rank + 2 * states, width), dense(width, rank), dense(width),
        dense(width, states), dense(width), dense(batch), dense(batch, width, states), dense(model, width),
        dense(model),
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
    fields = Fields()
    (batch, model), (width, states) = x.shape, A_log.shape
    rank, taps = dt_weight.shape[-1], conv_weight.shape[-1]
    shapes = _mamba_shapes(batch, model, width, states, rank, taps)
    v, first, last = x, (in_weight, in_bias), (out_weight, out_bias)
    try:
        inside = _inside(x, in_weight, in_bias, x_proj, dt_weight, out_weight, out_bias)
        if not inside:
            v, first, last = F.linear(x, *first), _NONE, _NONE
        fields.rows(v, model if inside else 2 * width)
        fields.weights(
            (*first, conv_state, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A_log, D, timesteps),
            shapes[:11],
        )
        fields.state(state, shapes[11])
        fields.weights(last, shapes[12:])
    except Unserved:
        return None
    y = fields.output(batch, model if inside else width, x.dtype)
    scalars = (batch, model, width, states, rank, taps, fields.flags, KINDS[discretization])
    _MAMBA(scalars, fields.values)
    _written(conv_state, state)
    return y if inside else F.linear(y, out_weight, out_bias)


@lru_cache(_SHAPES_KEPT)
def _mamba2_shapes(
    batch: int, model: int, heads: int, head_width: int, states: int, groups: int, taps: int, mlp: int,
    skips: int,
) -> tuple[Dense, ...]:  # fmt: skip
    width = heads * head_width
    conv_width = width + 2 * groups * states
    rows = 2 * mlp + width + conv_width + heads
    return (
        dense(rows, model), dense(rows), dense(batch, conv_width, taps), dense(conv_width, 1, taps),
        dense(conv_width), dense(heads), dense(heads), dense(skips), dense(width),
        dense(batch, heads, head_width, states), dense(model, mlp + width), dense(model),
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
    dt_limit: tuple[float, float],
) -> Tensor | None:
    """Native form of `nvsubq.ops.steps.mamba2_step`."""
    if state.dim() != 4:
        return None
    fields = Fields()
    (batch, model), (_, heads, head_width, states) = x.shape, state.shape
    width, taps, skips = heads * head_width, conv_weight.shape[-1], D.shape[0]
    mlp = out_weight.shape[-1] - width
    by_channel = skips != heads or head_width == 1
    if mlp < 0 or (by_channel and skips != width):
        return None
    shapes = _mamba2_shapes(batch, model, heads, head_width, states, groups, taps, mlp, skips)
    v, first, last = x, (in_weight, in_bias), (out_weight, out_bias)
    try:
        inside = _inside(x, in_weight, in_bias, out_weight, out_bias)
        if not inside:
            v, first, last = F.linear(x, *first), _NONE, _NONE
        fields.rows(v, model if inside else shapes[0][0][0])
        fields.weights(
            (*first, conv_state, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight), shapes[:9]
        )
        fields.state(state, shapes[9])
        fields.weights(last, shapes[10:])
    except Unserved:
        return None
    y = fields.output(batch, model if inside else mlp + width, x.dtype)
    sizes = (batch, model, width, states, heads, groups, taps, mlp)
    scalars = (
        *sizes,
        fields.flags,
        int(norm_before_gate),
        int(by_channel),
        *map(bits, dt_limit),
        bits(norm_eps),
    )
    _MAMBA2(scalars, fields.values)
    _written(conv_state, state)
    return y if inside else F.linear(y, out_weight, out_bias)


@lru_cache(_SHAPES_KEPT)
def _rglru_shapes(batch: int, model: int, width: int, taps: int) -> tuple[Dense, ...]:
    return (
        dense(width, model), dense(width), dense(width, model), dense(width), dense(batch, width, taps),
        dense(width, 1, taps), dense(width), dense(width, width), dense(width), dense(width, width),
        dense(width), dense(width, 1), dense(batch, width, 1), dense(model, width), dense(model),
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
    fields = Fields()
    (batch, model), width, taps = x.shape, a_log.shape[0], conv_weight.shape[-1]
    shapes = _rglru_shapes(batch, model, width, taps)
    v, gate, first, last = x, None, (in_weight, in_bias, gate_weight, gate_bias), (out_weight, out_bias)
    try:
        inside = _inside(x, *first, r_weight, i_weight, *last)
        if inside:
            fields.rows(x, model)
            fields.values += _ABSENT
        else:
            v, gate = F.linear(x, in_weight, in_bias), F.linear(x, gate_weight, gate_bias)
            first, last = (None,) * 4, _NONE
            fields.rows(v, width)
            fields.rows(gate, width)
        fields.weights(
            (*first, conv_state, conv_weight, conv_bias, r_weight, r_bias, i_weight, i_bias, a_log),
            shapes[:12],
        )
        fields.state(state, shapes[12])
        fields.weights(last, shapes[13:])
    except Unserved:
        return None
    y = fields.output(batch, model if inside else width, x.dtype)
    _RGLRU((batch, model, width, taps, fields.flags, bits(c)), fields.values)
    _written(conv_state, state)
    return y if inside else F.linear(y, out_weight, out_bias)


@lru_cache(_SHAPES_KEPT)
def _s5_shapes(batch: int, width: int, states: int) -> tuple[Dense, ...]:
    return (
        dense(states, 2), dense(states, width, 2), dense(width, states, 2), dense(width), dense(states),
        dense(batch), dense(batch, states),
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
    fields = Fields()
    (batch, width), states = u.shape, A.shape[0]
    shapes = _s5_shapes(batch, width, states)
    try:
        _inside(u, B, C)
        fields.rows(u, width)
        fields.weights((A, B, C, D, log_dt, timesteps), shapes[:6])
        fields.state(state, shapes[6], is_complex=True)
    except Unserved:
        return None
    y = fields.output(batch, width, u.dtype)
    scalars = (
        batch,
        width,
        states,
        fields.flags,
        KINDS[discretization],
        bits(step_rescale),
        bits(2.0 if conj_sym else 1.0),
    )
    _S5(scalars, fields.values)
    _written(state)
    return y
