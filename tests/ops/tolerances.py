"""The one table of tolerances of the ops, and the error measure. Never loosened for a machine or a backend.

Inputs are rounded to the storage dtype first; the expected value is the reference in fp64 from those. Two
bounds: relative L2 within the tolerance, each element within 8 tolerances of (its size + the tensor's RMS).

bf16 holds a number to 3.9e-3, which a small tensor with few large elements may show in full: there the L2
bound is the error of the expected value rounded to bf16, since no backend can do better.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 5e-4,
    torch.bfloat16: 2.5e-3,
    torch.complex128: 1e-12,
    torch.complex64: 1e-5,
}
ELEMENTWISE = 8
ROUNDING = 1.05  # an element on the border of two roundings may fall to either side


def errors(got: Tensor, expected: Tensor) -> tuple[float, float]:
    """Give the relative L2 error, and the largest elementwise error in units of (|expected| + rms)."""
    wide = torch.complex128 if expected.is_complex() else torch.float64
    got, expected = got.detach().to(wide), expected.detach().to(wide)
    if not expected.numel():
        return 0.0, 0.0
    error = (got - expected).abs()
    rms = expected.abs().square().mean().sqrt()
    if rms == 0:  # nothing to be relative to: only zeros are right
        return float(error.max()), float(error.max())
    return float(error.norm() / expected.norm()), float((error / (expected.abs() + rms)).max())


def assert_close(name: str, got: Tensor, expected: Tensor, *, tolerance: float | None = None) -> None:
    """Fail unless `got` has the expected shape, no NaN, and both errors within the tolerance of its dtype."""
    assert got.shape == expected.shape, f"{name}: shape {list(got.shape)}, expected {list(expected.shape)}"
    assert got.is_complex() == expected.is_complex(), f"{name}: dtype {got.dtype}, expected {expected.dtype}"
    assert not torch.isnan(got).any(), f"{name}: NaN"
    allowed = TOLERANCE[got.dtype] if tolerance is None else tolerance
    l2, elementwise = errors(got, expected)
    bound = ELEMENTWISE * allowed
    if got.dtype == torch.bfloat16:
        allowed = max(allowed, ROUNDING * errors(expected.to(got.dtype), expected)[0])
    assert l2 <= allowed, f"{name}: relative L2 error {l2:.2e}, allowed {allowed:.1e}"
    assert elementwise <= bound, f"{name}: elementwise error {elementwise:.2e}, allowed {bound:.0e}"
