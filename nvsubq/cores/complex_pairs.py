"""What S5 and S7's `delta` share: complex states of real inputs and outputs, as real matrices on real pairs.

Complex matrix products fail under autocast; pairs of real and imaginary parts do not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.cores.hippo import hippo_blocks


def start_at_hippo(A: Tensor, B: Tensor, C: Tensor, D: Tensor, blocks: int, *, half: bool = False) -> None:
    """Set A to HiPPO-LegS, and draw B, C in its basis and D, from torch's generator.

    Args:
        A: `[N, 2]`; the last axis is (re, im), as in B and C.
        B: `[N, C, 2]`.
        C: `[C, N, 2]`.
        D: `[C]`.
        blocks: equal blocks that the states start as.
        half: N are one of each pair of conjugates.
    """
    eigenvalues, basis = hippo_blocks(len(A), blocks, half=half)
    size, width = len(basis), len(D)
    A.copy_(torch.view_as_real(eigenvalues))
    # One stream of numbers for every device and dtype.
    drawn: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    b = torch.randn(size, width, **drawn) * width**-0.5
    c = torch.randn(width, size, **drawn) * size**-0.5
    B.copy_(torch.view_as_real(basis.mH @ b.to(basis.dtype)))
    C.copy_(torch.view_as_real(c.to(basis.dtype) @ basis))
    D.copy_(torch.randn(width, **drawn))


def project_in(u: Tensor, B: Tensor, dtype: torch.dtype) -> Tensor:
    """`B u` `[..., N]`, complex of the real `dtype`, from u `[..., C]` and B `[N, C, 2]`."""
    states, width, _ = B.shape
    pairs = F.linear(u, B.transpose(1, 2).reshape(2 * states, width))
    return torch.view_as_complex(pairs.to(dtype).unflatten(-1, (states, 2)))


def read_out(s: Tensor, u: Tensor, C: Tensor, D: Tensor, kappa: float = 1.0) -> Tensor:
    """`kappa Re(C s) + D u` `[..., C]`: complex s `[..., N]`, u `[..., C]`, C `[C, N, 2]`, D `[C]`."""
    weight = torch.stack((kappa * C[..., 0], -kappa * C[..., 1]), dim=-1)  # Re(C s) = Cr sr - Ci si
    pairs = torch.view_as_real(s).flatten(-2).to(C.dtype)
    return F.linear(pairs, weight.flatten(1)) + D.to(u.dtype) * u
