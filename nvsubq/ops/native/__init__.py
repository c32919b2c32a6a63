"""Backend `native`: compiled kernels for CPU tensors, loaded from `nvsubq/lib` when first asked for."""

from nvsubq.ops.native.conv import causal_conv1d
from nvsubq.ops.native.library import about, inactive
from nvsubq.ops.native.linear import linear_scan
from nvsubq.ops.native.rglru import rglru_scan
from nvsubq.ops.native.selective import selective_scan
from nvsubq.ops.native.served import declines
from nvsubq.ops.native.ssd import ssd_scan
from nvsubq.ops.native.steps import mamba2_step, mamba_step, rglru_step, s5_step

__all__ = [
    "about",
    "causal_conv1d",
    "declines",
    "inactive",
    "linear_scan",
    "mamba2_step",
    "mamba_step",
    "rglru_scan",
    "rglru_step",
    "s5_step",
    "selective_scan",
    "ssd_scan",
]
