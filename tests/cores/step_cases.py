"""The cores that one-call steps are tested on: every option, and sizes that fill no vector."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from nvsubq.cores import RGLRU, S5, Mamba, Mamba2, move_cache
from nvsubq.cores.base import LTV_LRNN
from nvsubq.ops import use_backend

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 5e-4,
    torch.bfloat16: 2.5e-3,
}
# A projection by torch rounds to the storage dtype before the rest of the step.
ROUNDED_BETWEEN = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}


class StepCase(NamedTuple):
    """A core to be, and whether its steps get timesteps."""

    name: str
    make: Callable[[], LTV_LRNN]
    timed: bool = False

    def __str__(self) -> str:
        return self.name


def _mamba(name: str, timed: bool = False, d_model: int = 37, **options: Any) -> StepCase:
    return StepCase(f"mamba-{name}", lambda: Mamba(d_model, **options), timed)


def _mamba2(name: str, **options: Any) -> StepCase:
    options = {"d_state": 20, "headdim": 8} | options
    return StepCase(f"mamba2-{name}", lambda: Mamba2(36, **options))


def _s5(name: str, timed: bool = False, d_state: int = 19, **options: Any) -> StepCase:
    return StepCase(f"s5-{name}", lambda: S5(45, d_state, **options), timed)


KINDS = ("mamba", "zoh", "bilinear", "dirac")
CASES = [
    _mamba("wide", d_model=72),
    _mamba("N1", d_state=1, d_conv=1),
    _mamba("N5", d_state=5, d_conv=3, bias=True, conv_bias=False),
    _mamba("N33", d_state=33, dt_rank=7, dt_init="constant", expand=1),
    *[_mamba(kind, discretization=kind) for kind in KINDS],
    *[_mamba(f"{kind}-timed", timed=True, discretization=kind) for kind in KINDS],
    _mamba2("plain"),
    _mamba2("mlp-groups", d_ssm=48, ngroups=3, bias=True),
    _mamba2("channels", D_has_hdim=True, conv_bias=False, d_conv=3),
    _mamba2("one-wide-heads", headdim=1, D_has_hdim=True, d_state=3, ngroups=2),
    _mamba2("no-norm", rmsnorm=False, d_state=16, d_conv=1),
    _mamba2("norm-first", norm_before_gate=True, d_ssm=40, ngroups=5),
    _mamba2("limit", dt_limit=(0.02, 0.05), headdim=72),
    StepCase("rglru-plain", lambda: RGLRU(75)),
    StepCase("rglru-narrow", lambda: RGLRU(40, expand=0.3, d_conv=1, bias=True, conv_bias=False)),
    StepCase("rglru-wide", lambda: RGLRU(9, expand=8, d_conv=5, c=2.0, a_init_range=(0.1, 0.9999999))),
    *[_s5(kind, discretization=kind) for kind in ("zoh", "async", "bilinear", "dirac")],
    *[_s5(f"{kind}-timed", timed=True, discretization=kind) for kind in ("zoh", "bilinear", "dirac")],
    _s5("N1", d_state=1, conj_sym=True),
    _s5("blocks", d_state=18, blocks=3),
    _s5("N64", d_state=64, conj_sym=True, step_rescale=0.5),
]
SHORT = [
    case
    for case in CASES
    if str(case) in ("mamba-wide", "mamba-zoh-timed", "mamba2-mlp-groups", "rglru-plain", "s5-zoh", "s5-N64")
]


def make(case: StepCase, dtype: torch.dtype) -> LTV_LRNN:
    """The core, its parameters away from the values that they start from."""
    torch.manual_seed(0)
    core = case.make()
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if name == "D" or name.endswith(("norm.weight", "bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return core.to(dtype)


def started(core: LTV_LRNN, batch: int, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """A cache as in the midst of a walk."""
    torch.manual_seed(1)
    cache = core.allocate_inference_cache(batch, 8, dtype)
    for key in ("conv_state", "lrnn_state"):
        if key in cache:
            cache[key].copy_(
                torch.randn(
                    cache[key].shape, dtype=torch.complex128 if cache[key].is_complex() else torch.float64
                )
            )
    return cache


def inputs(case: StepCase, core: LTV_LRNN, batch: int, steps: int = 1) -> list[tuple]:
    """Arguments of some steps, without the cache: a cell, and timesteps."""
    torch.manual_seed(2)
    dtype = next(core.parameters()).dtype
    return [
        (torch.randn(batch, 1, core.d_model).to(dtype), torch.rand(batch) * 3 if case.timed else None)
        for _ in range(steps)
    ]


def exact(core: LTV_LRNN, cache: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The same core and cache in fp64."""
    wide = {
        key: state.to(torch.complex128 if state.is_complex() else torch.float64, copy=True)
        if isinstance(state, torch.Tensor)
        else state
        for key, state in cache.items()
    }
    if "ssm_state" in wide:
        wide["ssm_state"] = wide["lrnn_state"]
    return copy.deepcopy(core).double(), wide


def close(name: str, got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    wide = torch.complex128 if expected.is_complex() else torch.float64
    got, expected = got.to("cpu", wide), expected.to("cpu", wide)
    assert got.shape == expected.shape, name
    assert torch.isfinite(got.abs()).all(), name
    rms = expected.abs().square().mean().sqrt()
    assert (got - expected).norm() <= tolerance * expected.norm(), name
    assert ((got - expected).abs() <= 8 * tolerance * (expected.abs() + rms)).all(), name


def rounding(x: torch.Tensor, dtype: torch.dtype) -> float:
    """The relative error of x as stored, which no kernel can better."""
    return 1.05 * float((x.to(dtype).double() - x).norm() / x.norm())


def fused_only(core: LTV_LRNN, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the step was composed")

    monkeypatch.setattr(type(core), "_composed_step", refuse)


def check(
    case: StepCase,
    dtype: torch.dtype,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
    tolerances: dict[torch.dtype, float] = TOLERANCE,
    steps: int = 1,
    cache_dtype: torch.dtype | None = None,
    before: Callable[[], None] = lambda: None,
    device: str = "cpu",
) -> None:
    """A step in one native call against the same step composed of ops, on the reference backend, in fp64.

    Args:
        case: what is tested.
        dtype: of the core.
        batch: rows.
        monkeypatch: of the test.
        tolerances: of the output, by dtype.
        steps: how many follow each other.
        cache_dtype: of the convolution's state.
        before: called before each native call.
        device: of the native call.
    """
    core = make(case, dtype)
    cache = started(core, batch, cache_dtype)
    wide, expected_cache = exact(core, cache)
    core, cache = core.to(device), move_cache(cache, device)
    tolerance, kept = tolerances[dtype], 1e-12 if dtype == torch.float64 else 1e-5
    if tolerances is ROUNDED_BETWEEN:
        kept = tolerance
    with torch.no_grad():
        for x, timesteps in inputs(case, core, batch, steps):
            arguments = () if timesteps is None else (timesteps,)
            with use_backend("reference"):
                expected, _ = wide.step(x.double(), expected_cache, *arguments)
            arguments = tuple(t.to(device) for t in arguments)
            with monkeypatch.context() as patch:
                fused_only(core, patch)
                before()
                y, returned = core.step(x.to(device), cache, *arguments)
            assert returned is cache
            assert y.dtype == dtype
            close("y", y, expected, max(tolerance, rounding(expected, dtype)))
            close("lrnn_state", cache["lrnn_state"], expected_cache["lrnn_state"], kept)
            if "conv_state" in cache:
                stored = cache["conv_state"].dtype
                coarse = max(tolerance, rounding(expected_cache["conv_state"], stored))
                close("conv_state", cache["conv_state"], expected_cache["conv_state"], coarse)
    assert cache["seqlen_offset"] == expected_cache["seqlen_offset"] == steps
