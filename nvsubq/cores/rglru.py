"""RG-LRU: a gated diagonal recurrence behind a short causal convolution, in Griffin's recurrent block."""

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
    check_number,
    check_step_input,
    mask_absent,
    parse_dtype,
    state_dtype,
)
from nvsubq.cores.beginnings import has_begun, lead_in
from nvsubq.cores.block_linear import BlockLinear
from nvsubq.cores.cache import check_cache, own_states, write_cache
from nvsubq.cores.fusing import bias_beside, product
from nvsubq.ops import causal_conv1d, causal_conv1d_update, rglru_scan, rglru_state_update
from nvsubq.ops.rglru import GELUS


class RGLRU(LTV_LRNN):
    """Recurrent block with the real-gated linear recurrent unit of Griffin (arXiv:2402.19427).

    `g = GELU(W_g h); x = conv(W_in h); r = sigmoid(W_r x + b_r); i = sigmoid(W_i x + b_i);
    log abar_k = c r_k log a, a = sigmoid(a_log); s_k = abar_k s_{k-1} + sqrt(1 - abar_k^2) (i_k * x_k);
    out = W_out(g * s)`.
    At the start `a` itself is uniform in `a_init_range`, as the seed's text has it (the seed's package goes
    through the wrong inverse); with `a_init="a_c"` it is `a^c`, as in the paper.

    Args:
        d_model: width `C` of input and output.
        d_conv: width `K` of the causal convolution.
        expand: inner width `D = int(expand * d_model)`.
        c: factor of the recurrence gate.
        a_init_range: least and greatest `a` at the start, in (0, 1).
        conv_bias: bias of the convolution.
        bias: biases of `gate_proj`, `in_proj` and `out_proj`; those of the two gates are always there.
        use_fast_path: False runs on the portable `torch` backend.
        layer_idx: number of the layer, kept for those who cache by layer.
        device: of the parameters.
        dtype: of the parameters; `a_log` is fp32 at least.
        gate_blocks: number n of equal blocks of W_r and W_i, whose weights are then `[n, D/n, D/n]`.
        a_init: what is uniform in `a_init_range` at the start: "a" or "a_c".
        normalize_first: False: the first input of a sequence is not scaled by the square root, as in
            recurrentgemma; the cache then knows which rows have begun.
        gelu: "erf", or its approximation by "tanh".

    Raises:
        ValueError: a size, range or name that cannot be, or `gate_blocks` that do not divide `D`.

    Example:
        >>> import torch
        >>> from nvsubq.cores import RGLRU
        >>> core = RGLRU(d_model=8)
        >>> core(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    discretizations = DISCRETIZATIONS["RGLRU"]
    capturable = True
    carries = True

    def __init__(
        self,
        d_model: int,
        d_conv: int = 4,
        expand: float = 1,
        c: float = 8.0,
        a_init_range: Sequence[float] = (0.9, 0.999),
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        gate_blocks: int = 1,
        a_init: str = "a",
        normalize_first: bool = True,
        gelu: str = "erf",
    ) -> None:
        super().__init__(None)
        check_bool(conv_bias=conv_bias, bias=bias)
        check_bool(use_fast_path=use_fast_path, normalize_first=normalize_first)
        check_at_least(1, d_model=d_model, d_conv=d_conv, gate_blocks=gate_blocks)
        check_at_least(0.0, expand=expand)
        check_number(c=c)
        for name, value, allowed in (("a_init", a_init, ("a", "a_c")), ("gelu", gelu, GELUS)):
            if value not in allowed:
                raise ValueError(f"`{name}` (={value!r}) must be one of {', '.join(map(repr, allowed))}.")
        if c <= 0:
            raise ValueError(f"`c` (={c}) must be positive.")
        low, high = _pair(a_init_range)
        if not 0 < low <= high < 1:
            raise ValueError(f"`a_init_range` (={(low, high)}) must satisfy 0 < low <= high < 1.")
        self.d_model, self.d_conv, self.expand, self.c = d_model, d_conv, expand, c
        self.a_init_range = (low, high)
        self.d_inner = int(expand * d_model)
        if self.d_inner < 1:
            raise ValueError(
                f"`expand` (={expand}) must give at least one channel of `d_model` (={d_model})."
            )
        if self.d_inner % gate_blocks:
            raise ValueError(f"`gate_blocks` (={gate_blocks}) must divide the inner width (={self.d_inner}).")
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.gate_blocks, self.a_init, self.gelu = gate_blocks, a_init, gelu
        self.normalize_first = normalize_first

        D = self.d_inner
        dtype = parse_dtype(dtype)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.gate_proj = nn.Linear(d_model, D, bias=bias, **made)
        self.in_proj = nn.Linear(d_model, D, bias=bias, **made)
        self.conv1d = nn.Conv1d(D, D, d_conv, groups=D, padding=d_conv - 1, bias=conv_bias, **made)
        self.recurrent_gate_proj = self._gate(D, made)
        self.input_gate_proj = self._gate(D, made)
        self.a_log = nn.Parameter(torch.empty(D, 1, device=device, dtype=state_dtype(dtype)))
        self.out_proj = nn.Linear(D, d_model, bias=bias, **made)
        self.a_log._no_weight_decay = True  # type: ignore[attr-defined]
        self._reset_recurrence()

    def _gate(self, width: int, made: dict[str, Any]) -> nn.Linear | BlockLinear:
        if self.gate_blocks == 1:
            return nn.Linear(width, width, bias=True, **made)
        return BlockLinear(width, self.gate_blocks, **made)

    def reset_parameters(self) -> None:
        """Draw all parameters anew from torch's generator."""
        for layer in self.children():
            layer.reset_parameters()  # type: ignore[operator]
        self._reset_recurrence()

    @torch.no_grad()
    def _reset_recurrence(self) -> None:
        # In fp64: fp32 has few numbers just below 1, and 1 itself would be an infinite logit.
        a = torch.empty_like(self.a_log, dtype=torch.float64).uniform_(*self.a_init_range)
        log_a = a.log() / self.c if self.a_init == "a_c" else a.log()
        self.a_log.copy_(log_a - torch.log(-torch.expm1(log_a)))  # sigmoid(a_log) = a

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
            integration_timesteps: must be None; the recurrence has no clock.
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
        h = mask_absent(hidden_states, seq_idx)
        gate, x = self.gate_proj(h), self.in_proj(h)  # (B, L, D) each
        conv = self.conv1d.weight[:, 0], self.conv1d.bias
        if inference_cache is None:
            u: Any = causal_conv1d(x, *conv, **walk)
            options = self._scan_options() | {"normalize_first": self.normalize_first} | walk
            y: Any = rglru_scan(*self._scan_inputs(u, gate), **options)
        else:
            options = walk | {"initial_state": inference_cache["conv_state"], "return_final_state": True}
            u, conv_state = causal_conv1d(x, *conv, **options)
            y, states = self._scan_on(u, gate, inference_cache, walk)
            write_cache(inference_cache, x.shape[1], conv_state=conv_state, **states)
        out = self.out_proj(y)
        return out if self.out_proj.bias is None else mask_absent(out, seq_idx)

    def _scan_on(
        self, x: Tensor, gate: Tensor, cache: dict[str, Any], walk: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scan the convolved `x` `[B, L, D]` from the cached state: y, and what the cache gets."""
        x, r, i, a_log, gate = self._scan_inputs(x, gate)
        options = {"initial_state": cache["lrnn_state"][..., 0], "return_final_state": True}
        options |= self._scan_options() | walk
        if self.normalize_first:
            y, state = rglru_scan(x, r, i, a_log, gate, **options)
            return y, {"lrnn_state": state[..., None]}
        length, seq_idx = x.shape[1], walk["seq_idx"]
        options |= lead_in(cache["begun"], length, seq_idx, walk["order"]) | {"normalize_first": False}
        x, r, i, gate = (F.pad(t, (0, 0, 1, 0)) for t in (x, r, i, gate))
        y, state = rglru_scan(x, r, i, a_log, gate, **options)
        begun = has_begun(cache["begun"], length, seq_idx)
        return y[:, 1:], {"lrnn_state": state[..., None], "begun": begun}

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
        y: Any = fused_steps.rglru(self, hidden_states, inference_cache)
        if y is None:
            y = self._composed_step(hidden_states, inference_cache)
        inference_cache["seqlen_offset"] += 1
        return y, inference_cache

    def _composed_step(self, x: Tensor, cache: dict[str, Any]) -> Tensor:
        h = x[:, 0]
        gate, x = self.gate_proj(h), self.in_proj(h)
        x = causal_conv1d_update(
            cache["conv_state"],
            x,
            self.conv1d.weight[:, 0],
            self.conv1d.bias,
            backend=self.backend,
        )
        state, inputs, options = cache["lrnn_state"][..., 0], self._scan_inputs(x, gate), self._scan_options()
        if self.normalize_first:
            y = rglru_state_update(state, *inputs, **options, backend=self.backend)
        else:
            x, r, i, a_log, gate = inputs
            rglru_state_update(state, x, r, i, a_log, **options, backend=self.backend)
            i = i.to(state.dtype) if options["i_bias"] is None else i.to(state.dtype) + options["i_bias"]
            first = torch.sigmoid(i) * x  # before it, the state was 0
            state.copy_(torch.where(cache["begun"][:, None], state, first))
            cache["begun"].fill_(True)
            y = state * F.gelu(gate.to(state.dtype), approximate="none" if self.gelu == "erf" else "tanh")
            y = y.to(x.dtype)
        out: Tensor = self.out_proj(y)[:, None]
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
            `conv_state` `[B, D, K]`, newest last, `lrnn_state` `[B, D, 1]`, the same under the seed's
            `ssm_state`, and `seqlen_offset`; without `normalize_first` also `begun` `[B]`, true for the rows
            that had a cell.
        """
        weight = self.conv1d.weight
        dtype = weight.dtype if dtype is None else parse_dtype(dtype)
        exact = state_dtype(weight.dtype)
        state = torch.zeros(batch_size, self.d_inner, 1, dtype=exact, device=weight.device)
        cache = {
            "conv_state": torch.zeros(
                batch_size, self.d_inner, self.d_conv, dtype=dtype, device=weight.device
            ),
            "lrnn_state": state,
            "ssm_state": state,
            "seqlen_offset": 0,
        }
        if not self.normalize_first:
            cache["begun"] = torch.zeros(batch_size, dtype=torch.bool, device=weight.device)
        return cache

    def _scan_inputs(self, x: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
        """x, the logits r and i without biases, a_log and the gate, from the convolved `x` `[..., D]`."""
        r, i = product(self.recurrent_gate_proj, x), product(self.input_gate_proj, x)
        return x, r, i, self.a_log[:, 0].to(state_dtype(self.a_log.dtype)), gate

    def _scan_options(self) -> dict[str, Any]:
        exact = state_dtype(self.a_log.dtype)
        r, i = bias_beside(self.recurrent_gate_proj), bias_beside(self.input_gate_proj)
        return {
            "r_bias": None if r is None else r.to(exact),
            "i_bias": None if i is None else i.to(exact),
            "c": self.c,
            "gelu": self.gelu,
        }

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, d_inner={self.d_inner}, c={self.c:g}"


def _pair(values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"`a_init_range` (={tuple(values)}) must be two finite numbers.")
    return float(values[0]), float(values[1])
