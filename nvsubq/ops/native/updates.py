"""One-step updates on the native library: a scan's forward of one cell, from a state into the same memory.

Every kernel reads the whole state of a channel (a head) before it writes any of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.call import Tensors
from nvsubq.ops.native import library
from nvsubq.ops.native.call import NativeOp
from nvsubq.ops.native.conv import causal_conv1d
from nvsubq.ops.native.library import describe, readable
from nvsubq.ops.native.linear import linear_scan
from nvsubq.ops.native.rglru import rglru_scan
from nvsubq.ops.native.selective import selective_scan
from nvsubq.ops.native.ssd import ssd_scan
from nvsubq.ops.native.step_call import written
from nvsubq.ops.native.struct import Struct
from nvsubq.ops.native.walking import NO_TABLES
from nvsubq.ops.numerics import accumulation_dtype
from nvsubq.ops.update import Update

_OVERLAPS = 1  # as torch answers: no copy can be written to memory that is several elements at once


@dataclass(frozen=True)
class NativeUpdate:
    """An update on the native library.

    Args:
        native: the scan of many cells.
        any_stride: whether its kernel takes a state whose last axis is not contiguous.
    """

    native: NativeOp
    any_stride: bool = True

    def prepare(self, update: Update, arguments: Mapping[str, Any]) -> UpdateCall:
        """Make what serves all calls of this signature."""
        return UpdateCall(self, update, arguments)


class UpdateCall:
    """A checked update of tensors of one signature, on one thread of Python."""

    def __init__(self, kind: NativeUpdate, update: Update, arguments: Mapping[str, Any]) -> None:
        tensors = {name: arguments[name] for name in update.tensors if name != "state"}
        state = arguments["state"]
        self.y, _ = update.outputs(arguments)
        plain = {name: readable(t) for name, t in tensors.items()}
        self.odd = any(plain[name] is not t for name, t in tensors.items())
        lazy = state.is_conj() or state.is_neg()
        overlaps = torch._debug_has_internal_overlap(state) == _OVERLAPS  # type: ignore[attr-defined]
        self.apart = lazy or overlaps or not (kind.any_stride or readable(state) is state)
        self.packed = _pack(kind.native, update, {**arguments, **plain, "state": self.memory(state)}, self.y)

    def memory(self, state: Tensor) -> Tensor:
        """The state's memory, or a copy where the kernel cannot write there."""
        if self.apart:
            return state.clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()
        return state

    def __call__(self, tensors: Tensors) -> Tensor:
        state: Any = tensors[0]
        rest = [readable(t) for t in tensors[1:]] if self.odd else tensors[1:]
        y = state.new_empty(self.y.shape, dtype=self.y.dtype)
        memory = self.memory(state)
        self.packed.run([memory, *rest, y, memory], NO_TABLES, None)
        if memory is state:
            written(state)
        else:
            with torch.no_grad():
                state.copy_(memory)
        return y


def _pack(native: NativeOp, update: Update, arguments: Mapping[str, Any], y: Any) -> Struct:
    scan = update.as_scan(arguments)
    described = native.describe(scan)
    state = scan["initial_state"]
    outputs = {"y": state.new_empty(y.shape, dtype=y.dtype).unsqueeze(1), "final_state": state}
    names = ["initial_state", *(name for name in update.tensors if name != "state"), *outputs]
    named = {name: (scan | outputs)[name] for name in names}
    fields = {name: describe(t, described.strides.get(name)) for name, t in named.items()}
    floats = (scan[name] for name in update.scan.tensors)
    flags = library.DOUBLE if accumulation_dtype(*floats) == torch.float64 else 0
    scalars = {**described.scalars, "blocks": 1}
    scalars["flags"] = scalars.get("flags", 0) | flags
    return Struct(
        native.name,
        native.layout,
        f"nvsubq_{native.name}_forward",
        scalars,
        fields,
        names,
        described.work,
        state.device,
    )


selective_state_update = NativeUpdate(selective_scan)
linear_state_update = NativeUpdate(linear_scan)
rglru_state_update = NativeUpdate(rglru_scan)
ssd_state_update = NativeUpdate(ssd_scan, any_stride=False)
causal_conv1d_update = NativeUpdate(causal_conv1d)
