"""Every core with every option of its constructor: the rows of the table in docs/cores.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import nvsubq.cores as cores
from nvsubq.cores import LTV_LRNN

WIDTH = 16  # d_model of every case

# What the table says of each case; a test says with `column(name)` which of them it decides.
COLUMNS = ("forward", "step", "prefill", "varlen", "gradcheck", "bf16", "compile", "GPU")


@dataclass(frozen=True)
class Case:
    """One core as the contract sees it.

    Args:
        name: of the class in `nvsubq.cores`.
        options: of its constructor, beside `d_model`.
        timesteps: it takes `integration_timesteps`.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    timesteps: bool = False

    @property
    def cls(self) -> Callable[..., LTV_LRNN]:
        return getattr(cores, self.name)

    def make(self, **more: Any) -> LTV_LRNN:
        torch.manual_seed(7)
        return self.cls(WIDTH, **(self.options | more))

    @property
    def shown(self) -> str:
        """The options as they are written in a call."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    def __str__(self) -> str:
        return f"{self.name}({self.shown})"


def _mamba(**options: Any) -> Case:
    return Case("Mamba", options, timesteps=True)


def _s5(**options: Any) -> Case:
    return Case("S5", {"d_state": 8} | options, timesteps=True)


def _s7(**options: Any) -> Case:
    return Case("S7", {"d_state": 6} | options, timesteps=True)


def _mamba2(**options: Any) -> Case:
    return Case("Mamba2", {"d_state": 16, "headdim": 8} | options)


def _rglru(**options: Any) -> Case:
    return Case("RGLRU", options)


CASES = [
    _mamba(),
    _mamba(discretization="zoh", bias=True),
    _mamba(discretization="bilinear", conv_bias=False),
    _mamba(discretization="dirac", dt_init="constant", dt_rank=3),
    _mamba(expand=1, d_conv=2, d_state=5, dt_scale=0.5, dt_init_floor=1e-3, dt_min=0.01, dt_max=0.5),
    _mamba(use_fast_path=False),
    _mamba(event_mode=True),
    _mamba(a_init="s4d_lin", d_state=4),
    _mamba(a_modulation=True),
    _mamba(conv_dilations=(1, 3), d_conv=3),
    _mamba(a_init="s4d_lin", a_modulation=True, event_mode=True, conv_dilations=(2, 1), discretization="zoh"),
    _s5(),
    _s5(discretization="bilinear", conj_sym=True),
    _s5(discretization="dirac", step_rescale=0.5),
    _s5(discretization="async", blocks=2),
    _s5(clip_eigs=True, dt_min=0.01, dt_max=0.5),
    _s5(symmetric_timesteps=True),
    _s5(symmetric_timesteps=True, discretization="bilinear"),
    _s5(use_fast_path=False),
    _s7(),
    _s7(J=2, residual=True),
    _s7(use_fast_path=False),
    _s7(variant="delta"),
    _s7(variant="delta", J=3, residual=True),
    _mamba2(),
    _mamba2(ngroups=2, D_has_hdim=True),
    _mamba2(d_ssm=16, bias=True),
    _mamba2(rmsnorm=False, conv_bias=False, d_conv=2),
    _mamba2(norm_before_gate=True, ngroups=2),
    _mamba2(dt_limit=(0.01, 0.05), dt_min=0.01, dt_max=0.5, dt_init_floor=0.02),
    _mamba2(conv_init=0.2, A_init_range=(0.5, 2.0), expand=1, chunk_size=4),
    _mamba2(use_mem_eff_path=False),
    _rglru(),
    _rglru(bias=True, expand=2),
    _rglru(conv_bias=False, d_conv=2, c=4.0, a_init_range=(0.5, 0.9)),
    _rglru(gate_blocks=4, a_init="a_c", gelu="tanh"),
    _rglru(normalize_first=False),
    _rglru(normalize_first=False, gate_blocks=2, gelu="tanh", bias=True),
    _rglru(use_fast_path=False),
    Case("Attention"),
    Case("Attention", {"num_heads": 2, "bias": True}),
]
SIMPLE = list({case.name: case for case in reversed(CASES)}.values())[::-1]  # the first one of each class

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_core = pytest.mark.parametrize("case", SIMPLE, ids=lambda case: case.name)
