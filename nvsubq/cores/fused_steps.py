"""The step of a core in one call of an op; None where a part is not as the core made it, or not now.

Hooks, adapters and parametrizations act in the composed step, which calls every part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nvsubq.cores.fusing import linears_of, own_of, weights_of
from nvsubq.cores.norm import GroupRMSNorm
from nvsubq.ops.steps import mamba2_step, mamba_step, rglru_step, s5_step

if TYPE_CHECKING:
    from nvsubq.cores.mamba import Mamba
    from nvsubq.cores.mamba2 import Mamba2
    from nvsubq.cores.rglru import RGLRU
    from nvsubq.cores.s5 import S5


def mamba(core: Mamba, x: Tensor, cache: dict[str, Any], timesteps: Tensor | None) -> Tensor | None:
    """Give the output `[B, 1, C]` of Mamba for `x` `[B, 1, C]`; the cache's states are updated."""
    parts = core.parts()
    if parts is None or (core.event_mode and timesteps is not None):
        return None
    first, low, dt, last, conv, own = parts
    return mamba_step(
        x,
        cache["conv_state"],
        cache["lrnn_state"],
        in_weight=first["weight"],
        in_bias=first["bias"],
        conv_weight=conv["weight"],
        conv_bias=conv["bias"],
        x_proj=low["weight"],
        dt_weight=dt["weight"],
        dt_bias=dt["bias"],
        A_log=own["A_log"],
        D=own["D"],
        out_weight=last["weight"],
        out_bias=last["bias"],
        timesteps=timesteps,
        discretization=core.discretization,  # type: ignore[arg-type]
        backend=core.backend,
    )


def mamba2(core: Mamba2, x: Tensor, cache: dict[str, Any]) -> Tensor | None:
    """Give the output `[B, 1, C]` of Mamba2 for `x` `[B, 1, C]`; the cache's states are updated."""
    if torch.compiler.is_compiling():
        return None
    linears, own = linears_of(core, "in_proj", "out_proj"), own_of(core, "dt_bias", "A_log", "D")
    conv, norm = weights_of(core.conv1d, nn.Conv1d), weights_of(core.norm, GroupRMSNorm)
    if linears is None or own is None or conv is None or (norm is None) != (core.norm is None):
        return None
    first, last = linears
    return mamba2_step(
        x,
        cache["conv_state"],
        cache["lrnn_state"],
        in_weight=first["weight"],
        in_bias=first["bias"],
        conv_weight=conv["weight"],
        conv_bias=conv["bias"],
        dt_bias=own["dt_bias"],
        A_log=own["A_log"],
        D=own["D"],
        norm_weight=None if norm is None else norm["weight"],
        out_weight=last["weight"],
        out_bias=last["bias"],
        norm_eps=1.0 if core.norm is None else core.norm.eps,
        norm_before_gate=core.norm_before_gate,
        groups=core.ngroups,
        channel_skip=core.D_has_hdim,
        dt_limit=core.dt_limit,
        backend=core.backend,
    )


def rglru(core: RGLRU, x: Tensor, cache: dict[str, Any]) -> Tensor | None:
    """Give the output `[B, 1, C]` of RG-LRU for `x` `[B, 1, C]`; the cache's states are updated."""
    if torch.compiler.is_compiling() or core.gelu != "erf" or not core.normalize_first:
        return None
    names = ("in_proj", "gate_proj", "recurrent_gate_proj", "input_gate_proj", "out_proj")
    linears, conv = linears_of(core, *names), weights_of(core.conv1d, nn.Conv1d)
    own = own_of(core, "a_log")
    if linears is None or conv is None or own is None:
        return None
    first, gate, r, i, last = linears
    if r["bias"] is None or i["bias"] is None:
        return None
    return rglru_step(
        x,
        cache["conv_state"],
        cache["lrnn_state"],
        in_weight=first["weight"],
        in_bias=first["bias"],
        gate_weight=gate["weight"],
        gate_bias=gate["bias"],
        conv_weight=conv["weight"],
        conv_bias=conv["bias"],
        r_weight=r["weight"],
        r_bias=r["bias"],
        i_weight=i["weight"],
        i_bias=i["bias"],
        a_log=own["a_log"],
        out_weight=last["weight"],
        out_bias=last["bias"],
        c=core.c,
        backend=core.backend,
    )


def s5(core: S5, u: Tensor, cache: dict[str, Any], timesteps: Tensor | None) -> Tensor | None:
    """Give the output `[B, 1, C]` of S5 for `u` `[B, 1, C]`; the cache's state is updated."""
    own = None if torch.compiler.is_compiling() else own_of(core, "A", "B", "C", "D", "log_dt")
    if own is None or core.clip_eigs or (core.symmetric_timesteps and timesteps is not None):
        return None
    return s5_step(
        u,
        cache["lrnn_state"],
        A=own["A"],
        B=own["B"],
        C=own["C"],
        D=own["D"],
        log_dt=own["log_dt"],
        timesteps=timesteps,
        discretization=core.discretization,  # type: ignore[arg-type]
        step_rescale=core.step_rescale,
        conj_sym=core.conj_sym,
        backend=core.backend,
    )
