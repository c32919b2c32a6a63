"""`selective_scan` on the native library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvsubq.ops.native.call import Described, NativeOp, borders
from nvsubq.ops.native.library import SOFTPLUS, Layout

FIXED = {"B": 256, "C": 512, "decay_gate": 1024}  # over time: [D, N]
KINDS = {"mamba": 0, "zoh": 1, "async": 1, "bilinear": 2, "dirac": 3, "no_discretization": 4}
INPUTS = (
    "u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_a", "timesteps", "initial_state",
)  # fmt: skip
LAYOUT = Layout(
    scalars=(
        "batch", "length", "width", "states", "groups", "blocks",
        "flags", "discretization", "device", "threads", "level",
    ),
    tensors=(
        *INPUTS, "index", "segment", "count", "y", "final_state", "d_y", "d_final_state",
        "d_u", "d_delta", "d_A", "d_B", "d_C", "d_D", "d_z", "d_delta_bias", "d_delta_a", "d_timesteps",
        "d_initial_state", "decay_gate", "d_decay_gate",
    ),
)  # fmt: skip


def _describe(arguments: Mapping[str, Any]) -> Described:
    batch, length, width = arguments["u"].shape
    states = arguments["A"].shape[1]
    axes = {name: t.dim() for name in FIXED if (t := arguments[name]) is not None}
    groups = max((arguments[name].shape[2] for name, count in axes.items() if count == 4), default=1)
    scalars = {"batch": batch, "length": length, "width": width, "states": states, "groups": groups}
    scalars["flags"] = SOFTPLUS if arguments["delta_softplus"] else 0
    scalars["flags"] |= sum(FIXED[name] for name, count in axes.items() if count == 2)
    scalars["discretization"] = KINDS[arguments["discretization"]]
    strides = {name: _one_group for name, count in axes.items() if count == 3}
    return Described(scalars, batch * length * width * states, strides)


def _one_group(strides: tuple[int, ...]) -> tuple[int, ...]:
    return *strides[:2], 0, strides[2]


def _saved_elements(arguments: Mapping[str, Any]) -> int:
    """States at the borders of segments."""
    batch, length, width = arguments["u"].shape
    states = arguments["A"].shape[1]
    parts = 2 if arguments["A"].is_complex() else 1
    if arguments["u"].device.type == "cuda":
        return batch * borders(length, 64) * states * parts * width
    cells = 32 if states <= 16 else 64
    return batch * (length // cells) * states * parts * width


selective_scan = NativeOp("selective_scan", LAYOUT, _describe, _saved_elements)
