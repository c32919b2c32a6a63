"""lite-mamba's call forms, beside lite-mamba itself with the same weights."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import lite_mamba
import pytest
import torch

from nvsubq.compat.inference_params import InferenceParamsForms
from nvsubq.compat.lite_mamba import Mamba
from nvsubq.cores import RGLRU, Mamba2

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
OPTIONS: dict[str, Any] = {"d_conv": 3, "conv_dilations": (1, 2, 4)}


def pair(**options: Any) -> tuple[Mamba, Any]:
    torch.manual_seed(0)
    theirs = lite_mamba.Mamba(16, layer_idx=0, **options)
    ours = Mamba(16, layer_idx=0, **options)
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing.missing_keys
    assert all(name.startswith(("conv_gates", "conv1d_layers")) for name in missing.unexpected_keys)
    return ours, theirs


def params() -> Any:
    return SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})


def test_signature() -> None:
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (Mamba, lite_mamba.Mamba))
    assert list(ours) == list(theirs)
    assert {name: p.default for name, p in ours.items()} == {name: p.default for name, p in theirs.items()}


def test_the_readmes_example() -> None:
    x = torch.randn(2, 128, 64)
    m = Mamba(d_model=64, d_conv=3, conv_dilations=(1, 2, 4, 8))
    assert m(x).shape == x.shape


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=str)
def test_forward(options: dict[str, Any]) -> None:
    ours, theirs = pair(**options)
    x = torch.randn(2, 30, 16)
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


@torch.no_grad()
def test_steps() -> None:
    ours, theirs = pair(d_conv=3)
    states = [model.allocate_inference_cache(2, 9) for model in (ours, theirs)]
    for mine, other in zip(states[0][0], states[1][0], strict=True):
        assert mine.shape == other.shape
    for _ in range(9):
        x = torch.randn(2, 1, 16)
        got, *states[0] = ours.step(x, *states[0])
        want, *states[1] = theirs.step(x, *states[1])
        torch.testing.assert_close(got, want, **CLOSE)
    torch.testing.assert_close(states[0], states[1], **CLOSE)


@torch.no_grad()
def test_inference_params() -> None:
    ours, theirs = pair(d_conv=3)
    x = torch.randn(2, 12, 16)
    found = []
    for model in (ours, theirs):
        p, parts = params(), []
        for first, last in ((0, 7), *((k, k + 1) for k in range(7, 12))):
            p.seqlen_offset = first
            parts.append(model(x[:, first:last], inference_params=p))
        found.append(torch.cat(parts, 1))
    torch.testing.assert_close(found[0], found[1], **CLOSE)
    torch.testing.assert_close(found[0], ours(x), **CLOSE)


class _RGLRU(InferenceParamsForms, RGLRU): ...


class _Mamba2(InferenceParamsForms, Mamba2): ...


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Mamba(16, layer_idx=3, **OPTIONS),
        lambda: Mamba(16, layer_idx=3),
        lambda: _RGLRU(16, layer_idx=3),
        lambda: _Mamba2(16, d_state=8, headdim=8, layer_idx=3),
    ],
)
def test_the_protocol_of_every_core(make: Any, grad: bool) -> None:
    """Chunks of any length at any offset, two generations one after the other, steps."""
    torch.manual_seed(1)
    layer, x = make(), torch.randn(2, 9, 16)
    with torch.set_grad_enabled(grad):
        want = layer(x)
        p = params()
        for _ in range(2):  # the second starts anew at offset 0
            parts = []
            for first, last in ((0, 4), (4, 5), (5, 9)):
                p.seqlen_offset = first
                parts.append(layer(x[:, first:last], inference_params=p))
            torch.testing.assert_close(torch.cat(parts, 1), want, **CLOSE)
        states, parts = layer.allocate_inference_cache(2, 9), []
        for k in range(9):
            y, *states = layer.step(x[:, k : k + 1], *states)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1), want, **CLOSE)
    assert list(p.key_value_memory_dict) == [3]


def test_a_layer_without_a_number() -> None:
    with pytest.raises(ValueError, match=r"`layer_idx` \(=None\) must be set"):
        Mamba(16)(torch.zeros(1, 2, 16), inference_params=params())
