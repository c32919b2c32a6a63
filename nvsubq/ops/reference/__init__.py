"""The definition of every op: plain PyTorch, a Python loop over time, ordinary autograd.

Every backend is tested against it. Its functions expect arguments that the public functions have checked.
"""

from nvsubq.ops.reference.conv import causal_conv1d, causal_conv1d_update
from nvsubq.ops.reference.linear import linear_scan, linear_state_update
from nvsubq.ops.reference.rglru import rglru_scan, rglru_state_update
from nvsubq.ops.reference.selective import selective_scan, selective_state_update
from nvsubq.ops.reference.ssd import ssd_scan, ssd_state_update

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
