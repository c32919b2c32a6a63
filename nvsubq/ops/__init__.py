"""The scans and the convolution under every core, each with a one-step update, on the active backend."""

from nvsubq.ops.conv import CAUSAL_CONV1D, causal_conv1d, causal_conv1d_update
from nvsubq.ops.dispatch import Backend, backends, use_backend
from nvsubq.ops.linear import LINEAR_SCAN, linear_scan, linear_state_update
from nvsubq.ops.mamba_inner import mamba_inner
from nvsubq.ops.operators import register
from nvsubq.ops.rglru import RGLRU_SCAN, rglru_scan, rglru_state_update
from nvsubq.ops.segments import segments_of
from nvsubq.ops.selective import SELECTIVE_SCAN, selective_scan, selective_state_update
from nvsubq.ops.ssd import SSD_SCAN, ssd_scan, ssd_state_update

__all__ = [
    "Backend",
    "backends",
    "causal_conv1d",
    "causal_conv1d_update",
    "linear_scan",
    "linear_state_update",
    "mamba_inner",
    "rglru_scan",
    "rglru_state_update",
    "segments_of",
    "selective_scan",
    "selective_state_update",
    "ssd_scan",
    "ssd_state_update",
    "use_backend",
]

for _op in (SELECTIVE_SCAN, LINEAR_SCAN, RGLRU_SCAN, SSD_SCAN, CAUSAL_CONV1D):
    register(_op)
