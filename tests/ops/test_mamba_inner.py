"""`mamba_inner` as one node against the ops one after the other, and against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from nvsubq.ops import backends, mamba_inner, use_backend
from nvsubq.ops.mamba_inner import _one_node

pytestmark = pytest.mark.skipif(
    not next(b for b in backends() if b.name == "native").active, reason="native is not active"
)

WALKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reverse": {"reverse": True},
    "order": {"order": torch.tensor([5, 1, 0, 7, 8, 2, 3, 4, 6])},
    "seq_idx": {"seq_idx": torch.tensor([[0, 0, -1, 1, 1, 1, 2, -1, 2], [-1] * 9])},
}


def inputs(dtype: torch.dtype, *, clock: bool = False, length: int = 9) -> dict[str, Tensor]:
    B, D, N, R, K = 2, 5, 3, 2, 4
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    made = {
        "xz": normal(B, length, 2 * D).to(dtype),
        "conv_weight": normal(D, K),
        "conv_bias": normal(D),
        "x_proj": normal(R + 2 * N, D),
        "dt_proj": normal(D, R),
        "dt_bias": normal(D),
        "A": -normal(D, N).exp(),
        "D": normal(D),
    }
    if clock:
        made |= {"delta_a": normal(D).exp(), "timesteps": normal(B, length).abs()}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {n: (t if n == "xz" else t.to(wide)).requires_grad_() for n, t in made.items()}


def outcome(tensors: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """y and the gradient of every tensor."""
    y = mamba_inner(**tensors, **options)
    cotangent = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    grads = torch.autograd.grad(y, list(tensors.values()), cotangent)
    return {"y": y.detach()} | dict(zip(tensors, grads, strict=True))


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("clock", [False, True])
@pytest.mark.parametrize("kind", ["mamba", "zoh"])
def test_agrees_with_the_reference(walk: str, clock: bool, kind: str) -> None:
    options = WALKS[walk] | {"discretization": kind}
    tensors = inputs(torch.float64, clock=clock)
    assert _one_node(tuple(tensors.values()), None)
    expected = outcome(tensors, backend="reference", **options)
    for name, got in outcome(tensors, **options).items():
        assert_close(name, got, expected[name])


def test_the_node_is_the_ops_one_after_the_other() -> None:
    """fp32: the forward runs the same kernels, so it has the same bits."""
    tensors = inputs(torch.float32, length=70)
    with torch.no_grad():
        composed = mamba_inner(**tensors)
    assert torch.equal(mamba_inner(**tensors).detach(), composed)
    expected = outcome({n: t.detach().double().requires_grad_() for n, t in tensors.items()}, backend="torch")
    for name, got in outcome(tensors).items():
        assert_close(name, got, expected[name])


def test_bfloat16_activations_with_float32_parameters() -> None:
    tensors = inputs(torch.bfloat16, length=40)
    got = outcome(tensors)
    assert got["xz"].dtype == torch.bfloat16
    assert all(got[n].dtype == torch.float32 for n in tensors if n != "xz")
    with use_backend("torch"):
        expected = outcome(tensors)
    for name in got:
        assert_close(name, got[name].float(), expected[name].double(), tolerance=2e-2)


def test_cells_that_do_not_lie_in_rows() -> None:
    tensors = inputs(torch.float64)
    expected = outcome(tensors)
    turned = tensors["xz"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    for name, got in outcome(tensors | {"xz": turned}).items():
        assert torch.equal(got, expected[name])


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_autocast_changes_nothing(backend: str) -> None:
    """The activations' dtype is that of `xz`."""
    tensors = inputs(torch.float32)
    expected = outcome(tensors, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        y = mamba_inner(**tensors, backend=backend)
    assert torch.equal(y, expected["y"])
    cotangent = torch.linspace(-1, 1, y.numel()).view_as(y)
    for name, got in zip(tensors, torch.autograd.grad(y, list(tensors.values()), cotangent), strict=True):
        assert torch.equal(got, expected[name])


def test_repeats_give_the_same_bits_and_one_node_is_recorded() -> None:
    tensors = inputs(torch.float32)
    first, second = outcome(tensors), outcome(tensors)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert type(mamba_inner(**tensors).grad_fn).__name__ == "_InnerBackward"


def test_gradcheck() -> None:
    tensors = inputs(torch.float64, clock=True, length=4)

    def run(*values: Tensor) -> Tensor:
        return mamba_inner(**dict(zip(tensors, values, strict=True)), reverse=True)

    assert torch.autograd.gradcheck(run, tuple(tensors.values()))
