"""Backend `native`: compiled kernels for CPU and CUDA tensors, loaded from `nvsubq/lib` when needed."""

from nvsubq.ops.native.conv import causal_conv1d
from nvsubq.ops.native.library import about, forget, inactive, missing
from nvsubq.ops.native.linear import linear_scan
from nvsubq.ops.native.rglru import rglru_scan
from nvsubq.ops.native.selective import selective_scan
from nvsubq.ops.native.served import declines
from nvsubq.ops.native.ssd import ssd_scan
from nvsubq.ops.native.steps import mamba2_step, mamba_step, rglru_step, s5_step
from nvsubq.ops.native.updates import (
    causal_conv1d_update,
    linear_state_update,
    rglru_state_update,
    selective_state_update,
    ssd_state_update,
)

__all__ = [
    "about",
    "causal_conv1d",
    "causal_conv1d_update",
    "declines",
    "forget",
    "inactive",
    "linear_scan",
    "linear_state_update",
    "mamba2_step",
    "mamba_step",
    "missing",
    "rglru_scan",
    "rglru_state_update",
    "rglru_step",
    "s5_step",
    "selective_scan",
    "selective_state_update",
    "ssd_scan",
    "ssd_state_update",
]
