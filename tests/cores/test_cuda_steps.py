"""Steps in one native call on CUDA: the cases of test_fused_steps.py, and graphs, streams, odd addresses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from step_cases import (
    CASES,
    ROUNDED_BETWEEN,
    SHORT,
    TOLERANCE,
    StepCase,
    check,
    close,
    fused_only,
    inputs,
    make,
    started,
)

from nvsubq.cores import RGLRU, S5, Mamba, Mamba2, move_cache
from nvsubq.cores.base import LTV_LRNN
from nvsubq.ops import native
from nvsubq.ops.native import steps as native_steps

DTYPES = list(TOLERANCE)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        native.missing("mamba_step", torch.device("cuda")) is not None, reason="no CUDA kernels"
    ),
]


@pytest.fixture(autouse=True)
def _poisoned(_plain_torch: None) -> Iterator[None]:
    """Memory that is asked for comes filled with NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(case: StepCase, dtype: torch.dtype, batch: int) -> tuple[LTV_LRNN, dict[str, Any], list[tuple]]:
    """A core, a cache in the midst of a walk, and the arguments of four steps."""
    core = make(case, dtype)
    cache = move_cache(started(core, batch), "cuda")
    given = inputs(case, core, batch, 4)
    found = [tuple(t.cuda() for t in arguments if t is not None) for arguments in given]
    return core.cuda(), cache, found


def tensors(cache: dict[str, Any]) -> list[torch.Tensor]:
    return [state for state in cache.values() if isinstance(state, torch.Tensor)]


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_agrees(
    case: StepCase, dtype: torch.dtype, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(case, dtype, batch, monkeypatch, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_several_steps_agree(case: StepCase, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, dtype, 2, monkeypatch, steps=7, device="cuda")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [case for case in SHORT if not str(case).startswith("s5")], ids=str)
def test_the_cache_may_be_narrower(
    case: StepCase, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(case, torch.float32, 2, monkeypatch, cache_dtype=stored, device="cuda")


WIDE = [
    StepCase("mamba-1024", lambda: Mamba(1024)),
    StepCase("mamba-large", lambda: Mamba(2304, d_state=64, bias=True)),
    StepCase("mamba2-1024", lambda: Mamba2(1024)),
    StepCase("mamba2-large", lambda: Mamba2(1280, ngroups=4, d_ssm=1280, bias=True)),
    StepCase("rglru-1024", lambda: RGLRU(1024)),
    StepCase("s5-1024", lambda: S5(1024, 96, conj_sym=True)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_widths_of_models_agree(case: StepCase, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step: a second one would meet inputs of the convolution that have been rounded."""
    check(case, dtype, 2, monkeypatch, device="cuda")


def run(core: LTV_LRNN, cache: dict[str, Any], steps: list[tuple]) -> list[torch.Tensor]:
    """The outputs of some steps."""
    with torch.no_grad():
        return [core.step(arguments[0], cache, *arguments[1:])[0] for arguments in steps]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*SHORT, *WIDE], ids=str)
def test_a_graph_replays_what_eager_does(case: StepCase, dtype: torch.dtype) -> None:
    """Bit for bit, with the states at their addresses."""
    core, cache, steps = on_gpu(case, dtype, 1)
    replayed = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in cache.items()}
    expected = run(core, cache, steps)

    held = [t.clone() for t in steps[0]]
    scratch = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in replayed.items()}
    run(core, scratch, [tuple(held)])  # libraries are loaded before a capture
    torch.cuda.synchronize()
    before = [state.clone() for state in tensors(replayed)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (y,) = run(core, replayed, [tuple(held)])
    for state, old in zip(tensors(replayed), before, strict=True):
        assert torch.equal(state, old)  # a capture runs nothing
    for arguments, wanted in zip(steps, expected, strict=True):
        for to, new in zip(held, arguments, strict=True):
            to.copy_(new)
        graph.replay()
        assert torch.equal(y, wanted)
    for state, wanted in zip(tensors(replayed), tensors(cache), strict=True):
        assert torch.equal(state, wanted)


@pytest.mark.parametrize("case", [*SHORT, *WIDE], ids=str)
def test_steps_in_one_graph_follow_each_other(case: StepCase) -> None:
    """Kernels of a step overlap, those of two steps must not."""
    core, cache, steps = on_gpu(case, torch.bfloat16, 1)
    started_from = [state.clone() for state in tensors(cache)]
    replayed = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in cache.items()}
    expected = run(core, cache, steps)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(core, replayed, steps)
    for _ in range(5):
        for state, old in zip(tensors(replayed), started_from, strict=True):
            state.copy_(old)
        graph.replay()
        assert all(map(torch.equal, found, expected))
        assert all(map(torch.equal, tensors(replayed), tensors(cache)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*SHORT, *WIDE], ids=str)
def test_neither_rows_nor_repeats_change_a_bit(case: StepCase, dtype: torch.dtype) -> None:
    core, cache, steps = on_gpu(case, dtype, 6)

    def part(rows: slice) -> list[torch.Tensor]:
        mine = {k: v[rows].clone() if isinstance(v, torch.Tensor) else v for k, v in cache.items()}
        outputs = run(core, mine, [tuple(t[rows] for t in arguments) for arguments in steps])
        return [*outputs, *tensors(mine)]

    expected = part(slice(0, 6))
    for rows in (slice(0, 6), slice(0, 1), slice(5, 6), slice(1, 4)):
        assert all(torch.equal(a, b[rows]) for a, b in zip(part(rows), expected, strict=True))


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_steps_on_two_streams_do_not_meet(case: StepCase) -> None:
    core, cache, steps = on_gpu(case, torch.float32, 2)
    caches = [{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in cache.items()} for _ in "ab"]
    expected = run(core, cache, steps)
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in "ab"], []
    for stream, mine in zip(streams, caches, strict=True):
        with torch.cuda.stream(stream):
            found.append(run(core, mine, steps))
    torch.cuda.synchronize()
    for outputs, mine in zip(found, caches, strict=True):
        assert all(map(torch.equal, outputs, expected))
        assert all(map(torch.equal, tensors(mine), tensors(cache)))


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_weights_that_lie_at_odd_addresses(case: StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of 16 bytes do not fit there."""
    core, cache, steps = on_gpu(case, torch.bfloat16, 2)
    other = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in cache.items()}
    expected = run(core, cache, steps)
    for parameter in core.parameters():
        moved = torch.empty(parameter.numel() + 1, dtype=parameter.dtype, device="cuda")[1:]
        parameter.data = moved.view(parameter.shape).copy_(parameter.data)
    fused_only(core, monkeypatch)
    for y, wanted in zip(run(core, other, steps), expected, strict=True):
        close("y", y, wanted, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("batch", [0, 17, 66])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for case in SHORT if str(case).startswith("mamba")], ids=str)
def test_many_rows_agree(
    case: StepCase, dtype: torch.dtype, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above some number of rows torch multiplies by the projections in and out."""
    torch.use_deterministic_algorithms(False)  # of which its products say that they need an own environment
    check(case, dtype, batch, monkeypatch, tolerances=ROUNDED_BETWEEN, device="cuda")


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_even_more_rows_are_composed(case: StepCase, monkeypatch: pytest.MonkeyPatch) -> None:
    core, cache, steps = on_gpu(case, torch.float32, 6)
    other = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in cache.items()}
    expected = run(core, cache, steps)
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(native_steps, "_ROWS_ON_CUDA", dict.fromkeys(native_steps._ROWS_ON_CUDA, 5))
    calls: list[int] = []
    true = type(core)._composed_step
    monkeypatch.setattr(
        type(core), "_composed_step", lambda self, *given: (calls.append(1), true(self, *given))[1]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # some ops may lack kernels
        composed = run(core, other, steps)
    assert len(calls) == len(steps)
    for y, wanted in zip(composed, expected, strict=True):
        close("y", y, wanted, 1e-5)


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_what_is_on_two_devices_is_left_to_the_ops(case: StepCase) -> None:
    core, cache, steps = on_gpu(case, torch.float32, 2)
    torch.use_deterministic_algorithms(False)
    wrong = move_cache(cache, "cpu")
    with pytest.raises((RuntimeError, ValueError)):
        run(core, wrong, steps[:1])
