"""lite-mamba's `Mamba`: its argument order, its streaming, its parameter names; our kernels.

Example:
    >>> import torch
    >>> from nvsubq.compat.lite_mamba import Mamba
    >>> m = Mamba(d_model=32, d_conv=3, conv_dilations=(1, 2, 4, 8))
    >>> m(torch.randn(2, 128, 32)).shape
    torch.Size([2, 128, 32])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nvsubq import cores
from nvsubq.compat.inference_params import InferenceParamsForms

__all__ = ["Mamba"]


class Mamba(InferenceParamsForms, cores.Mamba):  # type: ignore[misc]  # other call forms: that is its purpose
    """`nvsubq.cores.Mamba` with lite-mamba's constructor, whose fourth argument is `conv_dilations`.

    `use_fast_path` is accepted and ignored, as there. `conv_state` is a list by branch, of one branch too.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        conv_dilations: Sequence[int] = (1,),
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = False,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        super().__init__(
            d_model,
            d_state,
            d_conv,
            expand,
            dt_rank,
            dt_min,
            dt_max,
            dt_init,
            dt_scale,
            dt_init_floor,
            conv_bias,
            bias,
            layer_idx=layer_idx,
            device=device,
            dtype=dtype,
            conv_dilations=conv_dilations,
        )

    def _as_states(self, cache: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        conv_state, ssm_state = super()._as_states(cache)
        return conv_state if isinstance(conv_state, list) else [conv_state], ssm_state

    def _as_cache(self, conv_state: Any, ssm_state: Tensor, offset: int) -> dict[str, Any]:
        one = len(self.conv_dilations) == 1
        return super()._as_cache(conv_state[0] if one else conv_state, ssm_state, offset)
