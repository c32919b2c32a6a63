"""The streaming protocol of mamba_ssm and its kin, over any of our cores.

There a model hands every layer an object with `seqlen_offset` and `key_value_memory_dict`, in which a layer
keeps `(conv_state, ssm_state)` under its `layer_idx`, and a layer's `step` takes and returns the two.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from nvsubq.cores import LTV_LRNN

_HELD = {"conv_state", "lrnn_state", "ssm_state", "seqlen_offset"}  # of a cache, in the protocol's states


class InferenceParams(Protocol):
    """What a model hands to its layers; the model advances the offset."""

    seqlen_offset: int
    key_value_memory_dict: dict[int, Any]


class InferenceParamsForms(LTV_LRNN):
    """The call forms, for a class of its own: put it before a core among the bases.

    Example:
        >>> from types import SimpleNamespace
        >>> from nvsubq.cores import RGLRU
        >>> class Layer(InferenceParamsForms, RGLRU): ...
        >>> layer, x = Layer(8, layer_idx=0), torch.randn(1, 3, 8)
        >>> params = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
        >>> first = layer(x[:, :2], inference_params=params)
        >>> params.seqlen_offset = 2
        >>> second = layer(x[:, 2:], inference_params=params)
        >>> torch.allclose(torch.cat([first, second], 1), layer(x), atol=1e-6)
        True
    """

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, inference_params: InferenceParams | None = None, **walk: Any
    ) -> Tensor:
        """Map `[B, L, C]` to `[B, L, C]`, with `inference_params` from the states that are kept there.

        Args:
            hidden_states: `[B, L, C]`, of any length at any offset.
            inference_params: the model's; at offset 0 the layer starts anew.
            walk: other arguments of the core's `forward`.

        Raises:
            ValueError: `inference_params` for a layer without a `layer_idx`.
        """
        if inference_params is None:
            return super().forward(hidden_states, **walk)  # type: ignore[safe-super]
        memory = inference_params.key_value_memory_dict
        if self.layer_idx is None:
            raise ValueError("`layer_idx` (=None) must be set where `inference_params` are used.")
        if inference_params.seqlen_offset == 0 or self.layer_idx not in memory:
            memory[self.layer_idx] = self.allocate_inference_cache(len(hidden_states), 0)
        conv_state, ssm_state = memory[self.layer_idx]
        cache = self._as_cache(conv_state, ssm_state, inference_params.seqlen_offset)
        out = super().forward(hidden_states, inference_cache=cache, **walk)  # type: ignore[safe-super]
        memory[self.layer_idx] = self._as_states(cache)
        return out

    def step(self, hidden_states: Tensor, conv_state: Any, ssm_state: Tensor) -> tuple[Tensor, Any, Tensor]:  # type: ignore[override]
        """Advance by one cell `[B, 1, C]`; the states are changed in place where no gradient is recorded."""
        cache = self._as_cache(conv_state, ssm_state, 0)
        out, cache = super().step(hidden_states, cache)  # type: ignore[safe-super]
        return out, *self._as_states(cache)

    def allocate_inference_cache(  # type: ignore[override]
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **_: Any
    ) -> tuple[Any, Tensor]:
        """The states of a walk that has not begun: `(conv_state, ssm_state)`, None for what a core lacks."""
        cache = super().allocate_inference_cache(batch_size, max_seqlen, dtype)  # type: ignore[safe-super]
        return self._as_states(cache)

    def _as_states(self, cache: dict[str, Any]) -> tuple[Any, Tensor]:
        more = sorted(cache.keys() - _HELD)
        if more:
            raise ValueError(
                f"{type(self).__name__} keeps {', '.join(more)} in its cache: the streaming protocol of "
                "mamba_ssm has room for `conv_state` and `ssm_state` alone."
            )
        return cache.get("conv_state"), cache["lrnn_state"]

    def _as_cache(self, conv_state: Any, ssm_state: Tensor, offset: int) -> dict[str, Any]:
        cache = {"lrnn_state": ssm_state, "seqlen_offset": offset}
        return cache if conv_state is None else cache | {"conv_state": conv_state}
