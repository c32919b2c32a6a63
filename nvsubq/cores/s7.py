"""S7: a state space whose every coefficient, or whose step, is made from the input."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvsubq.cores.base import (
    DISCRETIZATIONS,
    LTV_LRNN,
    check_at_least,
    check_bool,
    check_step_input,
    check_timesteps,
    mask_absent,
    parse_dtype,
    state_dtype,
)
from nvsubq.cores.bilinear import bilinear_form
from nvsubq.cores.cache import check_cache, own_states, write_cache
from nvsubq.cores.complex_pairs import project_in, read_out, start_at_hippo
from nvsubq.cores.fusing import is_plain
from nvsubq.ops import linear_scan, linear_state_update
from nvsubq.ops.numerics import complex_of, expm1_over, inverse_softplus

VARIANTS = ("selective", "delta")
_DT_MIN, _DT_MAX = 0.001, 0.1
_LEAST_DECAY = 1e-6  # whose logarithm a timestep multiplies


class S7(LTV_LRNN):
    """S7 core (Soydan et al., arXiv:2410.03464): `out = sigmoid(W_gate GELU(y)) y`, y by one of two rules.

    `selective`: `x = W_in h; (lambda [N], B [C, N], C [C, N], D [C], b [N]) = W_x x`, and
    `s_k = f(lambda_k + base) s_{k-1} + B_k^T x_k + b_k; y_k = C_k s_k + D_k x_k`, real, with
    `f(w) = 1 - 1/(w^2 + 1/2)` in [-1, 1). Given `integration_timesteps` dt_k, the decay is
    `sign(f) |f|^dt_k`. `B_k` and `C_k` are never laid out for all cells: their products are bilinear forms
    (but where `x_proj` has a hook or an adapter, which has to be called).

    `delta`: S5's complex diagonal Lambda, fixed B, C, D, and a step made from the input:
    `Delta_k = softplus(W h_k + b); Abar_k = exp(Delta_k Lambda)` `[N]`,
    `s_k = Abar_k s_{k-1} + (Abar_k - 1)/Lambda (B h_k); y_k = Re(C s_k) + D h_k`. Timesteps multiply Delta in
    the decay only.

    Args:
        d_model: width `C` of input and output.
        d_state: number `N` of states, real in `selective`, complex in `delta`.
        J: number of equal blocks that the states start as.
        use_fast_path: False runs on the portable `torch` backend.
        layer_idx: number of the layer, for callers that count layers.
        device: of the parameters.
        dtype: of the projections; `base_params`, `A`, `D` and `delta_proj` are fp32 at least.
        variant: "selective" (the paper's) or "delta".
        residual: add the input to the output.

    Raises:
        ValueError: an unknown `variant`, a size below 1, or a `J` that does not divide `d_state`.

    Example:
        >>> import torch
        >>> from nvsubq.cores import S7
        >>> core = S7(d_model=8, d_state=16)
        >>> core(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    discretizations = DISCRETIZATIONS["S7"]
    capturable = True
    carries = True

    def __init__(
        self,
        d_model: int,
        d_state: int,
        J: int = 1,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        variant: str = "selective",
        residual: bool = False,
    ) -> None:
        super().__init__(None)
        check_bool(use_fast_path=use_fast_path, residual=residual)
        check_at_least(1, d_model=d_model, d_state=d_state, J=J)
        if d_state % J:
            raise ValueError(f"`J` (={J}) must divide `d_state` (={d_state}).")
        if variant not in VARIANTS:
            raise ValueError(f"`variant` (={variant!r}) must be one of {', '.join(map(repr, VARIANTS))}.")
        self.d_model, self.d_state, self.J = d_model, d_state, J
        self.variant, self.residual = variant, residual
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx

        dtype = parse_dtype(dtype)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        kept: dict[str, Any] = {"device": device, "dtype": state_dtype(dtype)}
        if variant == "selective":
            self.in_proj = nn.Linear(d_model, d_model, bias=False, **made)
            self.x_proj = nn.Linear(d_model, sum(self._rows()), bias=False, **made)
            self.base_params = nn.Parameter(torch.empty(d_state, **kept))
            unlearned = [self.base_params]
        else:
            self.A = nn.Parameter(torch.empty(d_state, 2, **kept))
            self.B = nn.Parameter(torch.empty(d_state, d_model, 2, **made))
            self.C = nn.Parameter(torch.empty(d_model, d_state, 2, **made))
            self.D = nn.Parameter(torch.empty(d_model, **kept))
            self.delta_proj = nn.Linear(d_model, d_state, **kept)
            unlearned = [self.A, self.D, self.delta_proj.bias]
        self.gate_proj = nn.Linear(d_model, d_model, bias=False, **made)
        for parameter in unlearned:
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.reset_parameters()

    def _rows(self) -> tuple[int, int, int, int, int]:
        """Rows of `x_proj`: those of lambda, B, C, D and b."""
        n, products = self.d_state, self.d_state * self.d_model
        return n, products, products, self.d_model, n

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew from torch's generator; a block's decays start spread over time scales."""
        self.gate_proj.reset_parameters()
        size = self.d_state // self.J
        if self.variant == "selective":
            self.in_proj.reset_parameters()
            nn.init.normal_(self.x_proj.weight, std=0.02)
            # -1/2 everywhere, as the seed's package has it, is a decay of -1/3: no memory.
            dt = torch.logspace(math.log10(_DT_MIN), math.log10(_DT_MAX), size, dtype=torch.float64)
            forgets = -torch.expm1(-dt / 2)
            self.base_params.copy_(torch.sqrt(1 / forgets - 0.5).repeat(self.J))
            return
        start_at_hippo(self.A, self.B, self.C, self.D, self.J)
        nn.init.normal_(self.delta_proj.weight, std=0.02)
        drawn = torch.rand(self.d_state, dtype=torch.float64, device="cpu")
        dt = torch.exp(drawn * math.log(_DT_MAX / _DT_MIN) + math.log(_DT_MIN))
        self.delta_proj.bias.copy_(inverse_softplus(dt))

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
            integration_timesteps: `[B, L]`, time between a cell and the one before it.
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
        walk = self.parse_walk(hidden_states, lengths, inference_cache, seq_idx, order, reverse)
        batch, length, _ = hidden_states.shape
        if integration_timesteps is not None:
            integration_timesteps = check_timesteps(integration_timesteps, batch, length)
            # Decays and steps made of them here have gradients: 0 times what lies in padding may be NaN.
            integration_timesteps = mask_absent(integration_timesteps[..., None], walk["seq_idx"])[..., 0]
        h = mask_absent(hidden_states, walk["seq_idx"])
        a, b, options, read_out = self._recurrence(h, integration_timesteps)
        if inference_cache is None:
            s: Any = linear_scan(a, b, **options, **walk)
        else:
            state = inference_cache["lrnn_state"]
            s, state = linear_scan(a, b, initial_state=state, return_final_state=True, **options, **walk)
            write_cache(inference_cache, length, lrnn_state=state)
        return self._gated(read_out(s), h)

    def step(
        self,
        hidden_states: Tensor,
        inference_cache: dict[str, Any],
        integration_timesteps: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Advance by one cell; without grad the state is updated at a fixed address.

        Args:
            hidden_states: the cell `[B, 1, C]`.
            inference_cache: from `allocate_inference_cache`, changed in place.
            integration_timesteps: `[B]` or `[B, 1]`.

        Returns:
            output `[B, 1, C]` and the cache.

        Raises:
            ValueError: a wrong shape.
        """
        check_step_input(hidden_states, self.d_model, "hidden_states")
        if integration_timesteps is not None:
            integration_timesteps = check_timesteps(integration_timesteps, hidden_states.shape[0], 1)
        if torch.is_grad_enabled():  # the one-step operators have no autograd
            y = self.forward(hidden_states, integration_timesteps, inference_cache=inference_cache)
            return y, inference_cache
        check_cache(inference_cache, hidden_states.shape[0])
        own_states(inference_cache)
        h = hidden_states[:, 0]
        timesteps = None if integration_timesteps is None else integration_timesteps[:, 0]
        a, b, options, read_out = self._recurrence(h, timesteps)
        s = linear_state_update(inference_cache["lrnn_state"], a, b, **options, backend=self.backend)
        inference_cache["seqlen_offset"] += 1
        return self._gated(read_out(s), h)[:, None], inference_cache

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> dict[str, Any]:
        """Make the cache of a walk that has not begun.

        Args:
            batch_size: `B`.
            max_seqlen: accepted for the interface; the state does not grow.
            dtype: accepted for the interface; the state is fp32 (fp64 for an fp64 core), complex in `delta`.

        Returns:
            `lrnn_state` `[B, N]` and `seqlen_offset`.
        """
        own = self.base_params if self.variant == "selective" else self.A
        dtype = state_dtype(own.dtype) if self.variant == "selective" else complex_of(state_dtype(own.dtype))
        state = torch.zeros(batch_size, self.d_state, dtype=dtype, device=own.device)
        return {"lrnn_state": state, "seqlen_offset": 0}

    def _recurrence(self, h: Tensor, timesteps: Tensor | None) -> tuple[Any, ...]:
        """Decays, inputs `[..., N]` and options of the scan, and what makes y `[..., C]` of its states."""
        return self._selective(h, timesteps) if self.variant == "selective" else self._stepped(h, timesteps)

    def _selective(self, h: Tensor, timesteps: Tensor | None) -> tuple[Any, ...]:
        exact = state_dtype(self.base_params.dtype)
        x = self.in_proj(h)
        shift, bias, skip, inputs, by_C = self._coefficients(x)
        a = self._decay(shift.to(exact) + self.base_params.to(exact), timesteps)
        inputs = inputs.to(exact) + bias.to(exact)
        return a, inputs, {}, lambda s: by_C(s.to(x.dtype)) + skip * x

    def _coefficients(self, x: Tensor) -> tuple[Any, ...]:
        """lambda, b and D, the inputs `B^T x` `[..., N]`, and what multiplies states by C."""
        if not (is_plain(self.x_proj, nn.Linear) and self.x_proj.bias is None):
            # An adapter or a hook: only calling it tells what it makes of x, with B and C laid out.
            shift, B, C, skip, bias = self.x_proj(x).to(x.dtype).split(self._rows(), dim=-1)
            B, C = (t.unflatten(-1, (self.d_model, self.d_state)) for t in (B, C))
            inputs = torch.matmul(x.unsqueeze(-2), B).squeeze(-2)
            return shift, bias, skip, inputs, lambda s: torch.matmul(C, s.unsqueeze(-1)).squeeze(-1)
        by_lambda, by_B, by_C, by_D, by_b = self.x_proj.weight.to(x.dtype).split(self._rows())
        small = F.linear(x, torch.cat((by_lambda, by_b, by_D)))
        shift, bias, skip = small.split((self.d_state, self.d_state, self.d_model), dim=-1)
        # B_k^T x_k and C_k s_k, with B_k and C_k linear in x_k.
        by_B, by_C = (rows.unflatten(0, (self.d_model, self.d_state)) for rows in (by_B, by_C))
        inputs = bilinear_form(x, x, by_B.transpose(0, 1))
        return shift, bias, skip, inputs, lambda s: bilinear_form(s, x, by_C)

    @staticmethod
    def _decay(w: Tensor, timesteps: Tensor | None) -> Tensor:
        decay = 1.0 - 1.0 / (w * w + 0.5)
        if timesteps is None:
            return decay
        rate = decay.abs().clamp(min=_LEAST_DECAY).log()
        return decay.sign() * torch.exp(timesteps.to(w.dtype).unsqueeze(-1) * rate)

    def _stepped(self, h: Tensor, timesteps: Tensor | None) -> tuple[Any, ...]:
        exact = state_dtype(self.A.dtype)
        if is_plain(self.delta_proj, nn.Linear):
            # The bias is added in fp32 whatever autocast makes of the product: steps span decades.
            rows = F.linear(h.to(exact), self.delta_proj.weight.to(exact)).to(exact)
            rows = rows + self.delta_proj.bias.to(exact)
        else:
            rows = self.delta_proj(h.to(self.A.dtype)).to(exact)  # its parameters are kept as A is
        delta = F.softplus(rows)
        rates = torch.view_as_complex(self.A.to(exact))
        b = project_in(h, self.B, exact)
        options: dict[str, Any] = {"dt": delta, "discretization": "zoh", "input_scale": "zoh"}
        if timesteps is not None:
            b = b * delta * expm1_over(delta * rates)
            options |= {"dt": timesteps.to(exact).unsqueeze(-1) * delta, "input_scale": "none"}
        return rates, b, options, lambda s: read_out(s, h, self.C, self.D)

    def _gated(self, y: Tensor, h: Tensor) -> Tensor:
        out = torch.sigmoid(self.gate_proj(F.gelu(y))) * y
        return out + h if self.residual else out

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, d_state={self.d_state}, J={self.J}, variant={self.variant!r}"
