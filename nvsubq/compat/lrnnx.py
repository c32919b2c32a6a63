"""The names of `lrnnx.models.ltv`: our cores have its signatures, so the import line is all that changes.

Example:
    >>> import torch
    >>> from nvsubq.compat.lrnnx import S7
    >>> model = S7(d_model=64, d_state=64)
    >>> model(torch.randn(2, 16, 64)).shape
    torch.Size([2, 16, 64])
"""

from nvsubq.cores import LTV_LRNN, RGLRU, S5, S7, Mamba

__all__ = ["LTV_LRNN", "RGLRU", "S5", "S7", "Mamba"]
