"""Backend `mamba_ssm`: the CUDA kernels of the packages mamba-ssm and causal-conv1d; only when named."""

from nvsubq.ops.mamba_ssm.conv import causal_conv1d
from nvsubq.ops.mamba_ssm.found import about, forget, inactive, missing
from nvsubq.ops.mamba_ssm.selective import selective_scan
from nvsubq.ops.mamba_ssm.served import declines

__all__ = [
    "about",
    "causal_conv1d",
    "declines",
    "forget",
    "inactive",
    "missing",
    "selective_scan",
]
