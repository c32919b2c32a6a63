"""Steps of whole cores on the native library, each in one call.

A step serves plain, dense tensors that fit exactly, and gives None for all else: the core then composes its
ops, which serve more and say what is wrong. A step of a small core takes some ten microseconds, so structs
are packed once for each signature, and a call only looks at its tensors and puts their addresses in.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from nvsubq.ops.native import library
from nvsubq.ops.native.library import ABI, COMPLEX, DOUBLE, PRESENT, Layout

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

# Up to this many rows the library's own projections are at least as fast as torch's. Few CPUs multiply fp16,
# and torch's product of it is slow on the others; many do bf16.
_ROWS_INSIDE = {torch.float32: 64, torch.float64: 64, torch.float16: 64, torch.bfloat16: 4}

Shape = tuple[int, ...]

_ABSENT, _F32, _F64, _F16, _BF16, _C64, _C128 = -1, 0, 1, 2, 3, 4, 5
_CODES = {
    torch.float32: _F32, torch.float64: _F64, torch.float16: _F16, torch.bfloat16: _BF16,
    torch.complex64: _C64, torch.complex128: _C128,
}  # fmt: skip
_DOUBLES = (_F64, _C128)
_PLAIN = (Tensor, Parameter)
_STRIDED = torch.strided
_KEPT = 1024  # signatures, of each step and thread

_AS_DOUBLE, _AS_INTEGER = struct.Struct("=d"), struct.Struct("=q")


@lru_cache(256)
def bits(value: float) -> int:
    """A double as the integer of the same bits: the struct's scalars are integers."""
    found: int = _AS_INTEGER.unpack(_AS_DOUBLE.pack(value))[0]
    return found


def strides(shape: Shape) -> tuple[int, ...]:
    """The four strides of a dense tensor, of which torch is free in those of an axis of one element.

    Example:
        >>> strides((2, 3))
        (3, 1, 0, 0)
    """
    found = [1]
    for size in reversed(shape[1:]):
        found.insert(0, found[0] * size)
    return (*found, 0, 0, 0)[:4]


class _Struct:
    """A packed struct, complete but for the addresses of its tensors, and its own share of a workspace."""

    def __init__(self, packed: ctypes.Array, work: Tensor, first: int) -> None:
        self.packed, self.work = packed, work
        self.words = memoryview(packed).cast("B").cast("Q")
        self.first = first  # word of the first tensor's address; the next ones are six words apart

    def point(self, addresses: Sequence[int]) -> ctypes.Array:
        words, at = self.words, self.first
        for address in addresses:
            words[at] = address
            at += 6
        return self.packed


class _Step:
    """One C function of a step.

    Args:
        name: of the function, without its prefix.
        layout: of its struct.
        alike: tensors that torch would multiply with x: they must have its dtype.
        is_complex: whether the recurrent state is.
    """

    def __init__(self, name: str, layout: Layout, alike: Sequence[str], *, is_complex: bool = False) -> None:
        self.name = f"nvsubq_{name}"
        self.layout = layout
        self.packer = layout.packer()
        self.alike = [layout.tensors.index(tensor) for tensor in alike]
        self.state = layout.tensors.index("state")
        self.is_complex = is_complex
        self.flags = layout.scalars.index("flags")
        self.local = threading.local()

    def __call__(self, scalars: tuple[int, ...], tensors: Sequence[Any], shapes: Sequence[Shape]) -> bool:
        """Run the step, or say that it is not served. `scalars` lack what `_complete` adds."""
        codes: list[int | None] = []
        addresses = []
        for tensor, shape in zip(tensors, shapes, strict=True):
            if tensor is None:
                codes.append(_ABSENT)
                addresses.append(0)
                continue
            if (
                tensor.shape != shape
                or type(tensor) not in _PLAIN
                or not tensor.is_cpu
                or tensor.layout is not _STRIDED
                or not tensor.is_contiguous()
            ):
                return False
            codes.append(_CODES.get(tensor.dtype))
            addresses.append(tensor.data_ptr())
        local = self.local
        key = (scalars, tuple(codes), torch.get_num_threads(), library.forced_level)
        try:
            packed = local.structs[key]
        except (AttributeError, KeyError):
            packed = self._pack(key, shapes)
        if packed is None:
            return False
        if local.function(packed.point(addresses)):
            raise RuntimeError(f"{self.name}: {library.library().nvsubq_last_error().decode()}.")
        return True

    def _pack(self, key: tuple, shapes: Sequence[Shape]) -> _Struct | None:
        """Make the struct of a signature, or None where it is not served; remember either."""
        local = self.local
        if not hasattr(local, "structs"):
            local.structs = {}
            local.function = getattr(library.library(), self.name)
            local.work = torch.empty(0, dtype=torch.uint8, device="cpu")
        if len(local.structs) >= _KEPT:
            local.structs.clear()
        scalars, codes, threads, level = key
        packed = self._made(scalars, codes, threads, level, shapes) if self._serves(codes) else None
        local.structs[key] = packed
        return packed

    def _serves(self, codes: Sequence[int | None]) -> bool:
        if None in codes or any(codes[i] not in (_ABSENT, codes[0]) for i in self.alike):
            return False
        double = any(code in _DOUBLES for code in codes)
        exact = (_C128 if double else _C64) if self.is_complex else (_F64 if double else _F32)
        others = (code for i, code in enumerate(codes) if i != self.state)
        return codes[self.state] == exact and all(code not in (_C64, _C128) for code in others)

    def _made(
        self,
        scalars: tuple[int, ...],
        codes: Sequence[int],
        threads: int,
        level: int,
        shapes: Sequence[Shape],
    ) -> _Struct:
        flags = DOUBLE if any(code in _DOUBLES for code in codes) else 0
        complete = (*scalars[: self.flags], flags, *scalars[self.flags :], 0, threads, level)
        fields: list[int] = []
        for code, shape in zip(codes, shapes, strict=True):
            if code == _ABSENT:
                fields += (0,) * 7
            else:
                dtype, flag = (code - _C64, PRESENT | COMPLEX) if code >= _C64 else (code, PRESENT)
                fields += (0, *strides(shape), dtype, flag)
        buffer = ctypes.create_string_buffer(self.packer.size)

        def pack(work: Tensor | None) -> None:
            memory = (0, 0) if work is None else (work.data_ptr(), work.numel())
            self.packer.pack_into(buffer, 0, self.packer.size, ABI, *complete, *memory, 0, 0, 0, *fields)

        pack(None)
        needed = getattr(library.library(), f"{self.name}_workspace")(buffer)
        if needed < 0:
            raise RuntimeError(f"{self.name}_workspace: {library.library().nvsubq_last_error().decode()}.")
        if needed > self.local.work.numel():
            self.local.work = torch.empty(needed, dtype=torch.uint8, device="cpu")
        pack(self.local.work)
        return _Struct(buffer, self.local.work, 1 + len(self.layout.scalars) + 5)


_MAMBA = _Step(
    "mamba_step", MAMBA, ("in_weight", "in_bias", "x_proj", "dt_weight", "out_weight", "out_bias", "y")
)
_MAMBA2 = _Step("mamba2_step", MAMBA2, ("in_weight", "in_bias", "out_weight", "out_bias", "y"))
_RGLRU = _Step(
    "rglru_step",
    RGLRU,
    (
        "gate", "in_weight", "in_bias", "gate_weight", "gate_bias", "r_weight", "i_weight", "out_weight",
        "out_bias", "y",
    ),
)  # fmt: skip
_S5 = _Step("s5_step", S5, ("B", "C", "y"), is_complex=True)


def _given(x: Any) -> Any:
    """Activations, or None, as a step reads them: dense, nothing lazy."""
    if x is None:
        return None
    return x.resolve_neg().contiguous() if x.is_neg() or not x.is_contiguous() else x


def _written(*states: Tensor) -> None:
    """Tell autograd that the states have changed, so that a graph that kept one says so."""
    for state in states:
        if not state.is_inference():
            increment_version(state)


@lru_cache(_KEPT)
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
    batch, _, model = x.shape
    (width, states), rank, taps = A_log.shape, dt_weight.shape[-1], conv_weight.shape[-1]
    inside = batch <= _ROWS_INSIDE.get(x.dtype, 0)
    first: tuple[Any, ...] = in_weight, in_bias
    last: tuple[Any, ...] = out_weight, out_bias
    if inside:
        v, y = _given(x), torch.empty_like(x, memory_format=torch.contiguous_format)
    else:
        v, y = F.linear(x, *first), x.new_empty((batch, 1, width))
        first = last = (None, None)
    served = _MAMBA(
        (batch, model, width, states, rank, taps, KINDS[discretization]),
        (
            v, *first, conv_state, conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A_log, D,
            _given(timesteps), state, *last, y,
        ),
        _mamba_shapes(batch, model, width, states, rank, taps, inside),
    )  # fmt: skip
    if not served:
        return None
    _written(conv_state, state)
    return y if inside else F.linear(y, out_weight, out_bias)


@lru_cache(_KEPT)
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
    if state.dim() != 4:
        return None
    batch, _, model = x.shape
    (_, heads, head_width, states), taps = state.shape, conv_weight.shape[-1]
    width = heads * head_width
    mlp = out_weight.shape[-1] - width
    if mlp < 0:
        return None
    inside = batch <= _ROWS_INSIDE.get(x.dtype, 0)
    first: tuple[Any, ...] = in_weight, in_bias
    last: tuple[Any, ...] = out_weight, out_bias
    if inside:
        v, y = _given(x), torch.empty_like(x, memory_format=torch.contiguous_format)
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
    _written(conv_state, state)
    return y if inside else F.linear(y, out_weight, out_bias)


@lru_cache(_KEPT)
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
    batch, _, model = x.shape
    width, taps = a_log.shape[0], conv_weight.shape[-1]
    inside = batch <= _ROWS_INSIDE.get(x.dtype, 0)
    first: tuple[Any, ...] = in_weight, in_bias, gate_weight, gate_bias
    last: tuple[Any, ...] = out_weight, out_bias
    gate: Tensor | None = None
    if inside:
        v, y = _given(x), torch.empty_like(x, memory_format=torch.contiguous_format)
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
    _written(conv_state, state)
    return y if inside else F.linear(y, out_weight, out_bias)


@lru_cache(_KEPT)
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
    if state.is_conj():
        return None
    batch, _, width = u.shape
    states = A.shape[0]
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    served = _S5(
        (batch, width, states, KINDS[discretization], bits(step_rescale), bits(2.0 if conj_sym else 1.0)),
        (_given(u), A, B, C, D, log_dt, _given(timesteps), state, y),
        _s5_shapes(batch, width, states),
    )
    if not served:
        return None
    _written(state)
    return y
