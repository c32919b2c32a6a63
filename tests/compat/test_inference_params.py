"""The streaming protocol of mamba_ssm over our cores, and what it has no room for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nvsubq.compat.inference_params import InferenceParamsForms
from nvsubq.cores import RGLRU, S5, S7, Attention, Mamba2


@pytest.mark.parametrize(
    ("core", "options"),
    [(S5, {"d_state": 4}), (S7, {"d_state": 4}), (Mamba2, {"headdim": 8, "d_state": 4}), (RGLRU, {})],
)
def test_prefill_and_steps(core: type, options: dict) -> None:
    layer = type("Layer", (InferenceParamsForms, core), {})(8, **options)
    layer.layer_idx = 3
    x = torch.randn(2, 6, 8)
    params = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
    with torch.no_grad():
        parts = [layer(x[:, :4], inference_params=params)]
        states = params.key_value_memory_dict[3]
        for cell in x[:, 4:].split(1, 1):
            y, *states = layer.step(cell, *states)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("core", "options", "names"),
    [
        (RGLRU, {"normalize_first": False}, "begun"),
        (Attention, {"layer_idx": 0}, "key_cache, value_cache, visible"),
    ],
)
def test_a_cache_of_more_than_two_states_is_refused(core: type, options: dict, names: str) -> None:
    layer = type("Layer", (InferenceParamsForms, core), {})(8, **options)
    with pytest.raises(ValueError, match=f"Layer keeps {names} in its cache: the streaming protocol"):
        layer.allocate_inference_cache(2, 4)
