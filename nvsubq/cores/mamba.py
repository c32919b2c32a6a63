"""Mamba: a selective state space behind a short causal convolution, with an optional clock of its own."""

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
    check_timesteps,
    mask_absent,
    parse_dtype,
    state_dtype,
)
from nvsubq.cores.branches import convolve, convolve_step, make_branches, make_states, parse_dilations
from nvsubq.cores.cache import check_cache, own_states, write_cache
from nvsubq.cores.fusing import Weights, bias_beside, is_plain, linears_of, own_of, product, weights_of
from nvsubq.cores.mamba_together import MambaTogether
from nvsubq.ops import mamba_inner, selective_scan, selective_state_update
from nvsubq.ops.mamba_weights import MambaWeights
from nvsubq.ops.numerics import inverse_softplus

_GATE_BIAS = 4.0  # a decay's gate starts near 1


class Mamba(MambaTogether, LTV_LRNN):
    """Mamba core (Gu & Dao, arXiv:2312.00752), with the event mode of STREAM (arXiv:2411.12603).

    `(x, z) = W_in h; x = SiLU(conv(x)); (d, B, C) = W_x x; delta = softplus(W_dt d + b_dt); A = -exp(A_log);
    s_k = Abar_k s_{k-1} + Bbar_k B_k x_k; y_k = C_k s_k + D x_k; out = W_out(y * SiLU(z))`.
    Given `integration_timesteps`, the decay of cell k uses `dt_k * softplus(b_dt)` instead of delta_k, while
    the input keeps delta_k (the seed's asymmetric form). With complex A, `y_k = 2 Re(C_k s_k) + D x_k`.
    Parameters are named and shaped as in `mamba_ssm.Mamba`, whose weights load as they are.

    Args:
        d_model: width `C` of input and output.
        d_state: state size `N` of each inner channel.
        d_conv: width `K` of the causal convolution.
        expand: inner width `D = int(expand * d_model)`.
        dt_rank: rank `R` of the projection of delta; "auto" is `ceil(d_model / 16)`.
        dt_min: least delta at the start.
        dt_max: greatest delta at the start.
        dt_init: "random" or "constant" weights of `dt_proj`.
        dt_scale: scale of those weights.
        dt_init_floor: floor of the initial delta.
        conv_bias: bias of the convolution.
        bias: biases of `in_proj` and `out_proj`.
        use_fast_path: False runs on the portable `torch` backend.
        layer_idx: number of the layer, kept for those who cache by layer.
        device: of the parameters.
        dtype: of the parameters; `A_log` and `D` are fp32 at least.
        discretization: "mamba" (`exp(delta A)`, `delta`), "zoh", "bilinear" or "dirac" (input coefficient 1).
        conv_dilations: one causal convolution for each, mixed by `softmax(conv_gates)` where there are
            several (lite-mamba's front end; its parameters are named as there).
        a_init: "s4d_real" (`A_n = -n`) or "s4d_lin", complex: `A_n = -1/2 + i pi n` (arXiv:2206.11893).
        a_modulation: gate the decay by the input: `Abar_k = sigmoid(W_a x_k + 4) Abar_k`.
        event_mode: timesteps have a clock of their own, `softplus(dtA_proj.bias)`, not `softplus(b_dt)`.
            A checkpoint without that bias starts it as b_dt; one with it loads without event mode too.

    Raises:
        ValueError: an unknown `discretization`, `dt_init` or `a_init`, or a size or range that cannot be.

    Example:
        >>> import torch
        >>> from nvsubq.cores import Mamba
        >>> core = Mamba(d_model=8)
        >>> core(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    discretizations = DISCRETIZATIONS["Mamba"]
    capturable = True
    carries = True

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        discretization: str = "mamba",
        *,
        conv_dilations: Sequence[int] = (1,),
        a_init: str = "s4d_real",
        a_modulation: bool = False,
        event_mode: bool = False,
    ) -> None:
        super().__init__(discretization)
        check_bool(conv_bias=conv_bias, bias=bias, use_fast_path=use_fast_path)
        check_bool(a_modulation=a_modulation, event_mode=event_mode)
        if dt_rank != "auto" and not isinstance(dt_rank, int):
            raise ValueError(f"`dt_rank` (={dt_rank!r}) must be 'auto' or an int.")
        if dt_init not in ("random", "constant"):
            raise ValueError(f"`dt_init` (={dt_init!r}) must be 'random' or 'constant'.")
        if a_init not in ("s4d_real", "s4d_lin"):
            raise ValueError(f"`a_init` (={a_init!r}) must be 's4d_real' or 's4d_lin'.")
        check_at_least(1, d_model=d_model, d_state=d_state, d_conv=d_conv)
        check_at_least(0.0, expand=expand)
        check_number(dt_scale=dt_scale, dt_init_floor=dt_init_floor)
        check_dt_range(dt_min, dt_max)
        self.conv_dilations = parse_dilations(conv_dilations)
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        if self.d_inner < 1:
            raise ValueError(f"`expand` (={expand}) times `d_model` (={d_model}) must be at least 1.")
        self.dt_rank = math.ceil(d_model / 16) if isinstance(dt_rank, str) else dt_rank
        check_at_least(1, dt_rank=self.dt_rank)
        self.dt_min, self.dt_max, self.dt_init_floor = dt_min, dt_max, dt_init_floor
        self.dt_init, self.dt_scale = dt_init, dt_scale
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.a_init, self.a_modulation, self.event_mode = a_init, a_modulation, event_mode

        D, N, R = self.d_inner, d_state, self.dt_rank
        dtype = parse_dtype(dtype)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        kept: dict[str, Any] = {"device": device, "dtype": state_dtype(dtype)}
        self.in_proj = nn.Linear(d_model, 2 * D, bias=bias, **made)  # rows: x, z
        branches = make_branches(D, d_conv, self.conv_dilations, conv_bias, made)
        self.conv1d = branches[0]
        if len(branches) > 1:
            self.conv1d_layers = nn.ModuleList(branches)
            self.conv_gates = nn.Parameter(torch.ones(len(branches), **kept))
        self._rows = (R, N, N, N) if a_modulation else (R, N, N)  # of x_proj: dt, B, C and the decay's gate
        self.x_proj = nn.Linear(D, sum(self._rows), bias=False, **made)
        self.dt_proj = nn.Linear(R, D, bias=True, **made)
        if event_mode:
            self.dtA_proj = _Bias(D, **made)
        self.A_log = nn.Parameter(torch.empty(D, N, **kept))  # of -Re A
        if a_init == "s4d_lin":
            self.A_imag = nn.Parameter(torch.empty(D, N, **kept))
            self.A_imag._no_weight_decay = True  # type: ignore[attr-defined]
        self.D = nn.Parameter(torch.empty(D, **kept))
        self.out_proj = nn.Linear(D, d_model, bias=bias, **made)
        # Read by optimisers (no decay of decays) and by initialisers that zero every bias.
        self.A_log._no_weight_decay = True  # type: ignore[attr-defined]
        self.D._no_weight_decay = True  # type: ignore[attr-defined]
        for layer in (self.dt_proj, self.dtA_proj) if event_mode else (self.dt_proj,):
            layer.bias._no_reinit = True  # type: ignore[attr-defined]
        self.register_load_state_dict_pre_hook(_adopt_event_bias)
        self._reset_recurrence()

    def reset_parameters(self) -> None:
        """Draw all parameters anew from torch's generator."""
        layers: list[Any] = [self.in_proj, *self._branches(), self.x_proj, self.out_proj]
        for layer in layers:
            layer.reset_parameters()
        self._reset_recurrence()

    @torch.no_grad()
    def _reset_recurrence(self) -> None:
        scale = self.dt_scale * self.dt_rank**-0.5
        if self.dt_init == "constant":
            self.dt_proj.weight.fill_(scale)
        else:
            self.dt_proj.weight.uniform_(-scale, scale)
        for layer in (self.dt_proj, self.dtA_proj) if self.event_mode else (self.dt_proj,):
            log_dt = torch.empty(self.d_inner, dtype=self.A_log.dtype, device=self.A_log.device)
            dt = log_dt.uniform_(math.log(self.dt_min), math.log(self.dt_max)).exp()
            dt = dt.clamp(min=self.dt_init_floor)
            layer.bias.copy_(inverse_softplus(dt))
        n = torch.arange(self.d_state, device=self.A_log.device)
        if self.a_init == "s4d_lin":
            self.A_log.fill_(math.log(0.5))
            self.A_imag.copy_(math.pi * n)
        else:
            self.A_log.copy_((n + 1).log())
        self.D.fill_(1.0)
        if len(self.conv_dilations) > 1:
            self.conv_gates.fill_(1.0)

    def _branches(self) -> Sequence[nn.Conv1d]:
        if len(self.conv_dilations) == 1:
            return (self.conv1d,)
        return list(self.conv1d_layers)  # type: ignore[arg-type]

    def _gates(self) -> Tensor | None:
        return self.conv_gates if len(self.conv_dilations) > 1 else None

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
        seq_idx = walk["seq_idx"]
        if integration_timesteps is not None:
            integration_timesteps = check_timesteps(integration_timesteps, batch, length)

        xz = self.in_proj(mask_absent(hidden_states, seq_idx))  # (B, L, 2D)
        options = self._scan_options(integration_timesteps) | walk
        y: Any
        if inference_cache is None and self._is_plain():
            options["dt_bias"] = options.pop("delta_bias")
            del options["delta_softplus"]
            weights = self.conv1d.weight[:, 0], self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight
            y = mamba_inner(xz, *weights, A=self._rates(), D=self._skip(), **options)
        elif inference_cache is None:
            x, z = xz.chunk(2, dim=-1)
            u, _ = convolve(self._branches(), self._gates(), x, walk)
            y = selective_scan(z=z, **self._scan_inputs(u), **options)
        else:
            x, z = xz.chunk(2, dim=-1)
            states = inference_cache["conv_state"]
            u, conv_state = convolve(self._branches(), self._gates(), x, walk, states)
            options |= {"initial_state": inference_cache["lrnn_state"], "return_final_state": True}
            y, state = selective_scan(z=z, **self._scan_inputs(u), **options)
            write_cache(inference_cache, length, conv_state=conv_state, lrnn_state=state)
        out = self.out_proj(y)
        return out if self.out_proj.bias is None else mask_absent(out, seq_idx)

    def parts(self) -> tuple[Weights, ...] | None:
        """Weights of `in_proj`, `x_proj`, `dt_proj`, `out_proj`, `conv1d` and the core, for ops that do all.

        None where a part is not as the core made it, or no such op knows the core's options.
        """
        if torch.compiler.is_compiling() or not self._is_fusable():
            return None
        linears = linears_of(self, "in_proj", "x_proj", "dt_proj", "out_proj")
        conv, own = weights_of(self.conv1d, nn.Conv1d), own_of(self, "A_log", "D")
        if linears is None or conv is None or own is None:
            return None
        _, low, dt, _ = linears
        return None if low["bias"] is not None or dt["bias"] is None else (*linears, conv, own)

    def weights_together(self) -> MambaWeights | None:
        parts = self.parts()  # first: a compiler goes no further
        if parts is None or not is_plain(self, Mamba):
            return None
        first, low, dt, last, conv, own = parts
        if first["bias"] is not None or last["bias"] is not None:
            return None
        return MambaWeights(
            first["weight"], conv["weight"], conv["bias"], low["weight"], dt["weight"], dt["bias"],
            own["A_log"], own["D"], last["weight"],
        )  # fmt: skip

    def step(
        self, x: Tensor, inference_cache: dict[str, Any], integration_timesteps: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Advance by one cell; without grad the states are updated at fixed addresses.

        Args:
            x: the cell `[B, 1, C]`.
            inference_cache: from `allocate_inference_cache`, changed in place.
            integration_timesteps: `[B]` or `[B, 1]`.

        Returns:
            output `[B, 1, C]` and the cache.

        Raises:
            ValueError: a wrong shape.
        """
        check_step_input(x, self.d_model, "x")
        if integration_timesteps is not None:
            integration_timesteps = check_timesteps(integration_timesteps, x.shape[0], 1)
        if torch.is_grad_enabled():  # the one-step operators have no autograd
            y = self.forward(x, integration_timesteps, inference_cache=inference_cache)
            return y, inference_cache
        check_cache(inference_cache, x.shape[0])
        own_states(inference_cache)
        if integration_timesteps is not None:
            integration_timesteps = integration_timesteps[:, 0].to(state_dtype(self.A_log.dtype))
        out: Any = fused_steps.mamba(self, x, inference_cache, integration_timesteps)
        if out is None:
            out = self._composed_step(x, inference_cache, integration_timesteps)
        inference_cache["seqlen_offset"] += 1
        return out, inference_cache

    def _composed_step(self, x: Tensor, cache: dict[str, Any], timesteps: Tensor | None) -> Tensor:
        u, z = self.in_proj(x[:, 0]).chunk(2, dim=-1)
        u = convolve_step(self._branches(), self._gates(), u, cache["conv_state"], self.backend)
        options = self._scan_inputs(u) | self._scan_options(timesteps)
        y = selective_state_update(cache["lrnn_state"], z=z, **options, backend=self.backend)
        out: Tensor = self.out_proj(y)[:, None]
        return out

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> dict[str, Any]:
        """Make the cache of a walk that has not begun.

        Args:
            batch_size: `B`.
            max_seqlen: accepted for the interface; the states do not grow.
            dtype: of the convolution's inputs (default: the weights'); the recurrent state is fp32, or fp64,
                and complex where A is.

        Returns:
            `conv_state` `[B, D, (K-1) dilation + 1]`, newest last (a list where there are several branches),
            `lrnn_state` `[B, D, N]` and `seqlen_offset`.
        """
        weight = self.conv1d.weight
        taken: dict[str, Any] = {"device": weight.device, "dtype": parse_dtype(dtype or weight.dtype)}
        exact: dict[str, Any] = {"device": weight.device, "dtype": self._rates().dtype}
        return {
            "conv_state": make_states(self._branches(), batch_size, taken),
            "lrnn_state": torch.zeros(batch_size, self.d_inner, self.d_state, **exact),
            "seqlen_offset": 0,
        }

    def _scan_inputs(self, u: Tensor) -> dict[str, Any]:
        """What the scan gets from the convolved `u` `[..., D]`, and A and D; `delta_bias` is an option."""
        low, B, C, *gate = self.x_proj(u).split(self._rows, dim=-1)
        inputs: dict[str, Any] = {
            "u": u,
            "delta": product(self.dt_proj, low),
            "A": self._rates(),
            "B": B,
            "C": C,
            "D": self._skip(),
        }
        if gate:
            inputs["decay_gate"] = torch.sigmoid(gate[0] + _GATE_BIAS)
        return inputs

    def _is_fusable(self) -> bool:
        """Whether convolution and decay are those of the fused ops."""
        return not self.a_modulation and self.a_init == "s4d_real" and self.conv_dilations == (1,)

    def _is_plain(self) -> bool:
        """Whether one op can do what lies between the projections in and out.

        The weights have to say all that `x_proj` and `dt_proj` do: no hook, adapter or other module there.
        """
        if torch.compiler.is_compiling() or not self._is_fusable():  # the compiler fuses by itself
            return False
        found = linears_of(self, "x_proj", "dt_proj")
        return found is not None and found[0]["bias"] is None and found[1]["bias"] is not None

    def _rates(self) -> Tensor:
        exact = state_dtype(self.A_log.dtype)
        real = -torch.exp(self.A_log.to(exact))
        return torch.complex(real, self.A_imag.to(exact)) if self.a_init == "s4d_lin" else real

    def _skip(self) -> Tensor:
        return self.D.to(state_dtype(self.A_log.dtype))

    def _scan_options(self, timesteps: Tensor | None) -> dict[str, Any]:
        exact = state_dtype(self.A_log.dtype)
        beside = bias_beside(self.dt_proj)
        bias = None if beside is None else beside.to(exact)
        options: dict[str, Any] = {
            "delta_bias": bias,
            "delta_softplus": True,
            "discretization": self.discretization,
        }
        if timesteps is not None:
            if self.event_mode or bias is None:
                bias = (self.dtA_proj if self.event_mode else self.dt_proj).bias.to(exact)
            options["delta_a"] = F.softplus(bias)
            options["timesteps"] = timesteps.to(exact)
        return options

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, d_state={self.d_state}, d_inner={self.d_inner}, "
            f"discretization={self.discretization!r}"
        )


class _Bias(nn.Module):
    """The part of STREAM's `dtA_proj` that its model uses; its weight is in checkpoints and has no effect."""

    def __init__(self, width: int, **made: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(width, **made))


def _adopt_event_bias(core: Mamba, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a checkpoint with a clock for events load without event mode, and one without it with."""
    state.pop(f"{prefix}dtA_proj.weight", None)
    if not core.event_mode:
        state.pop(f"{prefix}dtA_proj.bias", None)
    elif f"{prefix}dt_proj.bias" in state and f"{prefix}dtA_proj.bias" not in state:
        # A copy: with `assign=True` two parameters would be one.
        state[f"{prefix}dtA_proj.bias"] = state[f"{prefix}dt_proj.bias"].detach().clone()
