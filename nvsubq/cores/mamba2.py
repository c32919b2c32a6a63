"""Mamba2: heads with one scalar decay each (SSD) behind a convolution over x, B and C together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
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
    check_whole,
    mask_absent,
    parse_dtype,
    state_dtype,
)
from nvsubq.cores.cache import check_cache, own_states, write_cache
from nvsubq.cores.norm import GroupRMSNorm
from nvsubq.cores.projecting import normed_project, split_project
from nvsubq.ops import causal_conv1d, causal_conv1d_update, ssd_scan, ssd_state_update
from nvsubq.ops.numerics import inverse_softplus


class Mamba2(LTV_LRNN):
    """Mamba2 core (Dao & Gu, arXiv:2405.21060).

    `(z0, x0, z, xBC, d) = W_in h; (x, B, C) = SiLU(conv(xBC)); delta = softplus(d + dt_bias);
    A = -exp(A_log); s_k = exp(delta_k A_h) s_{k-1} + delta_k x_k B_k^T; y_k = s_k C_k + D x_k;
    out = W_out [SiLU(z0) * x0, norm(y * SiLU(z))]`, z0 and x0 only where `d_ssm` is less than the inner width
    `E = int(expand * d_model)`. Parameters are named and shaped as in `mamba_ssm.Mamba2`, whose weights load
    as they are.

    Args:
        d_model: width `C` of input and output.
        d_state: state size `N` of each channel.
        d_conv: width `K` of the causal convolution.
        conv_init: convolution weights uniform in `[-conv_init, conv_init]`; None: torch's default.
        expand: inner width `E = int(expand * d_model)`.
        headdim: channels `P` of a head; must divide `d_ssm`.
        d_ssm: channels that the recurrence takes; the other `E - d_ssm` are a gated MLP. None: all of `E`.
        ngroups: groups `G` of heads that share B and C, and of channels that are normalised together.
        A_init_range: least and greatest `-A` at the start.
        D_has_hdim: `D` for each channel in place of each head.
        rmsnorm: normalise before `out_proj`; else only gate.
        norm_before_gate: `norm(y) * SiLU(z)` in place of `norm(y * SiLU(z))`.
        dt_min: least delta at the start.
        dt_max: greatest delta at the start.
        dt_init_floor: floor of the initial delta.
        dt_limit: delta is clamped to this range.
        bias: biases of `in_proj` and `out_proj`.
        conv_bias: bias of the convolution.
        chunk_size: cells that the scan takes at once.
        use_mem_eff_path: False runs on the portable `torch` backend.
        layer_idx: number of the layer, kept for those who cache by layer.
        device: of the parameters.
        dtype: of the parameters; `A_log`, `D` and `dt_bias` are fp32 at least.

    Raises:
        ValueError: a size or range that cannot be, such as a `headdim` that does not divide `d_ssm`.

    Example:
        >>> import torch
        >>> from nvsubq.cores import Mamba2
        >>> core = Mamba2(d_model=8, d_state=4, headdim=4)
        >>> core(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    discretizations = DISCRETIZATIONS["Mamba2"]
    capturable = True
    carries = True

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: Sequence[float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: Sequence[float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        super().__init__(None)
        check_bool(D_has_hdim=D_has_hdim, rmsnorm=rmsnorm, norm_before_gate=norm_before_gate)
        check_bool(bias=bias, conv_bias=conv_bias, use_mem_eff_path=use_mem_eff_path)
        check_at_least(1, d_model=d_model, d_state=d_state, d_conv=d_conv, chunk_size=chunk_size)
        check_at_least(0.0, expand=expand)
        check_whole(headdim=headdim, ngroups=ngroups)
        check_number(dt_init_floor=dt_init_floor)
        check_dt_range(dt_min, dt_max)
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        check_whole(d_ssm=self.d_ssm)
        self.nheads = _heads(self.d_inner, self.d_ssm, headdim, ngroups)
        self.headdim, self.ngroups, self.D_has_hdim = headdim, ngroups, D_has_hdim
        if norm_before_gate and not rmsnorm:
            raise ValueError(
                "`norm_before_gate` (=True) must be False with `rmsnorm` (=False): there is no norm."
            )
        self.rmsnorm, self.norm_before_gate = rmsnorm, norm_before_gate
        self.A_init_range = _ascending("A_init_range", A_init_range)
        if self.A_init_range[0] <= 0:
            raise ValueError(f"`A_init_range` (={self.A_init_range}) must be positive: A = -exp(A_log).")
        self.dt_min, self.dt_max, self.dt_init_floor = dt_min, dt_max, dt_init_floor
        self.dt_limit = _ascending("dt_limit", dt_limit)
        if self.dt_limit[0] < 0:
            raise ValueError(f"`dt_limit` (={self.dt_limit}) must not be negative.")
        self.conv_init, self.chunk_size = conv_init, chunk_size
        if conv_init is not None:
            check_at_least(0.0, conv_init=conv_init)
        self.use_fast_path = self.use_mem_eff_path = use_mem_eff_path
        self.layer_idx = layer_idx

        d_mlp = self.d_inner - self.d_ssm
        d_conv_in = self.d_ssm + 2 * ngroups * d_state
        # Rows of in_proj: z0, x0 (the MLP's), z, then x, B, C together, then delta.
        self._rows = (d_mlp, d_mlp, self.d_ssm, d_conv_in, self.nheads)
        self._conv_rows = (self.d_ssm, ngroups * d_state, ngroups * d_state)
        dtype = parse_dtype(dtype)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        kept: dict[str, Any] = {"device": device, "dtype": state_dtype(dtype)}
        self.in_proj = nn.Linear(d_model, sum(self._rows), bias=bias, **made)
        self.conv1d = nn.Conv1d(
            d_conv_in, d_conv_in, d_conv, groups=d_conv_in, padding=d_conv - 1, bias=conv_bias, **made
        )
        self.dt_bias = nn.Parameter(torch.empty(self.nheads, **kept))
        self.A_log = nn.Parameter(torch.empty(self.nheads, **kept))
        self.D = nn.Parameter(torch.empty(self.d_ssm if D_has_hdim else self.nheads, **kept))
        self.norm = GroupRMSNorm(self.d_ssm, ngroups, eps=1e-5, **made) if rmsnorm else None
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **made)
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self._reset_recurrence()

    def reset_parameters(self) -> None:
        """Draw all parameters anew from torch's generator."""
        for layer in self.children():
            layer.reset_parameters()  # type: ignore[operator]
        self._reset_recurrence()

    @torch.no_grad()
    def _reset_recurrence(self) -> None:
        if self.conv_init is not None:
            self.conv1d.weight.uniform_(-self.conv_init, self.conv_init)
        log_dt = torch.empty_like(self.dt_bias).uniform_(math.log(self.dt_min), math.log(self.dt_max))
        dt = log_dt.exp().clamp(min=self.dt_init_floor)
        self.dt_bias.copy_(inverse_softplus(dt))
        self.A_log.uniform_(*self.A_init_range).log_()
        self.D.fill_(1.0)

    def forward(
        self,
        hidden_states: Tensor,
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
            hidden_states: input `[B, L, C]`.
            integration_timesteps: must be None; the core has no clock.
            lengths: `[B]`, cells that are there, counted in memory order.
            inference_cache: cache to continue from; it is changed in place.
            seq_idx: `[B, L]`, the sequence of each cell; negative where there is none.
            order: `[L]`, the cells in the order of the walk.
            reverse: walk from the end.

        Returns:
            output `[B, L, C]`.

        Raises:
            ValueError: a wrong shape, timesteps, or `reverse` with a cache.
        """
        self.refuse_timesteps(integration_timesteps)
        walk = self.parse_walk(hidden_states, lengths, inference_cache, seq_idx, order, reverse)
        seq_idx = walk["seq_idx"]
        hidden_states = mask_absent(hidden_states, seq_idx)
        z0, x0, z, xBC, dt = split_project(self, "in_proj", hidden_states, self._rows)
        conv = self.conv1d.weight[:, 0], self.conv1d.bias
        options = {"chunk_size": self.chunk_size} | self._scan_options(z) | walk
        if inference_cache is None:
            u: Any = causal_conv1d(xBC, *conv, activation="silu", **walk)
            y: Any = ssd_scan(*self._scan_inputs(u, dt), **options)
        else:
            walk |= {"initial_state": inference_cache["conv_state"], "return_final_state": True}
            u, conv_state = causal_conv1d(xBC, *conv, activation="silu", **walk)
            options |= {"initial_state": inference_cache["lrnn_state"], "return_final_state": True}
            y, state = ssd_scan(*self._scan_inputs(u, dt), **options)
            write_cache(inference_cache, hidden_states.shape[1], conv_state=conv_state, lrnn_state=state)
        out = self._output(z0, x0, z, y)
        return out if self.out_proj.bias is None else mask_absent(out, seq_idx)

    def step(
        self,
        hidden_states: Tensor,
        inference_cache: dict[str, Any],
        integration_timesteps: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Advance by one cell; without grad the states are updated at fixed addresses.

        Args:
            hidden_states: the cell `[B, 1, C]`.
            inference_cache: from `allocate_inference_cache`, changed in place.
            integration_timesteps: must be None.

        Returns:
            output `[B, 1, C]` and the cache.

        Raises:
            ValueError: a wrong shape, or timesteps.
        """
        self.refuse_timesteps(integration_timesteps)
        check_step_input(hidden_states, self.d_model, "hidden_states")
        if torch.is_grad_enabled():  # the one-step operators have no autograd
            return self.forward(hidden_states, inference_cache=inference_cache), inference_cache
        check_cache(inference_cache, hidden_states.shape[0])
        own_states(inference_cache)
        y: Any = fused_steps.mamba2(self, hidden_states, inference_cache)
        if y is None:
            y = self._composed_step(hidden_states, inference_cache)
        inference_cache["seqlen_offset"] += 1
        return y, inference_cache

    def _composed_step(self, x: Tensor, cache: dict[str, Any]) -> Tensor:
        z0, x0, z, xBC, dt = self.in_proj(x[:, 0]).split(self._rows, dim=-1)
        xBC = causal_conv1d_update(
            cache["conv_state"],
            xBC,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            activation="silu",
            backend=self.backend,
        )
        y = ssd_state_update(
            cache["lrnn_state"],
            *self._scan_inputs(xBC, dt),
            **self._scan_options(z),
            backend=self.backend,
        )
        out: Tensor = self.out_proj(self._join(z0, x0, z, y))[:, None]
        return out

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> dict[str, Any]:
        """Make the cache of a walk that has not begun.

        Args:
            batch_size: `B`.
            max_seqlen: accepted for the interface; the states do not grow.
            dtype: of the convolution's inputs (default: the weights'); the recurrent state is fp32, or fp64.

        Returns:
            `conv_state` `[B, d_ssm + 2GN, K]`, newest last, `lrnn_state` `[B, H, P, N]` and `seqlen_offset`.
        """
        weight = self.conv1d.weight
        dtype = weight.dtype if dtype is None else parse_dtype(dtype)
        exact = state_dtype(weight.dtype)
        state = (batch_size, self.nheads, self.headdim, self.d_state)
        return {
            "conv_state": torch.zeros(
                batch_size, weight.shape[0], self.d_conv, dtype=dtype, device=weight.device
            ),
            "lrnn_state": torch.zeros(state, dtype=exact, device=weight.device),
            "seqlen_offset": 0,
        }

    def _scan_inputs(self, xBC: Tensor, dt: Tensor) -> tuple[Tensor, ...]:
        """x, delta without its bias, A, B, C and D, from the convolved `xBC` `[..., d_ssm + 2GN]`."""
        x, B, C = xBC.split(self._conv_rows, dim=-1)
        B, C = (t.unflatten(-1, (self.ngroups, self.d_state)) for t in (B, C))
        exact = state_dtype(self.A_log.dtype)
        D = self.D.to(exact)
        if self.D_has_hdim:
            D = D.view(self.nheads, self.headdim)
        return self._by_head(x), dt, -torch.exp(self.A_log.to(exact)), B, C, D

    def _scan_options(self, z: Tensor) -> dict[str, Any]:
        return {
            "z": None if self.norm_before_gate else self._by_head(z),  # the scan's gate: y * SiLU(z)
            "dt_bias": self.dt_bias.to(state_dtype(self.dt_bias.dtype)),
            "dt_softplus": True,
            "dt_limit": self.dt_limit,
        }

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.nheads, self.headdim))

    def _output(self, z0: Tensor, x0: Tensor, z: Tensor, y: Tensor) -> Tensor:
        if self.norm is not None and not self.norm_before_gate and self.d_ssm == self.d_inner:
            out = normed_project(self, "norm", "out_proj", y.flatten(-2))
            if out is not None:
                return out
        joined: Tensor = self.out_proj(self._join(z0, x0, z, y))
        return joined

    def _join(self, z0: Tensor, x0: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """Normalise the scan's output `[..., H, P]`, and put the MLP's before it: `[..., E]`."""
        y = y.flatten(-2)
        if self.norm is not None:
            y = self.norm(y)
        if self.norm_before_gate:
            y = y * F.silu(z)
        if self.d_ssm < self.d_inner:
            y = torch.cat([F.silu(z0) * x0, y], dim=-1)
        return y

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, d_state={self.d_state}, d_ssm={self.d_ssm}, headdim={self.headdim}, "
            f"ngroups={self.ngroups}"
        )


def _heads(d_inner: int, d_ssm: int, headdim: int, ngroups: int) -> int:
    """The number of heads, or a ValueError that says which sizes would fit."""
    if not 1 <= d_ssm <= d_inner:
        raise ValueError(
            f"`d_ssm` (={d_ssm}) must lie between 1 and the inner width `expand` * `d_model` (={d_inner})."
        )
    if headdim < 1 or d_ssm % headdim:
        divisors = ", ".join(str(width) for width in range(1, d_ssm + 1) if d_ssm % width == 0)
        raise ValueError(f"`headdim` (={headdim}) must divide `d_ssm` (={d_ssm}): one of {divisors}.")
    heads = d_ssm // headdim
    if ngroups < 1 or heads % ngroups:
        raise ValueError(
            f"`ngroups` (={ngroups}) must divide the number of heads `d_ssm` / `headdim` "
            f"(={d_ssm} / {headdim} = {heads})."
        )
    return heads


def _ascending(name: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2 or not values[0] <= values[1]:
        raise ValueError(f"`{name}` (={tuple(values)}) must be two numbers, the lesser first.")
    return float(values[0]), float(values[1])
