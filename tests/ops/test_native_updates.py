"""One-step updates on the native backend: as the reference, in place, for states of any dtype and stride."""

from __future__ import annotations

import pytest
import torch
from cases import UPDATES, Case, cases
from tolerances import assert_close
from torch import Tensor

from nvsubq import ops
from nvsubq.ops import backends
from nvsubq.ops.native import library

pytestmark = pytest.mark.skipif(
    not next(b for b in backends() if b.name == "native").active, reason="native is not active"
)

DROPPED = {"initial_state", "normalize_first", "chunk_size"}
WALKS = {"seq_idx", "packed", "order"}


def is_one_walk(case: Case) -> bool:
    fixed = any(case.pattern(name) == ["D", "N"] for name in ("B", "C") if name in case.tensor_names)
    return case.sizes["L"] == 19 and "reverse" not in case.options and not WALKS & {*case.give} and not fixed


STEPPED = [case for case in cases() if case.op in UPDATES and is_one_walk(case) and case.sizes["B"]]


def step_of(case: Case, dtype: torch.dtype) -> tuple[Tensor, dict]:
    """The state of a case, and what its update takes besides."""
    tensors, options = case.build(dtype)
    state = tensors.get("initial_state")
    if state is None:
        final = getattr(ops, case.op)(**tensors, **options, return_final_state=True, backend="reference")[1]
        state = torch.randn(final.shape, dtype=final.dtype, generator=torch.Generator().manual_seed(1))
    given = {n: t[:, 0] if case.is_activation(n) else t for n, t in tensors.items() if n not in DROPPED}
    return state, given | {n: v for n, v in options.items() if n not in DROPPED}


def wide(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def update(case: Case, state: Tensor, given: dict, backend: str = "native") -> Tensor:
    return getattr(ops, UPDATES[case.op])(state, **given, backend=backend)


def check(case: Case, state: Tensor, given: dict) -> None:
    exact = wide(state.clone())
    expected = update(case, exact, {n: wide(v) for n, v in given.items()}, "reference")
    y = update(case, state, given)
    assert not y.requires_grad
    assert_close(f"{case}, y", y, expected)
    assert_close(f"{case}, state", state, exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", STEPPED, ids=str)
def test_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    state, given = step_of(case, dtype)
    address = state.data_ptr()
    for _ in range(2):  # prepared, then remembered
        check(case, state, given)
    assert state.data_ptr() == address


EACH = [next(c for c in STEPPED if c.op == op and "initial_state" in c.give) for op in UPDATES]
EACH.append(next(c for c in STEPPED if c.op == "linear_scan" and "initial_state" in c.complex))
EACH.append(next(c for c in STEPPED if c.op == "selective_scan" and "initial_state" in c.complex))


@pytest.mark.parametrize("case", EACH, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(case: Case, dtype: torch.dtype) -> None:
    state, given = step_of(case, dtype)
    check(case, state, given)


@pytest.mark.parametrize("case", EACH, ids=str)
def test_a_state_of_any_stride_is_changed_where_it_lies(case: Case) -> None:
    state, given = step_of(case, torch.float32)
    expected = state.clone()
    y = update(case, expected, given)
    nan = torch.full((*state.shape[:-1], 2 * state.shape[-1] + 3), torch.nan, dtype=state.dtype)
    views = {
        "rows apart": nan.clone()[..., 2 : 2 + state.shape[-1]],
        "every other element": nan.clone()[..., 1 : 1 + 2 * state.shape[-1] : 2],
        "axes turned": torch.empty(state.shape[::-1], dtype=state.dtype).permute(*range(state.dim())[::-1]),
    }
    for name, view in views.items():
        around = view if view._base is None else view._base
        view.copy_(state)
        missing = around.isnan().sum()
        assert torch.equal(update(case, view, given), y), name
        assert torch.equal(view, expected), name
        assert around.isnan().sum() == missing, name


@pytest.mark.parametrize("case", EACH, ids=str)
def test_inputs_of_any_stride(case: Case) -> None:
    state, given = step_of(case, torch.float32)
    same, expected = state.clone(), state.clone()
    y = update(case, expected, given)
    turned = {n: torch.stack([v, v], -1)[..., 0] if isinstance(v, Tensor) else v for n, v in given.items()}
    for _ in range(2):
        same.copy_(state)
        assert torch.equal(update(case, same, turned), y)
        assert torch.equal(same, expected)


@pytest.mark.parametrize("case", EACH, ids=str)
def test_a_state_wider_or_narrower_than_the_inputs(case: Case) -> None:
    state, given = step_of(case, torch.float32)
    double = wide(state)
    assert isinstance(double, Tensor)
    check(case, double.clone(), given)
    state, given = step_of(case, torch.float64)
    exact, narrow = state.clone(), state.to(torch.complex64 if state.is_complex() else torch.float32)
    exact.copy_(narrow)
    expected = update(case, exact, given, "reference")
    assert_close("y", update(case, narrow, given), expected)
    assert_close("state", narrow, exact)


def test_lazy_conjugates() -> None:
    b, decay = (torch.randn(2, 5, dtype=torch.complex64) for _ in range(2))
    memory = torch.randn(2, 5, dtype=torch.complex64)
    expected = memory.conj().resolve_conj()
    y = ops.linear_state_update(expected, decay.conj().resolve_conj(), b, backend="native")
    state = memory.conj()
    assert torch.equal(ops.linear_state_update(state, decay.conj(), b, backend="native"), y)
    assert torch.equal(state.resolve_conj(), expected)
    assert torch.equal(memory, expected.conj().resolve_conj())


def test_a_state_that_overlaps_itself_is_refused() -> None:
    state = torch.zeros(1, 3).expand(2, 3)
    with pytest.raises(RuntimeError, match="more than one element"):
        ops.linear_state_update(state, torch.ones(3), torch.ones(2, 3), backend="native")


@pytest.mark.parametrize("case", EACH, ids=str)
def test_no_rows(case: Case) -> None:
    state, given = step_of(case, torch.float32)
    given = {n: v[:0] if isinstance(v, Tensor) and case.is_activation(n) else v for n, v in given.items()}
    assert update(case, state[:0], given).shape[0] == 0


@pytest.mark.parametrize("case", EACH, ids=str)
def test_threads_and_instruction_sets(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_WORK_OF_ONE_THREAD", 0)
    state, given = step_of(case, torch.float32)
    bits = []
    for threads in (1, 2, 8):
        torch.set_num_threads(threads)
        changed = state.clone()
        bits.append((update(case, changed, given), changed))
    assert all(torch.equal(a, b) for other in bits[1:] for a, b in zip(bits[0], other, strict=True))
    for name, level in library.LEVELS.items():
        if library.has_level(level):
            monkeypatch.setattr(library, "forced_level", level)
            check(case, state.clone(), given), name


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_call_that_is_traced_is_not_served() -> None:
    state, x = torch.zeros(1, 3), torch.ones(1, 3)

    def step(state: Tensor) -> Tensor:
        return ops.linear_state_update(state, torch.ones(3), x)

    eager = torch.compile(step, backend="eager")
    assert torch.equal(eager(state), x)
    assert torch.equal(state, x)
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        step(state)
        with pytest.raises(RuntimeError, match="a dispatch mode of torch is active"):
            ops.linear_state_update(state, torch.ones(3), x, backend="native")
    assert torch.equal(state, 2 * x)


def test_nothing_is_recorded() -> None:
    x = torch.ones(1, 3, requires_grad=True)
    for backend in ("native", "torch"):
        state = torch.zeros(1, 3)
        assert not ops.linear_state_update(state, x[0], x, backend=backend).requires_grad
        assert not state.requires_grad
