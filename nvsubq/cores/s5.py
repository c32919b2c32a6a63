"""S5: one time-invariant diagonal complex state space of many inputs and outputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nvsubq.cores import fused_steps
from nvsubq.cores.base import (
    DISCRETIZATIONS,
    LTV_LRNN,
    check_at_least,
    check_bool,
    check_dt_range,
    check_number,
    check_step_input,
    check_timesteps,
    mask_absent,
    parse_dtype,
    state_dtype,
)
from nvsubq.cores.cache import check_cache, own_states, write_cache
from nvsubq.cores.complex_pairs import project_in, read_out, start_at_hippo
from nvsubq.ops import linear_scan, linear_state_update
from nvsubq.ops.numerics import complex_of, expm1_over

_HIGHEST_REAL_PART = -1e-4  # of Lambda, where it is clipped


class S5(LTV_LRNN):
    """S5 core (Smith et al., openreview Ai8Hw3AXqks); events as the `async` of Event-SSM (arXiv:2404.18508).

    `dt = exp(log_dt) step_rescale; s_k = Abar_k s_{k-1} + gamma (B u_k); y_k = kappa Re(C s_k) + D u_k`,
    kappa 2 with `conj_sym`, else 1. Given `integration_timesteps` dt_k, the decay is that of `dt_k dt`, the
    input coefficient gamma keeps dt (the seed's asymmetric form; Event-SSM's own `zoh` moves both).

    Args:
        d_model: width `C` of input and output.
        d_state: number `N` of complex states.
        discretization: "zoh" or "async" (the same), "bilinear", or "dirac" (gamma 1).
        conj_sym: keep N of 2N conjugate eigenpairs and take twice the real part.
        dt_min: least dt at the start.
        dt_max: greatest dt at the start.
        step_rescale: factor on dt, for another sampling rate than in training.
        use_fast_path: False runs on the portable `torch` backend.
        device: of the parameters.
        dtype: of `B` and `C`; `A`, `D` and `log_dt` are fp32 at least.
        blocks: number J of equal HiPPO blocks that the states start as.
        clip_eigs: keep the real parts of Lambda at -1e-4 at most: no training makes the core unstable.
        symmetric_timesteps: timesteps move the input coefficient too (the `zoh` of Event-SSM).

    Raises:
        ValueError: an unknown `discretization`, a size or range that cannot be, `blocks` that do not divide
            `d_state`.

    Example:
        >>> import torch
        >>> from nvsubq.cores import S5
        >>> core = S5(d_model=8, d_state=16)
        >>> core(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    discretizations = DISCRETIZATIONS["S5"]
    capturable = True
    carries = True

    def __init__(
        self,
        d_model: int,
        d_state: int,
        discretization: str = "zoh",
        conj_sym: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        step_rescale: float = 1.0,
        use_fast_path: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        blocks: int = 1,
        clip_eigs: bool = False,
        symmetric_timesteps: bool = False,
    ) -> None:
        super().__init__(discretization)
        check_bool(conj_sym=conj_sym, use_fast_path=use_fast_path)
        check_bool(clip_eigs=clip_eigs, symmetric_timesteps=symmetric_timesteps)
        check_at_least(1, d_model=d_model, d_state=d_state, blocks=blocks)
        if d_state % blocks:
            raise ValueError(f"`blocks` (={blocks}) must divide `d_state` (={d_state}).")
        check_dt_range(dt_min, dt_max)
        check_number(step_rescale=step_rescale)
        if not step_rescale > 0:
            raise ValueError(f"`step_rescale` (={step_rescale}) must be positive.")
        self.d_model, self.d_state, self.conj_sym = d_model, d_state, conj_sym
        self.dt_min, self.dt_max, self.step_rescale = dt_min, dt_max, step_rescale
        self.use_fast_path = use_fast_path
        self.blocks, self.clip_eigs, self.symmetric_timesteps = blocks, clip_eigs, symmetric_timesteps

        dtype = parse_dtype(dtype)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        kept: dict[str, Any] = {"device": device, "dtype": state_dtype(dtype)}
        self.A = nn.Parameter(torch.empty(d_state, 2, **kept))
        self.B = nn.Parameter(torch.empty(d_state, d_model, 2, **made))
        self.C = nn.Parameter(torch.empty(d_model, d_state, 2, **made))
        self.D = nn.Parameter(torch.empty(d_model, **kept))
        self.log_dt = nn.Parameter(torch.empty(d_state, **kept))
        for parameter in (self.A, self.D, self.log_dt):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at HiPPO-LegS, with B, C, D and dt drawn from torch's generator."""
        start_at_hippo(self.A, self.B, self.C, self.D, self.blocks, half=self.conj_sym)
        drawn = torch.rand(self.d_state, dtype=torch.float64, device="cpu")
        self.log_dt.copy_(drawn * math.log(self.dt_max / self.dt_min) + math.log(self.dt_min))

    def forward(
        self,
        x: Tensor,
        integration_timesteps: Tensor | None = None,
        lengths: Tensor | None = None,
        inference_cache: dict[str, Any] | None = None,
        *,
        seq_idx: Tensor | None = None,
        order: Tensor | None = None,
        reverse: bool = False,
    ) -> Tensor:
        """Run along the walk.

        Args:
            x: input `[B, L, C]`.
            integration_timesteps: `[B, L]`, time between a cell and the one before it, in units of dt.
            lengths: `[B]`, cells that are there, counted in memory order.
            inference_cache: cache to continue from; it is changed in place.
            seq_idx: `[B, L]`, the sequence of each cell; negative where there is none.
            order: `[L]`, the cells in the order of the walk.
            reverse: walk from the end.

        Returns:
            output `[B, L, C]`.

        Raises:
            ValueError: a wrong shape, or `reverse` with a cache.
        """
        walk = self.parse_walk(x, lengths, inference_cache, seq_idx, order, reverse, name="x")
        batch, length, _ = x.shape
        if integration_timesteps is not None:
            integration_timesteps = check_timesteps(integration_timesteps, batch, length)
        u = mask_absent(x, walk["seq_idx"])
        a, b, options = self._recurrence(u, integration_timesteps)
        if inference_cache is None:
            s: Any = linear_scan(a, b, **options, **walk)
        else:
            state = inference_cache["lrnn_state"]
            s, state = linear_scan(a, b, initial_state=state, return_final_state=True, **options, **walk)
            write_cache(inference_cache, length, lrnn_state=state)
        return self._read_out(s, u)

    def step(
        self, x: Tensor, inference_cache: dict[str, Any], integration_timesteps: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Advance by one cell; without grad the state is updated at a fixed address.

        Args:
            x: the cell `[B, 1, C]` or `[B, C]`.
            inference_cache: from `allocate_inference_cache`, changed in place.
            integration_timesteps: `[B]` or `[B, 1]`.

        Returns:
            output, shaped like `x`, and the cache.

        Raises:
            ValueError: a wrong shape.
        """
        if x.dim() == 2:
            y, inference_cache = self.step(x[:, None], inference_cache, integration_timesteps)
            return y[:, 0], inference_cache
        check_step_input(x, self.d_model, "x")
        if integration_timesteps is not None:
            integration_timesteps = check_timesteps(integration_timesteps, x.shape[0], 1)
        if torch.is_grad_enabled():  # the one-step operators have no autograd
            y = self.forward(x, integration_timesteps, inference_cache=inference_cache)
            return y, inference_cache
        check_cache(inference_cache, x.shape[0])
        own_states(inference_cache)
        if integration_timesteps is not None:
            integration_timesteps = integration_timesteps[:, 0].to(state_dtype(self.A.dtype))
        out: Any = fused_steps.s5(self, x, inference_cache, integration_timesteps)
        if out is None:
            out = self._composed_step(x, inference_cache, integration_timesteps)
        inference_cache["seqlen_offset"] += 1
        return out, inference_cache

    def _composed_step(self, x: Tensor, cache: dict[str, Any], timesteps: Tensor | None) -> Tensor:
        u = x[:, 0]
        a, b, options = self._recurrence(u, timesteps)
        s = linear_state_update(cache["lrnn_state"], a, b, **options, backend=self.backend)
        return self._read_out(s, u)[:, None]

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> dict[str, Any]:
        """Make the cache of a walk that has not begun.

        Args:
            batch_size: `B`.
            max_seqlen: accepted for the interface; the state does not grow.
            dtype: accepted for the interface; the state is complex64, or complex128 for an fp64 core.

        Returns:
            `lrnn_state` `[B, N]`, the same tensor as `ssm_state`, and `seqlen_offset`.
        """
        dtype = complex_of(state_dtype(self.A.dtype))
        state = torch.zeros(batch_size, self.d_state, dtype=dtype, device=self.A.device)
        return {"lrnn_state": state, "ssm_state": state, "seqlen_offset": 0}

    def _recurrence(self, u: Tensor, timesteps: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Decays (rates, with timesteps) `[N]`, inputs gamma B u `[..., N]`, and the op's options."""
        exact = state_dtype(self.A.dtype)
        dt, rates = self._rates()
        decays, options = rates, {}
        if timesteps is None:
            decays, gamma = self._discretize(dt, rates)
        else:
            kind = "bilinear" if self.discretization == "bilinear" else "zoh"
            options = {"dt": timesteps.to(exact), "discretization": kind}
            if self.symmetric_timesteps and self.discretization != "dirac":
                options["input_scale"] = kind  # that of dt_k rates, so what is left is dt
                gamma = dt.to(rates.dtype)
            else:
                _, gamma = self._discretize(dt, rates)
        b = torch.view_as_complex(self.B.to(exact)) * gamma.to(complex_of(exact))[:, None]  # (N, C)
        inputs = project_in(u, torch.view_as_real(b).to(self.B.dtype), exact)
        return decays.to(complex_of(exact)), inputs, options

    def _rates(self) -> tuple[Tensor, Tensor]:
        """dt and dt Lambda `[N]` in fp64: in fp32 a phase of 130 radians is 1e-5 off."""
        dt = torch.exp(self.log_dt.double()) * self.step_rescale
        real, imaginary = self.A.double().unbind(-1)
        real = real.clamp(max=_HIGHEST_REAL_PART) if self.clip_eigs else real
        return dt, torch.complex(real, imaginary) * dt

    def _discretize(self, dt: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
        """Abar and gamma `[N]`."""
        if self.discretization == "bilinear":
            below = 1.0 / (1.0 - rates / 2.0)
            return (1.0 + rates / 2.0) * below, dt * below
        if self.discretization == "dirac":
            return torch.exp(rates), torch.ones_like(rates)
        return torch.exp(rates), dt * expm1_over(rates)  # zoh, async

    def _read_out(self, s: Tensor, u: Tensor) -> Tensor:
        return read_out(s, u, self.C, self.D, 2.0 if self.conj_sym else 1.0)

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, d_state={self.d_state}, discretization={self.discretization!r}, "
            f"conj_sym={self.conj_sym}"
        )
