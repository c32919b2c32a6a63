"""`linear_scan` on the native library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nvsubq.ops.native.call import Described, NativeOp, borders
from nvsubq.ops.native.library import FIXED_A, SHARED_DT, Layout
from nvsubq.ops.numerics import accumulation_dtype

CELLS = 32  # of a segment on the CPU; states are kept at the borders
DISCRETIZATIONS = {"zoh": 1, "bilinear": 2}
INPUT_SCALES = {"none": 0, "zoh": 1, "bilinear": 2, "sqrt": 3}
INPUTS = ("a", "b", "dt", "initial_state")
LAYOUT = Layout(
    scalars=(
        "batch", "length", "width", "blocks", "discretization", "input_scale",
        "flags", "device", "threads", "level",
    ),
    tensors=(
        *INPUTS, "index", "segment", "count", "y", "final_state", "d_y", "d_final_state",
        "d_a", "d_b", "d_dt", "d_initial_state",
    ),
)  # fmt: skip


def _describe(arguments: Mapping[str, Any]) -> Described:
    batch, length, width = arguments["b"].shape
    dt = arguments["dt"]
    scalars = {"batch": batch, "length": length, "width": width}
    scalars["discretization"] = DISCRETIZATIONS[arguments["discretization"]]
    scalars["input_scale"] = INPUT_SCALES[arguments["input_scale"]]
    scalars["flags"] = FIXED_A if arguments["a"].dim() == 1 else 0
    scalars["flags"] |= SHARED_DT if dt is not None and dt.dim() == 2 else 0
    return Described(scalars, batch * length * width)


def _saved_elements(arguments: Mapping[str, Any]) -> int:
    batch, length, width = arguments["b"].shape
    floats = [arguments[name] for name in INPUTS if arguments[name] is not None]
    parts = 2 if any(t.is_complex() for t in floats[:2]) else 1
    if floats[0].device.type == "cuda":
        cells = 32 if parts == 2 and accumulation_dtype(*floats) == torch.float64 else 64
        return batch * borders(length, cells) * parts * width
    return batch * (length // CELLS) * parts * width


linear_scan = NativeOp("linear_scan", LAYOUT, _describe, _saved_elements)
