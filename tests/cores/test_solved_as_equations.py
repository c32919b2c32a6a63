"""Cores against what their recurrences stand for, solved by others: differential and linear equations.

`zoh` is the exact solution of `s' = A s + B u` for inputs that are held, `dirac` of `s' = A s` between inputs
that strike; `bilinear` is the trapezoidal rule; a linear recurrence is one triangular system over all cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import solve_ivp
from torch import Tensor

from nvsubq.cores import S5, S7, Mamba

EXACT = {"rtol": 1e-8, "atol": 1e-8}  # what the solver is asked for, and a little
B, L, C = 2, 6, 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def flow(rate: Tensor, state: Tensor, span: Tensor, held: Tensor | float = 0.0) -> Tensor:
    """`s(1)` where `s' = span (rate s + held)` and s(0) is the state: all of one shape, real or complex."""
    rate, state, span, held = (
        np.broadcast_to(np.asarray(torch.as_tensor(v).detach()), state.shape).ravel()
        for v in (rate, state, span, held)
    )
    kind = np.result_type(rate, state)
    solved = solve_ivp(
        lambda _, s: span * (rate * s + held),
        (0, 1),
        state.astype(kind),
        "DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    return torch.from_numpy(solved.y[:, -1])


def moved(rate: Tensor, state: Tensor, span: Tensor, held: Tensor | float = 0.0) -> Tensor:
    return flow(rate, state, span, held).reshape(state.shape)


def clocks(timed: bool) -> Tensor | None:
    return torch.rand(B, L, dtype=torch.float64) * 3 if timed else None


class TestS5:
    def core(self, **options: Any) -> tuple[S5, Tensor, Tensor, Tensor, Tensor]:
        core = S5(C, 8, dt_min=0.05, dt_max=0.5, dtype=torch.float64, **options)
        rate, into, out = (torch.view_as_complex(p.detach()) for p in (core.A, core.B, core.C))
        return core, rate, into, out, core.log_dt.detach().exp()

    def read(self, core: S5, states: list[Tensor], out: Tensor, u: Tensor) -> Tensor:
        kappa = 2 if core.conj_sym else 1
        return kappa * (torch.stack(states, 1) @ out.T).real + core.D.detach() * u

    @pytest.mark.parametrize("timed", [False, True])
    def test_zoh_solves_the_equation(self, timed: bool) -> None:
        """With `symmetric_timesteps`: the input is held for as long as the state moves."""
        core, rate, into, out, dt = self.core(symmetric_timesteps=True, conj_sym=True)
        u, clock = torch.randn(B, L, C, dtype=torch.float64), clocks(timed)
        s, states = torch.zeros(B, 8, dtype=torch.complex128), []
        for k in range(L):
            span = dt.expand(B, -1) if clock is None else clock[:, k, None] * dt
            s = moved(rate, s, span, u[:, k].to(into.dtype) @ into.T)
            states.append(s)
        torch.testing.assert_close(core(u, clock).detach(), self.read(core, states, out, u), **EXACT)

    def test_dirac_strikes_after_the_gap(self) -> None:
        core, rate, into, out, dt = self.core(discretization="dirac")
        u, clock = torch.randn(B, L, C, dtype=torch.float64), clocks(True)
        s, states = torch.zeros(B, 8, dtype=torch.complex128), []
        for k in range(L):
            s = moved(rate, s, clock[:, k, None] * dt) + u[:, k].to(into.dtype) @ into.T
            states.append(s)
        torch.testing.assert_close(core(u, clock).detach(), self.read(core, states, out, u), **EXACT)

    def test_async_holds_the_input_for_one_dt(self) -> None:
        """Event-SSM's: the gap moves the state, the event itself lasts dt."""
        core, rate, into, out, dt = self.core(discretization="async")
        u, clock = torch.randn(B, L, C, dtype=torch.float64), clocks(True)
        s, states = torch.zeros(B, 8, dtype=torch.complex128), []
        for k in range(L):
            held = moved(rate, torch.zeros_like(s), dt, u[:, k].to(into.dtype) @ into.T)
            s = moved(rate, s, clock[:, k, None] * dt) + held
            states.append(s)
        torch.testing.assert_close(core(u, clock).detach(), self.read(core, states, out, u), **EXACT)

    @pytest.mark.parametrize("timed", [False, True])
    def test_bilinear_is_the_trapezoidal_rule(self, timed: bool) -> None:
        """`s' - s = span/2 A (s' + s) + span B u`, as one linear system of all cells."""
        core, rate, into, out, dt = self.core(discretization="bilinear", symmetric_timesteps=True)
        u, clock = torch.randn(B, L, C, dtype=torch.float64), clocks(timed)
        span = torch.ones(B, L, 1).double() * dt if clock is None else clock[..., None] * dt  # (B, L, N)
        half = (span * rate / 2).movedim(1, -1)  # (B, N, L)
        before = torch.diag(torch.ones(L - 1), -1).to(half.dtype)
        system = torch.diag_embed(1 - half) - torch.diag_embed(1 + half) @ before
        right = (span * (u.to(into.dtype) @ into.T)).movedim(1, -1)
        states = torch.linalg.solve(system, right[..., None])[..., 0].movedim(-1, 1)
        torch.testing.assert_close(
            core(u, clock).detach(), self.read(core, list(states.unbind(1)), out, u), **EXACT
        )


class TestS7:
    @pytest.mark.parametrize("timed", [False, True])
    def test_selective_is_a_triangular_system(self, timed: bool) -> None:
        core = S7(C, 6, dtype=torch.float64)
        for parameter in core.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        h, clock = torch.randn(B, L, C, dtype=torch.float64), clocks(timed)
        with torch.no_grad():
            x = h @ core.in_proj.weight.T
            shift, into, out, skip, bias = (x @ core.x_proj.weight.T).split([6, 6 * C, 6 * C, C, 6], -1)
            into, out = into.unflatten(-1, (C, 6)), out.unflatten(-1, (C, 6))
            w = shift + core.base_params
            decay = (w**2 - 0.5) / (w**2 + 0.5)
            if clock is not None:
                decay = torch.where(decay < 0, -1.0, 1.0) * decay.abs() ** clock[..., None]
            before = torch.diag(torch.ones(L - 1, dtype=torch.float64), -1)
            system = torch.eye(L).double() - torch.diag_embed(decay.movedim(1, -1)) @ before  # (B, N, L, L)
            right = (torch.einsum("blcn,blc->bnl", into, x) + bias.movedim(1, -1))[..., None]
            s = torch.linalg.solve_triangular(system, right, upper=False)[..., 0]
            y = torch.einsum("blcn,bnl->blc", out, s) + skip * x
            want = y * torch.sigmoid(F.gelu(y) @ core.gate_proj.weight.T)
            torch.testing.assert_close(core(h, clock), want, **EXACT)

    def test_delta_solves_the_equation(self) -> None:
        core = S7(C, 6, variant="delta", dtype=torch.float64)
        core.delta_proj.bias.data.add_(3.0)  # steps of about 0.5
        core.delta_proj.weight.data.mul_(20)
        rate, into, out = (torch.view_as_complex(p.detach()) for p in (core.A, core.B, core.C))
        h, s, states = torch.randn(B, L, C, dtype=torch.float64), torch.zeros(B, 6).to(into.dtype), []
        with torch.no_grad():
            span = F.softplus(core.delta_proj(h))
            for k in range(L):
                s = moved(rate, s, span[:, k], h[:, k].to(into.dtype) @ into.T)
                states.append(s)
            y = (torch.stack(states, 1) @ out.T).real + core.D * h
            want = y * torch.sigmoid(F.gelu(y) @ core.gate_proj.weight.T)
            torch.testing.assert_close(core(h), want, **EXACT)


class TestMamba:
    @pytest.mark.parametrize("a_init", ["s4d_real", "s4d_lin"])
    @pytest.mark.parametrize("kind", ["zoh", "zoh-events", "dirac-events"])
    def test_the_equation(self, kind: str, a_init: str) -> None:
        """`zoh`: B x held for delta; with events the state moves by the clock's span instead."""
        discretization, _, events = kind.partition("-")
        core = Mamba(
            C, 4, 1, dt_min=0.05, dt_max=0.5, a_init=a_init, discretization=discretization,
            event_mode=bool(events), dtype=torch.float64,
        )  # fmt: skip
        h, clock = torch.randn(B, L, C, dtype=torch.float64), clocks(bool(events))
        with torch.no_grad():
            x, z = (h @ core.in_proj.weight.T).chunk(2, -1)
            x = F.silu(x * core.conv1d.weight[:, 0, 0] + core.conv1d.bias)
            low, into, out = core.x_proj(x).split([1, 4, 4], -1)
            delta = F.softplus(core.dt_proj(low))  # (B, L, D)
            rate = -core.A_log.exp()
            rate = torch.complex(rate, core.A_imag) if a_init == "s4d_lin" else rate
            s, outputs = torch.zeros(B, 2 * C, 4, dtype=rate.dtype), []
            for k in range(L):
                struck = into[:, k, None] * x[:, k, :, None]
                d = delta[:, k, :, None]
                if events:
                    d_state = clock[:, k, None, None] * F.softplus(core.dtA_proj.bias)[:, None]
                    held = moved(rate, torch.zeros_like(s), d, struck) if discretization == "zoh" else struck
                    s = moved(rate, s, d_state) + held
                else:
                    s = moved(rate, s, d, struck)
                read = (s * out[:, k, None]).sum(-1)
                outputs.append((2 * read.real if s.is_complex() else read) + core.D * x[:, k])
            want = (torch.stack(outputs, 1) * F.silu(z)) @ core.out_proj.weight.T
            torch.testing.assert_close(core(h, clock), want, **EXACT)
