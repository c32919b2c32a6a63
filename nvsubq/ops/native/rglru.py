"""`rglru_scan` on the native library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nvsubq.ops.native.call import Described, NativeOp, borders
from nvsubq.ops.native.library import GELU_TANH, UNSCALED_FIRST, Layout, bits
from nvsubq.ops.numerics import accumulation_dtype

CELLS = 32  # of a segment on the CPU; states are kept at the borders
INPUTS = ("x", "r", "i", "a_log", "gate", "r_bias", "i_bias", "initial_state")
LAYOUT = Layout(
    scalars=("batch", "length", "width", "blocks", "c_bits", "flags", "device", "threads", "level"),
    tensors=(
        *INPUTS, "index", "segment", "count", "y", "final_state", "d_y", "d_final_state",
        "d_x", "d_r", "d_i", "d_a_log", "d_gate", "d_r_bias", "d_i_bias", "d_initial_state",
    ),
)  # fmt: skip
_WORK = 4  # of one cell and channel, counted in states


def _describe(arguments: Mapping[str, Any]) -> Described:
    batch, length, width = arguments["x"].shape
    scalars = {"batch": batch, "length": length, "width": width}
    scalars["c_bits"] = bits(arguments["c"])
    scalars["flags"] = GELU_TANH if arguments["gelu"] == "tanh" else 0
    scalars["flags"] |= 0 if arguments["normalize_first"] else UNSCALED_FIRST
    return Described(scalars, batch * length * width * _WORK)


def _saved_elements(arguments: Mapping[str, Any]) -> int:
    x = arguments["x"]
    batch, length, width = x.shape
    if x.device.type == "cuda":
        floats = (arguments[name] for name in INPUTS)
        return batch * borders(length, 32 if accumulation_dtype(*floats) == torch.float64 else 64) * width
    return batch * (length // CELLS) * width


rglru_scan = NativeOp("rglru_scan", LAYOUT, _describe, _saved_elements)
