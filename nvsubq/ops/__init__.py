"""The scans and the convolution under every core, each with a one-step update, on the active backend."""

from nvsubq.ops.conv import causal_conv1d, causal_conv1d_update
from nvsubq.ops.dispatch import Backend, backends, use_backend
from nvsubq.ops.linear import linear_scan, linear_state_update
from nvsubq.ops.rglru import rglru_scan, rglru_state_update
from nvsubq.ops.segments import segments_of
from nvsubq.ops.selective import selective_scan, selective_state_update
from nvsubq.ops.ssd import ssd_scan, ssd_state_update

__all__ = [
    "Backend",
    "backends",
    "causal_conv1d",
    "causal_conv1d_update",
    "linear_scan",
    "linear_state_update",
    "rglru_scan",
    "rglru_state_update",
    "segments_of",
    "selective_scan",
    "selective_state_update",
    "ssd_scan",
    "ssd_state_update",
    "use_backend",
]
