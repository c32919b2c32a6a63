"""Backend `torch`: every op in plain PyTorch, vectorised over the cells, on any device."""

from nvsubq.ops.portable.conv import causal_conv1d
from nvsubq.ops.portable.linear import linear_scan
from nvsubq.ops.portable.rglru import rglru_scan
from nvsubq.ops.portable.selective import selective_scan
from nvsubq.ops.portable.ssd import ssd_scan
from nvsubq.ops.portable.updates import (
    causal_conv1d_update,
    linear_state_update,
    rglru_state_update,
    selective_state_update,
    ssd_state_update,
)

__all__ = [
    "causal_conv1d",
    "causal_conv1d_update",
    "linear_scan",
    "linear_state_update",
    "rglru_scan",
    "rglru_state_update",
    "selective_scan",
    "selective_state_update",
    "ssd_scan",
    "ssd_state_update",
]
