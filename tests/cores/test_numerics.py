"""Inputs and clocks at the ends of what floats hold: nothing becomes infinite or NaN, and nothing drifts."""

from __future__ import annotations

import pytest
import torch
from option_cases import CASES, SIMPLE, WIDTH, Case, every_case
from torch import Tensor

from nvsubq.cores import LTV_LRNN

B, L = 2, 40
timed = [case for case in CASES if case.timesteps]
INPUTS = {
    "zero": lambda: torch.zeros(B, L, WIDTH),
    "constant": lambda: torch.full((B, L, WIDTH), 0.7),
    "huge": lambda: torch.full((B, L, WIDTH), 1e4),
    "huge and negative": lambda: torch.full((B, L, WIDTH), -1e4),
    "huge and random": lambda: 1e4 * torch.randn(B, L, WIDTH, generator=torch.Generator().manual_seed(0)),
    "alternating": lambda: (-1.0) ** torch.arange(L)[None, :, None] * torch.full((B, L, WIDTH), 3.0),
    "huge and alternating": lambda: (-1.0) ** torch.arange(L)[None, :, None] * torch.full((B, L, WIDTH), 1e4),
}


def check_finite(core: LTV_LRNN, x: Tensor, *clock: Tensor) -> None:
    """Output, final state and all gradients, the clock's too, are finite."""
    inputs = [x.detach().requires_grad_(), *(dt.detach().requires_grad_() for dt in clock)]
    cache = core.allocate_inference_cache(len(x), x.shape[1]) if core.causal else None
    y = core(*inputs)
    assert y.isfinite().all()
    scale = y.detach().abs().max().clamp(min=1.0)
    found = torch.autograd.grad((y / scale).square().sum(), [*inputs, *core.parameters()], allow_unused=True)
    names = ["x", *("dt" for _ in clock), *(name for name, _ in core.named_parameters())]
    for name, grad in zip(names, found, strict=True):
        assert grad is None or grad.isfinite().all(), name
    with torch.no_grad():
        core(*inputs, inference_cache=cache)
        assert all(
            s.isfinite().all() for s in cache.values() if isinstance(s, Tensor) and s.dtype != torch.bool
        )


@every_case
@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_that_are_hard(case: Case, kind: str) -> None:
    check_finite(case.make(), INPUTS[kind]())


@pytest.mark.parametrize("case", SIMPLE, ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["zero", "huge and random", "huge and alternating"])
def test_in_bf16_too(case: Case, kind: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        check_finite(case.make(), INPUTS[kind]())


class TestEvents:
    """Gaps from 1e-6 to 1e6: fault 4, gradients that divide by a decay which has underflown."""

    gaps = torch.logspace(-6, 6, L)[torch.randperm(L, generator=torch.Generator().manual_seed(1))].expand(
        B, L
    )

    @pytest.mark.parametrize("case", timed, ids=str)
    @pytest.mark.parametrize("gaps", ["all", "least", "greatest", "none"])
    def test_outputs_and_gradients_are_finite(self, case: Case, gaps: str) -> None:
        value = {"least": 1e-6, "greatest": 1e6, "none": 0.0}.get(gaps)
        dt = self.gaps if value is None else torch.full((B, L), value)
        check_finite(case.make(), INPUTS["alternating"](), dt)
        check_finite(case.make(dtype=torch.float64), INPUTS["alternating"]().double(), dt.double())

    @pytest.mark.parametrize("case", timed, ids=str)
    @torch.no_grad()
    def test_steps(self, case: Case) -> None:
        core, x = case.make(), torch.randn(B, L, WIDTH, generator=torch.Generator().manual_seed(2))
        cache, want = core.allocate_inference_cache(B, L), core(x, self.gaps)
        got = [core.step(x[:, k : k + 1], cache, self.gaps[:, k])[0] for k in range(L)]
        assert want.isfinite().all()
        torch.testing.assert_close(torch.cat(got, 1), want, rtol=1e-5, atol=1e-5)

    # Mamba's convolution remembers whatever the clock says, and bilinear decays tend to -1.
    @pytest.mark.parametrize(
        "case",
        [c for c in timed if c.name != "Mamba" and c.options.get("discretization") != "bilinear"],
        ids=str,
    )
    @torch.no_grad()
    def test_a_long_gap_forgets_all(self, case: Case) -> None:
        core, x = case.make(), torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(3))
        x[1, 4:] = x[0, 4:]
        dt = torch.ones(2, 6)
        y = core(x, dt)
        assert (y[0, 4:] - y[1, 4:]).abs().max() > 1e-4
        dt[:, 4] = 1e6
        y = core(x, dt)
        torch.testing.assert_close(y[0, 4:], y[1, 4:], rtol=1e-5, atol=1e-5)


# Attention has no state to drift; S7's step is made of many small products and takes a minute here.
RECURRENT = [
    pytest.param(case, marks=[pytest.mark.figure] if case.name == "S7" else [], id=case.name)
    for case in SIMPLE
    if case.name != "Attention"
]


@pytest.mark.slow
@pytest.mark.parametrize("case", RECURRENT)
@torch.no_grad()
def test_100_000_steps_do_not_drift(case: Case) -> None:
    """Fault 10: fp32 steps against one forward in fp64, at the end of the walk."""
    steps, last = 100_000, 1000
    core, x = case.make(), torch.randn(1, steps, WIDTH, generator=torch.Generator().manual_seed(4))
    cache, got = core.allocate_inference_cache(1, steps), []
    for k, cell in enumerate(x.split(1, 1)):
        y, _ = core.step(cell, cache)
        if k >= steps - last:
            got.append(y)
    assert cache["seqlen_offset"] == steps
    want = core.double()(x.double())[:, -last:]
    assert (torch.cat(got, 1) - want).norm() < 1e-3 * want.norm()
