"""Backend `triton`: kernels that Triton compiles on the first call, for devices without a native library."""

from nvsubq.ops.triton.found import about, forget, inactive, missing
from nvsubq.ops.triton.linear import linear_scan
from nvsubq.ops.triton.selective import selective_scan
from nvsubq.ops.triton.served import declines, declines_complex

__all__ = [
    "about",
    "declines",
    "declines_complex",
    "forget",
    "inactive",
    "linear_scan",
    "missing",
    "selective_scan",
]
