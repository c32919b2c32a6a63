"""The examples of lrnnx's documentation, with our package in the import lines."""

from __future__ import annotations

import doctest
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


# As they are written there, line by line; `lrnnx.models.ltv` is now a module of ours.
EXAMPLES = {
    "Mamba": """
>>> model = Mamba(d_model=64, d_state=16, d_conv=4)
>>> x = torch.randn(2, 128, 64)
>>> y = model(x)
>>> y.shape
torch.Size([2, 128, 64])
""",
    "S7": """
>>> model = S7(d_model=64, d_state=64)
>>> x = torch.randn(2, 128, 64)
>>> y = model(x)
>>> y.shape
torch.Size([2, 128, 64])
""",
    "S5": """
>>> model = S5(d_model=64, d_state=64)
>>> x = torch.randn(2, 128, 64)
>>> y = model(x)
>>> y.shape
torch.Size([2, 128, 64])
""",
    # Its `d_state=1` is a mistake, which its own class answers with the same error.
    "RGLRU": """
>>> model = RGLRU(d_model=64, d_state=1, d_conv=4)
Traceback (most recent call last):
TypeError: RGLRU.__init__() got an unexpected keyword argument 'd_state'
>>> model = RGLRU(d_model=64, d_conv=4)
>>> x = torch.randn(2, 128, 64)
>>> y = model(x)
>>> y.shape
torch.Size([2, 128, 64])
""",
    # "create dummy input tensor and perform forward pass ... in subclass": the base itself is abstract.
    "LTV_LRNN": """
>>> from nvsubq.compat.lrnnx import LTV_LRNN
>>> class Mine(LTV_LRNN):
...     def forward(self, x, integration_timesteps=None, lengths=None, inference_cache=None):
...         return x.cumsum(1)
...     def step(self, x, inference_cache): ...
...     def allocate_inference_cache(self, batch_size, max_seqlen, dtype=None): ...
>>> my_lrnn = Mine("zoh")
>>> my_lrnn(torch.ones(1, 3, 2))[0, :, 0].tolist(), my_lrnn.discretization
([1.0, 2.0, 3.0], 'zoh')
""",
}


@pytest.mark.parametrize("home", ["nvsubq.compat.lrnnx", "nvsubq.cores"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_text_of_the_example(name: str, home: str) -> None:
    text = f">>> import torch\n>>> from {home} import {name}\n{EXAMPLES[name]}"
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    outcome = doctest.DocTestRunner().run(example)
    assert outcome.attempted > 5
    assert outcome.failed == 0


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
