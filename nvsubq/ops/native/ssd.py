"""`ssd_scan` on the native library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvsubq.ops.native.call import Described, NativeOp, borders
from nvsubq.ops.native.library import SOFTPLUS, Layout, bits

INPUTS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
LAYOUT = Layout(
    scalars=(
        "batch", "length", "width", "heads", "head_width", "states", "groups", "blocks",
        "flags", "lowest", "highest", "device", "threads", "level",
    ),
    tensors=(
        *INPUTS, "index", "segment", "count", "y", "final_state", "d_y", "d_final_state",
        "d_x", "d_dt", "d_A", "d_B", "d_C", "d_D", "d_z", "d_dt_bias", "d_initial_state",
    ),
)  # fmt: skip


def _describe(arguments: Mapping[str, Any]) -> Described:
    batch, length, heads, head_width = arguments["x"].shape
    groups, states = arguments["B"].shape[2:]
    lowest, highest = arguments["dt_limit"]
    scalars = {
        "batch": batch,
        "length": length,
        "width": heads * head_width,
        "heads": heads,
        "head_width": head_width,
        "states": states,
        "groups": groups,
        "flags": SOFTPLUS if arguments["dt_softplus"] else 0,
        "lowest": bits(lowest),
        "highest": bits(highest),
    }
    return Described(scalars, batch * length * heads * head_width * states)


def _saved_elements(arguments: Mapping[str, Any]) -> int:
    """States at the borders of segments, of which there are at most one in so many cells."""
    batch, length, heads, head_width = arguments["x"].shape
    states = arguments["B"].shape[3]
    if arguments["x"].device.type == "cuda":
        kept = borders(length, 1024)
    else:
        kept = length // (128 if states > 64 else 64)
    return batch * kept * heads * head_width * states


ssd_scan = NativeOp("ssd_scan", LAYOUT, _describe, _saved_elements)
