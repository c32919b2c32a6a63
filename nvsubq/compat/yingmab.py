"""yingmab's call form: `SSMConfig` and `Mamba(config)`, with complex states and a gate on the decay.

Example:
    >>> import torch
    >>> from nvsubq.compat.yingmab import Mamba, SSMConfig
    >>> model = Mamba(SSMConfig(d_model=32, d_state=16, d_conv=4, expand=2))
    >>> model(torch.randn(2, 10, 32)).shape
    torch.Size([2, 10, 32])
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from nvsubq import cores

__all__ = ["Mamba", "SSMConfig"]


@dataclass
class SSMConfig:
    """The sizes of a model.

    Args:
        d_model: width `C` of input and output.
        d_state: state size `N` of each inner channel.
        d_conv: width `K` of the causal convolution.
        expand: inner width over `d_model`.
    """

    d_model: int = 512
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2


class Mamba(cores.Mamba):
    """`nvsubq.cores.Mamba` with `a_init="s4d_lin"` and `a_modulation=True`, built from a config.

    Args:
        config: the sizes.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: `config` is no `SSMConfig`.
        ValueError: a size that cannot be.
    """

    def __init__(
        self,
        config: SSMConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        if not isinstance(config, SSMConfig):
            raise TypeError(f"`config` (a {type(config).__name__}) must be an SSMConfig.")
        super().__init__(**asdict(config), device=device, dtype=dtype, a_init="s4d_lin", a_modulation=True)
        self.config = config
