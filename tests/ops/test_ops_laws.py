"""Laws that hold for every op, whatever it computes: order, blocks, sequences, chunks, updates, absence."""

from __future__ import annotations

import pytest
import torch
from cases import BLOCKED_LETTERS, CASES, SHAPES, UPDATES, Case, case_of, cases, outcome
from tolerances import assert_close
from torch import Tensor

from nvsubq import ops

WALKED = [c for c in cases() if c.sizes["L"] == 19]


def call(case: Case, tensors: dict[str, Tensor], options: dict, **changes):
    options = {key: value for key, value in (options | changes).items() if value is not None}
    return getattr(ops, case.op)(**tensors, **options, return_final_state=True, backend="reference")


def walk_of(case: Case, options: dict, block: int = 0) -> Tensor:
    """The cells in the order of the visit, by the words of the contract."""
    order = options.get("order", torch.arange(case.sizes["L"]))
    order = order[block] if order.dim() == 2 else order
    reverse = options.get("reverse", False)
    reverse = reverse if isinstance(reverse, bool) else reverse[block]
    return (order.flip(0) if reverse else order).long()


def pick(case: Case, tensors: dict[str, Tensor], cells: Tensor, row: int | None = None) -> dict[str, Tensor]:
    """The same call on these cells only, in this order (and of one row only)."""
    picked = {}
    for name, tensor in tensors.items():
        pattern = case.pattern(name)
        if row is not None and "B" in pattern:
            tensor = tensor[row : row + 1]
        picked[name] = tensor.index_select(pattern.index("L"), cells) if "L" in pattern else tensor
    return picked


@pytest.mark.parametrize("case", [c for c in WALKED if c.blocks == 1 and "order" in str(c)], ids=str)
def test_an_order_is_a_permutation_of_the_cells(case: Case) -> None:
    tensors, options = case.build()
    cells = walk_of(case, options)
    y, final = call(case, tensors, options)
    seq_idx = options.get("seq_idx")
    seq_idx = None if seq_idx is None else seq_idx[:, cells]
    y_plain, final_plain = call(
        case, pick(case, tensors, cells), options, order=None, reverse=False, seq_idx=seq_idx
    )
    assert torch.equal(y, y_plain[:, cells.argsort()])
    assert torch.equal(final, final_plain)


@pytest.mark.parametrize("op", SHAPES)
def test_reverse_is_a_flip(op: str) -> None:
    case = case_of(op, "reverse")
    tensors, options = case.build()
    backwards = torch.arange(case.sizes["L"]).flip(0)
    y, final = call(case, tensors, options)
    y_plain, final_plain = call(case, pick(case, tensors, backwards), options, reverse=False)
    assert torch.equal(y, y_plain.flip(1))
    assert torch.equal(final, final_plain)


@pytest.mark.parametrize("case", [c for c in WALKED if c.blocks > 1], ids=str)
def test_blocks_are_separate_walks(case: Case) -> None:
    tensors, options = case.build()
    y, final = call(case, tensors, options)
    for block in range(case.blocks):
        own = {}
        for name, tensor in tensors.items():
            axis = next((i for i, letter in enumerate(case.pattern(name)) if letter in BLOCKED_LETTERS), None)
            own[name] = tensor if axis is None else tensor.chunk(case.blocks, axis)[block]
        y_own, final_own = call(case, own, options, order=walk_of(case, options, block), reverse=False)
        assert torch.equal(y.chunk(case.blocks, 2)[block], y_own)
        assert torch.equal(final.chunk(case.blocks, 1)[block], final_own)


def runs_of(seq_idx: Tensor, cells: Tensor) -> list[Tensor]:
    """Cut the present cells of one row, in walk order, where the sequence changes."""
    present = [int(cell) for cell in cells if seq_idx[cell] >= 0]
    runs: list[list[int]] = []
    for before, cell in zip([None, *present], present, strict=False):
        if before is None or seq_idx[before] != seq_idx[cell]:
            runs.append([])
        runs[-1].append(cell)
    return [torch.tensor(run) for run in runs]


@pytest.mark.parametrize(
    "case", [c for c in WALKED if c.blocks == 1 and {"seq_idx", "packed"} & {*c.give}], ids=str
)
def test_sequences_are_separate_calls(case: Case) -> None:
    tensors, options = case.build()
    cells = walk_of(case, options)
    y, final = call(case, tensors, options)
    for row in range(case.sizes["B"]):
        seen = torch.zeros(case.sizes["L"], dtype=torch.bool)
        initial = tensors.get("initial_state")
        expected = torch.zeros_like(final[row : row + 1]) if initial is None else initial[row : row + 1]
        for number, run in enumerate(runs_of(options["seq_idx"][row], cells)):
            own = pick(case, tensors, run, row)
            if number > 0:
                own.pop("initial_state", None)
                if case.op == "causal_conv1d" and initial is not None:
                    own["initial_state"] = torch.zeros_like(expected)  # keeps the width W of the final state
            y_own, expected = call(case, own, options, seq_idx=None, order=None, reverse=False)
            assert_close(f"row {row}, sequence {number}", y[row : row + 1, run], y_own)
            seen[run] = True
        assert_close(f"final state of row {row}", final[row : row + 1], expected)
        assert not y[row, ~seen].any()


@pytest.mark.parametrize("case", cases(having=["seq_idx"]), ids=str)
def test_absent_cells_are_not_read(case: Case) -> None:
    tensors, options = case.build(requires_grad=True)
    expected = outcome(case, "reference")
    absent = options["seq_idx"] < 0
    with torch.no_grad():
        for name, tensor in tensors.items():
            if "L" in case.pattern(name):
                tensor[absent] = float("nan")
    y, final = call(case, tensors, options)
    assert torch.equal(y, expected["y"])
    assert torch.equal(final, expected["final_state"])
    (y.abs().sum() + final.abs().sum()).backward()
    for name, tensor in tensors.items():
        if tensor.grad is None:
            continue
        assert not torch.isnan(tensor.grad).any(), name
        if "L" in case.pattern(name):
            assert not tensor.grad[absent].any(), name


# Without `normalize_first` a reset and a state of zeros differ: a chunk could not say that it starts anew.
CHUNKED = [
    c for c in WALKED if c.blocks == 1 and "initial_state" in c.give and "normalize_first" not in c.options
]


@pytest.mark.parametrize("case", CHUNKED, ids=str)
def test_chunks_with_the_state_handed_on_are_the_whole(case: Case) -> None:
    tensors, options = case.build()
    cells = walk_of(case, options)
    y, final = call(case, tensors, options)
    state = tensors["initial_state"]
    last = torch.full((case.sizes["B"],), -1)
    for chunk in (cells[:7], cells[7:7], cells[7:8], cells[8:]):
        own = pick(case, tensors, chunk) | {"initial_state": state}
        seq_idx = options.get("seq_idx")
        if seq_idx is not None:
            seq_idx = seq_idx[:, chunk]
            # A chunk cannot know which sequence its state belongs to: forget it where another one starts.
            first = torch.stack([next((s for s in row if s >= 0), torch.tensor(-1)) for row in seq_idx])
            fresh = (last >= 0) & (first >= 0) & (first.long() != last)
            own["initial_state"] = state.masked_fill(fresh.view(-1, *[1] * (state.dim() - 1)), 0)
            for row, steps in enumerate(seq_idx):
                last[row] = next((int(s) for s in steps.flip(0) if s >= 0), last[row])
        y_own, state = call(case, own, options, seq_idx=seq_idx, order=None, reverse=False)
        assert_close(f"chunk of {len(chunk)}", y[:, chunk], y_own)
    assert_close("final state", state, final)


def one_cell(case: Case, tensors: dict[str, Tensor], cell: int) -> dict[str, Tensor]:
    """The update's arguments for one cell; what is fixed over time gets a group for each channel."""
    own = {}
    for name, tensor in tensors.items():
        pattern = case.pattern(name)
        if name == "initial_state":
            own["state"] = tensor
        elif "L" in pattern:
            own[name] = tensor.select(pattern.index("L"), cell)
        elif pattern == ["D", "N"] and name != "A":
            own[name] = tensor.expand(case.sizes["B"], *tensor.shape)
        else:
            own[name] = tensor
    return own


UPDATED = [c for c in WALKED if not {"seq_idx", "packed", "order"} & {*c.give} and "reverse" not in c.options]


@pytest.mark.parametrize("case", UPDATED, ids=str)
def test_updates_are_the_scan(case: Case) -> None:
    tensors, options = case.build(requires_grad=True)
    if "initial_state" not in tensors:
        tensors["initial_state"] = torch.zeros_like(call(case, tensors, options)[1])
    if options.get("normalize_first") is False:
        options["normalize_first"] = True  # a step has a state before it
    y, final = call(case, tensors, options)
    state = tensors["initial_state"] = tensors["initial_state"].detach().clone()
    address = state.data_ptr()
    options = {key: value for key, value in options.items() if key not in ("normalize_first", "chunk_size")}
    for cell in range(case.sizes["L"]):
        step = getattr(ops, UPDATES[case.op])(**one_cell(case, tensors, cell), **options, backend="reference")
        assert not step.requires_grad
        assert_close(f"cell {cell}", step, y[:, cell])
    assert state.data_ptr() == address
    assert_close("final state", state, final)


@pytest.mark.parametrize("case", [c for c in CASES if "all" in c.name or "blocks-seq_idx" in c.name], ids=str)
def test_two_runs_give_the_same_bits(case: Case) -> None:
    once, again = outcome(case, "reference", torch.float32), outcome(case, "reference", torch.float32)
    for name, value in once.items():
        assert torch.equal(value, again[name]), name


@pytest.mark.parametrize("op", SHAPES)
def test_a_row_does_not_depend_on_the_batch(op: str) -> None:
    case = case_of(op, "all" if op != "linear_scan" else "order")
    tensors, options = case.build()
    y, _ = call(case, tensors, options)
    alone, _ = call(case, pick(case, tensors, torch.arange(case.sizes["L"]), row=1), options)
    assert_close(
        "row 1", y[1:2], alone
    )  # plain PyTorch: the last bit may depend on how a row falls into vectors


@pytest.mark.parametrize("case", [c for c in cases() if c.name in ("L0", "B0", "complex-L0")], ids=str)
def test_nothing_to_walk(case: Case) -> None:
    found = outcome(case, "reference")
    sizes = case.sizes
    assert found["y"].shape[:2] == (sizes["B"], sizes["L"])
    assert found["y"].numel() == 0
    tensors, _ = case.build()
    if "initial_state" in tensors and sizes["B"]:
        assert torch.equal(found["final_state"], tensors["initial_state"])


@pytest.mark.parametrize("op", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_of_outputs_and_states(op: str, dtype: torch.dtype) -> None:
    case = case_of(op, "order" if op == "linear_scan" else "all")
    tensors, options = case.build(dtype)
    y, final = call(case, tensors, options)
    assert y.dtype == dtype
    assert final.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tensors.pop("initial_state")
    y, final = call(case, tensors, options)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert final.dtype == (dtype if op == "causal_conv1d" else wide)


def test_one_fp64_tensor_makes_the_recurrence_fp64() -> None:
    tensors, options = case_of("selective_scan", "plain").build(torch.float32)
    y, final = call(case_of("selective_scan", "plain"), tensors | {"A": tensors["A"].double()}, options)
    assert (y.dtype, final.dtype) == (torch.float32, torch.float64)


def test_inputs_need_not_be_contiguous() -> None:
    for op in SHAPES:
        case = case_of(op, "seq_idx")
        tensors, options = case.build()
        strided = {n: t.transpose(0, -1).contiguous().transpose(0, -1) for n, t in tensors.items()}
        assert_close(op, call(case, strided, options)[0], call(case, tensors, options)[0])
