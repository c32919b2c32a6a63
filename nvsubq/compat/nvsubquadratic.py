"""The names of nvSubquadratic: its ``Mamba`` wrapper and its lazy configs.

Example:
    >>> import torch
    >>> from nvsubq.compat.nvsubquadratic import LazyConfig, Mamba
    >>> from nvsubq.cores import Mamba as MambaCore
    >>> mamba = Mamba(mamba_layer_cfg=LazyConfig(MambaCore)(d_model=16, d_state=4), bidirectional=True)
    >>> mamba(torch.randn(2, 8, 8, 16)).shape
    torch.Size([2, 8, 8, 16])
"""

from nvsubq.lazy_config import PLACEHOLDER, LazyConfig, instantiate
from nvsubq.nd import MambaND

__all__ = ["PLACEHOLDER", "LazyConfig", "Mamba", "MambaND", "instantiate"]

Mamba = MambaND
