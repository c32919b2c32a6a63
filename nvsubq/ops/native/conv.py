"""`causal_conv1d` on the native library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvsubq.ops.native.call import Described, NativeOp
from nvsubq.ops.native.library import SILU, Layout

LAYOUT = Layout(
    scalars=(
        "batch", "length", "width", "taps", "dilation", "state_width", "blocks",
        "flags", "device", "threads", "level",
    ),
    tensors=(
        "x", "weight", "bias", "initial_state", "index", "segment", "count", "y", "final_state",
        "d_y", "d_final_state", "d_x", "d_weight", "d_bias", "d_initial_state",
    ),
)  # fmt: skip


def _describe(arguments: Mapping[str, Any]) -> Described:
    batch, length, width = arguments["x"].shape
    taps, dilation, state = arguments["weight"].shape[1], arguments["dilation"], arguments["initial_state"]
    scalars = {"batch": batch, "length": length, "width": width, "taps": taps, "dilation": dilation}
    scalars["state_width"] = (taps - 1) * dilation if state is None else state.shape[2]
    scalars["flags"] = SILU if arguments["activation"] == "silu" else 0
    return Described(scalars, batch * length * width * taps)


causal_conv1d = NativeOp("conv1d", LAYOUT, _describe, lambda _: 0)
