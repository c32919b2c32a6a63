"""Steps in one native call against the same steps composed of ops, on the reference backend, in fp64."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from step_cases import (
    CASES,
    ROUNDED_BETWEEN,
    SHORT,
    TOLERANCE,
    StepCase,
    close,
    exact,
    fused_only,
    inputs,
    make,
    started,
)
from step_cases import check as check_steps
from torch import nn
from torch.nn.utils import parametrize

from nvsubq.cores import fused_steps
from nvsubq.cores.base import LTV_LRNN
from nvsubq.ops import backends, use_backend
from nvsubq.ops.native import library
from nvsubq.ops.native import steps as native_steps

DTYPES = list(TOLERANCE)
LEVELS = [name for name, level in library.LEVELS.items() if library.has_level(level)]

pytestmark = pytest.mark.skipif(
    not next(b for b in backends() if b.name == "native").active, reason="native is not active"
)


def check(case: StepCase, dtype: torch.dtype, batch: int, patch: pytest.MonkeyPatch, **options: Any) -> None:
    check_steps(case, dtype, batch, patch, before=poison, **options)


def poison() -> None:
    """Fill all workspaces of this thread with NaN."""
    for step in (native_steps._MAMBA, native_steps._MAMBA2, native_steps._RGLRU, native_steps._S5):
        for made in getattr(step.local, "structs", {}).values():
            if made is not None:
                made.work.fill_(255)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_agrees(
    case: StepCase, dtype: torch.dtype, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(case, dtype, batch, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_several_steps_agree(case: StepCase, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, dtype, 2, monkeypatch, steps=7)


@pytest.mark.parametrize("batch", [0, 7, 18, 66])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_many_rows_agree(
    case: StepCase, dtype: torch.dtype, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above some number of rows torch multiplies by the projections; S5 has none of its own."""
    check(case, dtype, batch, monkeypatch, tolerances=ROUNDED_BETWEEN)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SHORT, ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set_agrees(
    case: StepCase, dtype: torch.dtype, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "forced_level", library.LEVELS[level])
    check(case, dtype, 3, monkeypatch)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", [case for case in SHORT if not str(case).startswith("s5")], ids=str)
def test_the_dtype_of_the_cache_is_kept(
    case: StepCase, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs of the convolution are rounded where they are stored, not where they are used."""
    core = make(case, torch.float32)
    tolerance = max(1e-5, TOLERANCE[stored])  # a number between two of its dtype may go to either
    caches = [started(core, 2, stored) for _ in range(2)]
    with torch.no_grad():
        for x, timesteps in inputs(case, core, 2, 6):
            arguments = () if timesteps is None else (timesteps,)
            with use_backend("torch"):
                expected, _ = core.step(x, caches[1], *arguments)
            y, _ = core.step(x, caches[0], *arguments)
            close("y", y, expected, tolerance)
        for key in ("conv_state", "lrnn_state"):
            assert caches[0][key].dtype == caches[1][key].dtype
            close(key, caches[0][key], caches[1][key], tolerance)
    assert caches[0]["conv_state"].dtype == stored


@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_after_a_prefill_equal_the_full_forward(
    case: StepCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = make(case, torch.float32)
    torch.manual_seed(3)
    x = torch.randn(2, 9, core.d_model)
    timesteps = torch.rand(2, 9) * 3 if case.timed else None

    def part(a: int, b: int) -> tuple:
        return () if timesteps is None else (timesteps[:, a:b],)

    with torch.no_grad():
        expected = core(x, *part(0, 9))
        cache = core.allocate_inference_cache(2, 9)
        got = [core(x[:, :4], *part(0, 4), inference_cache=cache)]
        fused_only(core, monkeypatch)
        for k in range(4, 9):
            got.append(core.step(x[:, k : k + 1], cache, *part(k, k + 1))[0])
    close("y", torch.cat(got, 1), expected, 1e-5)


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_neither_threads_nor_rows_nor_repeats_change_a_bit(
    case: StepCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = make(case, torch.float32)
    ((x, timesteps),) = inputs(case, core, 6)

    def run(rows: slice) -> list[torch.Tensor]:
        cache = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in started(core, 6).items()}
        y, _ = core.step(x[rows], cache, *(() if timesteps is None else (timesteps[rows],)))
        return [y, *[v for v in cache.values() if isinstance(v, torch.Tensor)]]

    with torch.no_grad():
        expected = run(slice(0, 6))
        for threads in (1, 2, 8):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            assert all(map(torch.equal, run(slice(0, 6)), expected))
            for rows in (slice(0, 1), slice(5, 6), slice(1, 4)):
                assert all(torch.equal(a, b[rows]) for a, b in zip(run(rows), expected, strict=True))


def test_threads_share_a_large_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide enough that every phase is shared out."""
    case = StepCase("mamba", lambda: native_core(300))
    core = make(case, torch.float32)
    ((x, _),) = inputs(case, core, 16)
    found = []
    with torch.no_grad():
        for threads in (1, 2, 8):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            cache = started(core, 16)
            found.append((core.step(x, cache)[0], cache["lrnn_state"], cache["conv_state"]))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))


def native_core(d_model: int) -> LTV_LRNN:
    from nvsubq.cores import Mamba

    return Mamba(d_model)


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_states_stay_where_they_are_and_autograd_hears_of_it(case: StepCase) -> None:
    core = make(case, torch.float32)
    ((x, timesteps),) = inputs(case, core, 2)
    arguments = () if timesteps is None else (timesteps,)
    with torch.no_grad():
        cache = started(core, 2)
        states = {key: state for key, state in cache.items() if isinstance(state, torch.Tensor)}
        before = {key: (state.data_ptr(), state._version) for key, state in states.items()}
        core.step(x, cache, *arguments)
        for key, state in states.items():
            assert cache[key] is state
            assert state.data_ptr() == before[key][0]
            assert state._version > before[key][1]
    with torch.inference_mode():
        expected = core.step(x, started(core, 2), *arguments)[0]
    assert torch.equal(expected, core.step(x, started(core, 2), *arguments)[0]) or torch.is_grad_enabled()


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_inputs_of_any_stride(case: StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    core = make(case, torch.float32)
    ((x, timesteps),) = inputs(case, core, 3)
    arguments = () if timesteps is None else (timesteps,)
    long = torch.full((3, 4, core.d_model), torch.nan)
    long[:, 2:3] = x
    scattered = torch.full((core.d_model, 3, 1), torch.nan).permute(1, 2, 0).copy_(x)
    fused_only(core, monkeypatch)
    with torch.no_grad():
        expected, _ = core.step(x, started(core, 3), *arguments)
        for given in (long[:, 2:3], scattered, torch._neg_view(-x)):
            assert torch.equal(core.step(given, started(core, 3), *arguments)[0], expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_a_bad_number_shows_in_its_row_alone(case: StepCase, bad: float) -> None:
    core = make(case, torch.float32)
    ((x, timesteps),) = inputs(case, core, 3)
    arguments = () if timesteps is None else (timesteps,)
    x[1, 0, 2] = bad
    with torch.no_grad():
        y, _ = core.step(x, started(core, 3), *arguments)
    assert not torch.isfinite(y[1]).any()
    assert torch.isfinite(y[::2]).all()


def composed(core: LTV_LRNN, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the steps that are composed of ops."""
    calls: list[int] = []
    true = type(core)._composed_step
    monkeypatch.setattr(
        type(core), "_composed_step", lambda self, *given: (calls.append(1), true(self, *given))[1]
    )
    return calls


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_what_hides_ops_is_left_to_them(case: StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    core = make(case, torch.float32)
    ((x, timesteps),) = inputs(case, core, 2)
    arguments = () if timesteps is None else (timesteps,)
    calls = composed(core, monkeypatch)

    def step(core: LTV_LRNN = core) -> torch.Tensor:
        return core.step(x, started(core, 2), *arguments)[0]

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with torch.no_grad():
        expected = step()
        assert not calls
        with use_backend("torch"):
            close("torch", step(), expected, 1e-5)
        with Mode():
            close("mode", step(), expected, 1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            close("autocast", step(), expected, 3e-2)
        slow = copy.deepcopy(core)
        slow.use_fast_path = False
        close("use_fast_path", step(slow), expected, 1e-5)
        parts = [name for name, part in core.named_modules() if isinstance(part, nn.Linear)]
        for name in parts:
            if str(case).startswith("rglru") and name.endswith("_gate_proj") and name != "gate_proj":
                continue  # its ops read the weight, not the layer
            hooked = copy.deepcopy(core)
            hooked.get_submodule(name).register_forward_hook(lambda *given: 2 * given[-1])
            assert name == "dt_proj" or not torch.allclose(step(hooked), expected)
        assert len(calls) >= 4
        changed = copy.deepcopy(core)
        kind, name = ("C", "C") if str(case).startswith("s5") else ("weight", "out_proj")
        part = changed if kind == "C" else changed.get_submodule(name)
        parametrize.register_parametrization(part, kind, _Double())
        before = len(calls)
        other = step(changed)
        assert len(calls) == before + 1
        assert not torch.allclose(other, expected)


class _Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_what_does_not_fit_is_the_ops_to_refuse(case: StepCase) -> None:
    core = make(case, torch.float32)
    ((x, timesteps),) = inputs(case, core, 2)
    arguments = () if timesteps is None else (timesteps,)

    def message(wrong: dict[str, Any], backend: str, x: torch.Tensor = x) -> str:
        with torch.no_grad(), use_backend(backend), pytest.raises((ValueError, RuntimeError)) as caught:
            core.step(x, wrong, *arguments)
        return str(caught.value)

    def cache(**changed: torch.Tensor) -> dict[str, Any]:
        made = started(core, 2) | changed
        return made | ({"ssm_state": made["lrnn_state"]} if "ssm_state" in made else {})

    state = started(core, 2)["lrnn_state"]
    for wrong in (state[..., :-1], state.bfloat16() if not state.is_complex() else state.real):
        if wrong.numel():
            given = [message(cache(lrnn_state=wrong.clone()), b) for b in ("auto", "torch")]
            assert given[0] == given[1]
    assert message(cache(), "auto", x.double()) == message(cache(), "torch", x.double())
    spread = state[:1].expand(state.shape)  # one memory for all rows
    assert message(cache(lrnn_state=spread), "auto") == message(cache(lrnn_state=spread), "torch")


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_a_compiler_sees_the_ops(case: StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    core = make(case, torch.float32)
    ((x, timesteps),) = inputs(case, core, 2)
    calls = composed(core, monkeypatch)
    with torch.no_grad():
        core.step(x, started(core, 2), *(() if timesteps is None else (timesteps,)))
        assert not calls
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        takes_timesteps = str(case).startswith(("mamba-", "s5"))
        fused = getattr(fused_steps, type(core).__name__.lower())
        assert fused(core, x, started(core, 2), *([timesteps] if takes_timesteps else [])) is None


def test_large_timesteps_keep_their_phase() -> None:
    """Gaps of 10^5: phases of a million radians."""
    case = next(case for case in CASES if str(case) == "s5-zoh-timed")
    core = make(case, torch.float32)
    with torch.no_grad():
        core.A[:, 0] *= 1e-7
    cache = started(core, 2)
    wide, expected_cache = exact(core, cache)
    with torch.no_grad():
        timesteps = torch.tensor([1e5, 3e5])
        x = torch.randn(2, 1, core.d_model)
        with use_backend("reference"):
            expected, _ = wide.step(x.double(), expected_cache, timesteps)
        y, _ = core.step(x, cache, timesteps)
    close("y", y, expected, 1e-5)


def test_python_threads_do_not_meet() -> None:
    case = next(case for case in CASES if str(case) == "mamba-wide")
    core = make(case, torch.float32)
    ((x, _),) = inputs(case, core, 2)
    with torch.no_grad():
        expected = core.step(x, started(core, 2))[0]
    caches = [started(core, 2) for _ in range(40)]
    found: list[torch.Tensor] = []

    def work(some: list) -> None:
        with torch.no_grad():
            for cache in some:
                found.append(core.step(x, cache)[0])

    workers = [threading.Thread(target=work, args=(caches[i::2],)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 40
    assert all(torch.equal(y, expected) for y in found)
