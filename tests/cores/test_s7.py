"""S7 against cores.md's formulas cell by cell, with every matrix laid out, in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.cores import S7

VARIANTS = ["selective", "delta"]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def make(variant: str = "selective", d_model: int = 5, d_state: int = 6, **options: Any) -> S7:
    torch.manual_seed(3)
    options = {"dtype": torch.float64} | options
    return S7(d_model, d_state, variant=variant, **options)


def gate(core: S7, y: Tensor, h: Tensor) -> Tensor:
    out = torch.sigmoid(F.gelu(y) @ core.gate_proj.weight.T) * y
    return out + h if core.residual else out


def selective(core: S7, h: Tensor, dt: Tensor | None) -> Tensor:
    width, n = core.d_model, core.d_state
    s, outputs = torch.zeros(len(h), n, dtype=h.dtype), []
    for k in range(h.shape[1]):
        x = h[:, k] @ core.in_proj.weight.T
        shift, B, C, D, b = (x @ core.x_proj.weight.T).split([n, width * n, width * n, width, n], -1)
        B, C = B.reshape(-1, width, n), C.reshape(-1, width, n)
        decay = 1 - 1 / ((shift + core.base_params) ** 2 + 0.5)
        if dt is not None:
            decay = decay.sign() * decay.abs().clamp(min=1e-6) ** dt[:, k, None]
        s = decay * s + torch.einsum("bcn,bc->bn", B, x) + b
        outputs.append(torch.einsum("bcn,bn->bc", C, s) + D * x)
    return gate(core, torch.stack(outputs, 1), h)


def delta(core: S7, h: Tensor, dt: Tensor | None) -> Tensor:
    rate, B, C = (torch.view_as_complex(p) for p in (core.A, core.B, core.C))
    s, outputs = torch.zeros(len(h), core.d_state, dtype=torch.complex128), []
    for k in range(h.shape[1]):
        step = F.softplus(h[:, k] @ core.delta_proj.weight.T + core.delta_proj.bias)
        moved = step if dt is None else dt[:, k, None] * step
        inputs = (torch.exp(step * rate) - 1) / rate * (h[:, k].to(B.dtype) @ B.T)
        s = torch.exp(moved * rate) * s + inputs
        outputs.append((s @ C.T).real + core.D * h[:, k])
    return gate(core, torch.stack(outputs, 1), h)


BY_HAND = {"selective": selective, "delta": delta}


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_formulas(variant: str, residual: bool, timed: bool) -> None:
    core = make(variant, J=2, residual=residual)
    for parameter in core.parameters():  # away from where it starts: decays near 0 and below it too
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    if variant == "selective":
        core.base_params.data.copy_(torch.linspace(-0.9, 3, core.d_state))
    h = torch.randn(2, 9, core.d_model, dtype=torch.float64)
    dt = torch.rand(2, 9, dtype=torch.float64) * 3 if timed else None
    names, parameters = zip(*core.named_parameters(), strict=True)
    weight = torch.randn_like(h)
    found = []
    for run in (core, lambda h, dt: BY_HAND[variant](core, h, dt)):
        x = h.clone().requires_grad_()
        y = run(x, dt)
        found.append([y, *torch.autograd.grad((y * weight).sum(), [x, *parameters])])
    for name, got, want in zip(["y", "h", *names], *found, strict=True):
        torch.testing.assert_close(got, want, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("blocks", [1, 3])
def test_every_block_starts_with_memories_of_all_lengths(blocks: int) -> None:
    core = make(d_state=12, J=blocks)
    decays = 1 - 1 / (core.base_params.detach() ** 2 + 0.5)
    expected = torch.exp(-torch.logspace(-3, -1, 12 // blocks, dtype=torch.float64) / 2)
    torch.testing.assert_close(decays, expected.repeat(blocks), rtol=1e-9, atol=0)


def test_blocks_of_delta_do_not_mix() -> None:
    core = make("delta", d_state=6, J=3)
    assert torch.equal(core.A[:2], core.A[2:4])
    assert torch.equal(core.A[:2], core.A[4:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_events_of_any_distance_stay_finite(variant: str, dtype: torch.dtype) -> None:
    core = make(variant, dtype=dtype)
    if variant == "selective":  # a decay of 0 at some cell
        core.base_params.data[0] = 0.5**0.5
        core.x_proj.weight.data[0] = 0
    h = torch.randn(2, 40, core.d_model, dtype=dtype, requires_grad=True)
    dt = (10 ** (torch.rand(2, 40, dtype=dtype) * 12 - 6)).requires_grad_()
    y = core(h, dt)
    grads = torch.autograd.grad(y.square().sum(), [h, dt, *core.parameters()])
    assert all(t.isfinite().all() for t in (y, *grads))


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_computes_states_in_fp32(variant: str) -> None:
    core = make(variant, d_model=16, d_state=8, dtype=torch.float32)
    h = torch.randn(2, 30, 16)
    cache = core.allocate_inference_cache(2, 30)
    with torch.autocast("cpu", torch.bfloat16):
        y = core(h, inference_cache=cache)
    assert cache["lrnn_state"].dtype in (torch.float32, torch.complex64)
    exact = core(h)
    assert (y - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters(variant: str, dtype: torch.dtype) -> None:
    core = make(variant, d_model=16, d_state=8, dtype=dtype)
    h = torch.randn(2, 30, 16).to(dtype)
    y = core(h)
    assert y.dtype == dtype
    kept = core.base_params if variant == "selective" else core.A
    assert kept.dtype == torch.float32
    exact = make(variant, d_model=16, d_state=8)
    exact.load_state_dict(core.state_dict())
    want = exact(h.double())
    assert (y - want).norm() < 0.02 * want.norm()


def test_memory_of_a_long_walk_is_no_matrix_for_each_cell() -> None:
    """What autograd keeps, in sizes of the input: B and C of every cell would be 128 of them."""
    core = make(d_model=32, d_state=64, dtype=torch.float32)
    h = torch.randn(1, 256, 32, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        core(h)
    parameters = sum(p.untyped_storage().nbytes() for p in core.parameters())
    assert sum(kept.values()) - parameters < 40 * h.nbytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"J": 4}, r"`J` \(=4\) must divide `d_state` \(=6\)"),
        ({"J": 0}, r"`J` \(=0\) must be at least 1"),
        ({"d_state": 0}, r"`d_state` \(=0\) must be at least 1"),
        ({"variant": "s5"}, r"`variant` \(='s5'\) must be one of 'selective', 'delta'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
