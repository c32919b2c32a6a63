"""Steps of whole cores on the native library: what lies between the projections in and out, in one call.

A step serves plain, dense tensors that fit exactly, and gives None for all else: the core then composes its
ops, which serve more and say what is wrong.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from nvsubq.ops.native import library
from nvsubq.ops.native.library import ABI, DOUBLE, PRESENT, Layout

MAMBA = Layout(
    scalars=(
        "batch", "width", "states", "rank", "taps", "flags", "discretization", "device", "threads", "level",
    ),
    tensors=(
        "xz", "conv_state", "conv_weight", "conv_bias", "x_proj", "dt_weight", "dt_bias", "A_log", "D",
        "timesteps", "state", "y",
    ),
)  # fmt: skip
MAMBA2 = Layout(
    scalars=(
        "batch", "width", "states", "heads", "groups", "taps", "mlp", "flags", "norm_before_gate",
        "channel_skip", "device", "threads", "level",
    ),
    reals=("dt_low", "dt_high", "norm_eps"),
    tensors=(
        "zxbcdt", "conv_state", "conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight", "state",
        "y",
    ),
)  # fmt: skip
RGLRU = Layout(
    scalars=("batch", "width", "taps", "flags", "device", "threads", "level"),
    reals=("c",),
    tensors=(
        "x", "gate", "conv_state", "conv_weight", "conv_bias", "r_weight", "r_bias", "i_weight", "i_bias",
        "a_log", "state", "y",
    ),
)  # fmt: skip
S5 = Layout(
    scalars=("batch", "width", "states", "flags", "discretization", "device", "threads", "level"),
    reals=("step_rescale", "kappa"),
    tensors=("u", "A", "B", "C", "D", "log_dt", "timesteps", "state", "y"),
)
KINDS = {"mamba": 0, "zoh": 1, "async": 1, "bilinear": 2, "dirac": 3}

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_COMPLEX_DTYPES = {torch.complex64: 0, torch.complex128: 1}
_COMPLEX = 2
_PLAIN = (Tensor, Parameter)
_ABSENT = (0, 0, 0, 0, 0, 0, 0)
_F64 = 1


class _Unserved(Exception):
    """The call is left to the composition."""


@cache
def _dense(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Strides of a dense tensor; torch is free in those of an axis of one element."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    strides = strides[::-1] if shape else []
    return (*strides, 0, 0, 0, 0)[:4]  # type: ignore[return-value]


def _plain(tensor: Tensor) -> bool:
    return type(tensor) in _PLAIN and tensor.is_cpu and tensor.layout is torch.strided


class Fields:
    """Packs the tensors of a call, or gives up.

    Example:
        >>> fields = Fields()
        >>> fields.dense(torch.ones(2, 3), (2, 3))
        >>> fields.values[1:]
        [3, 1, 0, 0, 0, 1]
    """

    def __init__(self) -> None:
        self.values: list[int] = []
        self.double = False

    def dense(self, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
        """A weight or a real state, of one shape, without gaps."""
        if tensor is None:
            self.values += _ABSENT
            return
        dtype = _DTYPES.get(tensor.dtype)
        if dtype is None or tensor.shape != shape or not _plain(tensor) or not tensor.is_contiguous():
            raise _Unserved
        self.double |= dtype == _F64
        self.values += (tensor.data_ptr(), *_dense(shape), dtype, PRESENT)

    def complex(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        """A complex state."""
        dtype = _COMPLEX_DTYPES.get(tensor.dtype)
        if dtype is None or tensor.shape != shape or not _plain(tensor) or not tensor.is_contiguous():
            raise _Unserved
        if tensor.is_conj():
            raise _Unserved
        self.double |= dtype == _F64
        self.values += (tensor.data_ptr(), *_dense(shape), dtype, PRESENT | _COMPLEX)

    def rows(self, tensor: Tensor, shape: tuple[int, int]) -> None:
        """Activations `[B, width]`; their rows may lie apart."""
        dtype = _DTYPES.get(tensor.dtype)
        if dtype is None or tensor.shape != shape or not _plain(tensor) or tensor.is_neg():
            raise _Unserved
        between, within = tensor.stride()
        if within != 1 and shape[1] > 1:
            raise _Unserved
        self.double |= dtype == _F64
        self.values += (tensor.data_ptr(), between, 1, 0, 0, dtype, PRESENT)


class _Call:
    """One C function, its struct packed anew for each call into memory of this thread."""

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = f"nvsubq_{name}"
        self.layout = layout
        self.packer = layout.packer()
        self.local = threading.local()

    def __call__(self, scalars: Sequence[int], reals: Sequence[float], fields: Sequence[int]) -> None:
        local = self.local
        if not hasattr(local, "buffer"):
            local.buffer = ctypes.create_string_buffer(self.packer.size)
            local.work = torch.empty(0, dtype=torch.uint8)
            local.bytes = {}
            local.function = getattr(library.library(), self.name)
        needed = local.bytes.get(scalars)
        if needed is None:
            needed = self._ask(scalars, reals, fields)
        work = local.work
        self.packer.pack_into(
            local.buffer, 0, self.packer.size, ABI, *scalars, *reals,
            work.data_ptr(), work.numel(), 0, 0, 0, *fields,
        )  # fmt: skip
        if local.function(local.buffer):
            raise RuntimeError(f"{self.name}: {library.library().nvsubq_last_error().decode()}.")

    def _ask(self, scalars: Sequence[int], reals: Sequence[float], fields: Sequence[int]) -> int:
        """Bytes of workspace, which is kept and grows where it must."""
        local = self.local
        self.packer.pack_into(
            local.buffer, 0, self.packer.size, ABI, *scalars, *reals, 0, 0, 0, 0, 0, *fields
        )
        needed = getattr(library.library(), f"{self.name}_workspace")(local.buffer)
        if needed < 0:
            raise RuntimeError(f"{self.name}_workspace: {library.library().nvsubq_last_error().decode()}.")
        if needed > local.work.numel():
            local.work = torch.empty(needed, dtype=torch.uint8)
        if len(local.bytes) >= _SHAPES_KEPT:
            local.bytes.clear()
        local.bytes[scalars] = needed
        return needed


_SHAPES_KEPT = 1024
_MAMBA, _MAMBA2 = _Call("mamba_step", MAMBA), _Call("mamba2_step", MAMBA2)
_RGLRU, _S5 = _Call("rglru_step", RGLRU), _Call("s5_step", S5)


def _tail() -> tuple[int, int, int]:
    """Device, threads and level, as each struct has them."""
    return 0, torch.get_num_threads(), library.forced_level


def _written(*states: Tensor) -> None:
    """Tell autograd that the states have changed, so that a graph that kept one says so."""
    for state in states:
        if not state.is_inference():
            increment_version(state)


def mamba_step(
    xz: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    timesteps: Tensor | None,
    discretization: str,
) -> Tensor | None:
    """Native form of `nvsubq.ops.steps.mamba_step`."""
    if not xz.dtype == x_proj.dtype == dt_weight.dtype:
        return None
    batch, width, rank = xz.shape[0], *dt_weight.shape
    states, taps = A_log.shape[-1], conv_weight.shape[-1]
    fields = Fields()
    y = torch.empty((batch, width), dtype=xz.dtype, device="cpu")
    try:
        fields.rows(xz, (batch, 2 * width))
        fields.dense(conv_state, (batch, width, taps))
        fields.dense(conv_weight, (width, 1, taps))
        fields.dense(conv_bias, (width,))
        fields.dense(x_proj, (rank + 2 * states, width))
        fields.dense(dt_weight, (width, rank))
        fields.dense(dt_bias, (width,))
        fields.dense(A_log, (width, states))
        fields.dense(D, (width,))
        fields.dense(timesteps, (batch,))
        fields.dense(state, (batch, width, states))
        fields.dense(y, (batch, width))
    except _Unserved:
        return None
    if (state.dtype == torch.float64) != fields.double:
        return None
    flags = DOUBLE if fields.double else 0
    scalars = (batch, width, states, rank, taps, flags, KINDS[discretization], *_tail())
    _MAMBA(scalars, (), fields.values)
    _written(conv_state, state)
    return y


def mamba2_step(
    zxbcdt: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor | None,
    norm_eps: float,
    norm_before_gate: bool,
    groups: int,
    dt_limit: tuple[float, float],
) -> Tensor | None:
    """Native form of `nvsubq.ops.steps.mamba2_step`."""
    if state.dim() != 4:
        return None
    batch, (_, heads, head_width, states) = zxbcdt.shape[0], state.shape
    width, taps = heads * head_width, conv_weight.shape[-1]
    conv_width = width + 2 * groups * states
    mlp = (zxbcdt.shape[-1] - width - conv_width - heads) // 2
    fields = Fields()
    y = torch.empty((batch, mlp + width), dtype=zxbcdt.dtype, device="cpu")
    try:
        fields.rows(zxbcdt, (batch, 2 * mlp + width + conv_width + heads))
        fields.dense(conv_state, (batch, conv_width, taps))
        fields.dense(conv_weight, (conv_width, 1, taps))
        fields.dense(conv_bias, (conv_width,))
        fields.dense(dt_bias, (heads,))
        fields.dense(A_log, (heads,))
        by_channel = D.shape[0] != heads
        fields.dense(D, (width if by_channel else heads,))
        fields.dense(norm_weight, (width,))
        fields.dense(state, (batch, heads, head_width, states))
        fields.dense(y, (batch, mlp + width))
    except _Unserved:
        return None
    if (state.dtype == torch.float64) != fields.double:
        return None
    flags = DOUBLE if fields.double else 0
    sizes = (batch, width, states, heads, groups, taps, mlp)
    scalars = (*sizes, flags, int(norm_before_gate), int(by_channel), *_tail())
    _MAMBA2(scalars, (*dt_limit, norm_eps), fields.values)
    _written(conv_state, state)
    return y


def rglru_step(
    x: Tensor,
    gate: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    r_weight: Tensor,
    r_bias: Tensor,
    i_weight: Tensor,
    i_bias: Tensor,
    a_log: Tensor,
    c: float,
) -> Tensor | None:
    """Native form of `nvsubq.ops.steps.rglru_step`."""
    if not x.dtype == r_weight.dtype == i_weight.dtype:
        return None
    (batch, width), taps = x.shape, conv_weight.shape[-1]
    fields = Fields()
    y = torch.empty((batch, width), dtype=x.dtype, device="cpu")
    try:
        fields.rows(x, (batch, width))
        fields.rows(gate, (batch, width))
        fields.dense(conv_state, (batch, width, taps))
        fields.dense(conv_weight, (width, 1, taps))
        fields.dense(conv_bias, (width,))
        fields.dense(r_weight, (width, width))
        fields.dense(r_bias, (width,))
        fields.dense(i_weight, (width, width))
        fields.dense(i_bias, (width,))
        fields.dense(a_log, (width, 1))
        fields.dense(state, (batch, width, 1))
        fields.dense(y, (batch, width))
    except _Unserved:
        return None
    if (state.dtype == torch.float64) != fields.double:
        return None
    _RGLRU((batch, width, taps, DOUBLE if fields.double else 0, *_tail()), (c,), fields.values)
    _written(conv_state, state)
    return y


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
    if not u.dtype == B.dtype == C.dtype:
        return None
    (batch, width), states = u.shape, A.shape[0]
    fields = Fields()
    y = torch.empty((batch, width), dtype=u.dtype, device="cpu")
    try:
        fields.rows(u, (batch, width))
        fields.dense(A, (states, 2))
        fields.dense(B, (states, width, 2))
        fields.dense(C, (width, states, 2))
        fields.dense(D, (width,))
        fields.dense(log_dt, (states,))
        fields.dense(timesteps, (batch,))
        fields.complex(state, (batch, states))
        fields.dense(y, (batch, width))
    except _Unserved:
        return None
    if (state.dtype == torch.complex128) != fields.double:
        return None
    flags = DOUBLE if fields.double else 0
    scalars = (batch, width, states, flags, KINDS[discretization], *_tail())
    _S5(scalars, (step_rescale, 2.0 if conj_sym else 1.0), fields.values)
    _written(state)
    return y
