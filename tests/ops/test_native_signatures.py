"""A native call is packed once for each signature: what may differ beneath one must not go unseen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from nvsubq.cores import Mamba, Mamba2
from nvsubq.ops import backends, causal_conv1d, linear_scan, linear_state_update, selective_scan, ssd_scan
from nvsubq.ops import selective_state_update as update

pytestmark = pytest.mark.skipif(
    not next(b for b in backends() if b.name == "native").active, reason="native is not active"
)


def gradients(core: nn.Module, x: Tensor) -> Tensor:
    grads = torch.autograd.grad(core(x).square().sum(), list(core.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def strided(kept: Tensor) -> Tensor:
    """The same numbers with the last axis apart in memory."""
    return kept.transpose(-1, -2).contiguous().transpose(-1, -2) if kept.dim() > 1 else kept


HOOKS = {
    "offloaded": save_on_cpu,
    "turned": lambda: saved_tensors_hooks(strided, lambda kept: kept),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("first", ["plain", "hooked"])
@pytest.mark.parametrize(
    "make",
    [lambda: Mamba2(8, d_state=4, headdim=4), lambda: Mamba(8, conv_dilations=(1, 2))],
    ids=["Mamba2", "Mamba"],
)
def test_saved_tensors_that_come_back_with_other_strides(make: Any, first: str, hook: str) -> None:
    torch.manual_seed(0)
    core, x = make(), torch.randn(2, 50, 8)
    found = {}
    for which in (first, *({"plain", "hooked"} - {first})):
        if which == "plain":
            found[which] = gradients(core, x)
        else:
            with HOOKS[hook]():
                found[which] = gradients(core, x)
    torch.testing.assert_close(found["hooked"], found["plain"])


def test_a_lazy_conjugate_is_another_signature() -> None:
    torch.manual_seed(0)
    wide = 0.5 * torch.randn(2, 2, 7, 10, dtype=torch.complex64)
    a, b = wide[..., :5]
    for given in ((a, b), (a.conj(), b), (a, b.conj()), (a.conj(), b.conj()), (a, b)):
        expected = linear_scan(*given, backend="reference")
        torch.testing.assert_close(linear_scan(*given, backend="native"), expected)


def test_a_lazy_negative_is_another_signature() -> None:
    x, weight = torch.randn(2, 6, 3), torch.randn(3, 4)
    turned = torch._neg_view(x)
    plain = causal_conv1d(x, weight, backend="native")
    torch.testing.assert_close(causal_conv1d(turned, weight, backend="native"), -plain)


def test_a_lazy_conjugate_of_a_state_is_updated() -> None:
    a, b = torch.full((5,), 0.5), torch.randn(2, 5, dtype=torch.complex64)
    plain = torch.ones(2, 10, dtype=torch.complex64)[:, :5]
    conjugate = torch.ones(2, 10, dtype=torch.complex64)[:, :5].conj()
    for state in (plain, conjugate):
        y = linear_state_update(state, a, b, backend="native")
        torch.testing.assert_close(state.resolve_conj(), 0.5 + b)
        torch.testing.assert_close(y, 0.5 + b)


def test_a_lazy_negative_of_a_state_is_updated() -> None:
    a, b = torch.full((5,), 0.5), torch.randn(2, 5)
    for state in (torch.ones(2, 5), torch._neg_view(-torch.ones(2, 5))):
        torch.testing.assert_close(linear_state_update(state, a, b, backend="native"), 0.5 + b)
        torch.testing.assert_close(state.resolve_neg(), 0.5 + b)


def test_an_update_tells_autograd() -> None:
    state, weight = torch.zeros(1, 3, 2), torch.randn(1, 3, 2, requires_grad=True)
    loss = (state * weight).sum()
    one = torch.ones(1, 3)
    with torch.no_grad():
        update(state, one, one, -torch.ones(3, 2), torch.ones(1, 2), torch.ones(1, 2), backend="native")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
def test_lists_are_taken_as_tuples_are(backend: str) -> None:
    x, weight = torch.randn(2, 5, 4), torch.randn(4, 3)
    expected = causal_conv1d(x, weight, reverse=(True, False), backend=backend)
    assert torch.equal(causal_conv1d(x, weight, reverse=[True, False], backend=backend), expected)
    one = torch.ones(1, 2, 1, 1)
    given = one, torch.ones(1, 2, 1), torch.zeros(1), one, one
    bounded = ssd_scan(*given, dt_limit=[0.0, 0.5], backend=backend)  # type: ignore[arg-type]
    assert torch.equal(bounded, ssd_scan(*given, dt_limit=(0.0, 0.5), backend=backend))


def test_walks_without_cells() -> None:
    """S walks over L = 0 cells: states pass through, both ways."""
    u = torch.zeros(1, 0, 4, requires_grad=True)
    A, B = (-torch.rand(4, 2)).requires_grad_(), torch.zeros(1, 0, 2, 2, requires_grad=True)
    state = torch.randn(1, 4, 2, requires_grad=True)
    y, final = selective_scan(
        u, u, A, B, B, initial_state=state, return_final_state=True, reverse=(True, False), backend="native"
    )
    assert y.shape == (1, 0, 4)
    assert torch.equal(final, state)
    d_state, d_A = torch.autograd.grad(final.sum() + y.sum(), (state, A))
    assert torch.equal(d_state, torch.ones_like(state))
    assert torch.equal(d_A, torch.zeros_like(A))


@pytest.mark.parametrize("fixed", [False, True])
def test_no_channels(fixed: bool) -> None:
    u, A = torch.zeros(2, 3, 0, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    B = torch.ones((0, 4) if fixed else (2, 3, 4), requires_grad=True)
    y, final = selective_scan(u, u, A, B, B, return_final_state=True, backend="native")
    assert (y.shape, final.shape) == ((2, 3, 0), (2, 0, 4))
    (d_B,) = torch.autograd.grad(y.sum() + final.sum(), B)
    assert torch.equal(d_B, torch.zeros_like(B))
    none = torch.zeros(2, 0)
    b = torch.ones(2, 4)
    assert update(torch.zeros(2, 0, 4), none, none, A.detach(), b, b, backend="native").shape == (2, 0)
