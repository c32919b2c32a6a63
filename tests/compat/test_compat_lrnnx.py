"""The examples of lrnnx's documentation, with our package in the import lines."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from nvsubq.compat import lrnnx

# Class, the arguments of its example, and its signature with defaults as documented there.
DOCUMENTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Mamba": (
        {"d_model": 64, "d_state": 16, "d_conv": 4},
        {
            "d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", "dt_min": 0.001, "dt_max": 0.1,
            "dt_init": "random", "dt_scale": 1.0, "dt_init_floor": 0.0001, "conv_bias": True, "bias": False,
            "use_fast_path": True, "layer_idx": None, "device": None, "dtype": None,
            "discretization": "mamba",
        },
    ),
    "RGLRU": (
        {"d_model": 64, "d_conv": 4},
        {
            "d_conv": 4, "expand": 1, "c": 8.0, "a_init_range": (0.9, 0.999), "conv_bias": True,
            "bias": False, "use_fast_path": True, "layer_idx": None, "device": None, "dtype": None,
        },
    ),
    "S7": (
        {"d_model": 64, "d_state": 64},
        {"J": 1, "use_fast_path": True, "layer_idx": None, "device": None, "dtype": None},
    ),
    "S5": (
        {"d_model": 64, "d_state": 64},
        {
            "discretization": "zoh", "conj_sym": False, "dt_min": 0.001, "dt_max": 0.1, "step_rescale": 1.0,
            "use_fast_path": True, "device": None, "dtype": None,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_documented_example(name: str) -> None:
    options, _ = DOCUMENTED[name]
    model = getattr(lrnnx, name)(**options)
    x = torch.randn(2, 128, 64)
    assert model(x).shape == (2, 128, 64)
    cache = model.allocate_inference_cache(2, 128)
    y, returned = model.step(x[:, :1], cache)
    assert y.shape == (2, 1, 64)
    assert returned is cache


@pytest.mark.parametrize("name", DOCUMENTED)
def test_order_and_defaults(name: str) -> None:
    positional = {
        key: p.default
        for key, p in inspect.signature(getattr(lrnnx, name)).parameters.items()
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty
    }
    assert list(positional.items()) == list(DOCUMENTED[name][1].items())


def test_the_base_class() -> None:
    with pytest.raises(TypeError, match="abstract"):
        lrnnx.LTV_LRNN("zoh")
    with pytest.raises(ValueError, match="`discretization`"):
        type("Mine", (lrnnx.LTV_LRNN,), {"forward": None, "step": None, "allocate_inference_cache": None})(
            "euler"
        )


def test_an_argument_that_the_documentation_has_by_mistake() -> None:
    with pytest.raises(TypeError, match="d_state"):
        lrnnx.RGLRU(d_model=64, d_state=1, d_conv=4)
