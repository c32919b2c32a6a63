"""The native backend on a CUDA device: every shared case of the ops that its library has, and its promises.

Needs a GPU (`scripts/gpu.sh`); `test_cuda_library.py` has what can be known without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASES, SHAPES, UPDATES, Case, case_of, cases, check, outcome
from test_native import NAMES
from test_native_laws import strided
from test_native_updates import STEPPED, step_of, update, wide
from test_operators import pairs_of
from tolerances import assert_close
from torch import Tensor

from nvsubq import ops
from nvsubq.ops import dispatch, native

DEVICE = "cuda"
pytestmark = pytest.mark.gpu

HERE = [op for op in SHAPES if native.missing(op, torch.device(DEVICE)) is None]
SERVED = [case for case in cases() if case.op in HERE]
LAW_NAMES = (
    "all",
    "complex",
    "seq_idx-order-reverse",
    "complex-seq_idx-order-reverse",
    "blocks",
    "L65",
    "dilation2",
)
LAWS = [case for case in SERVED if case.name in LAW_NAMES]


def widened(case: Case, width: int, length: int) -> Case:
    """The case with channels for whole vectors and blocks of threads, and several tiles of the walk."""
    sizes = {**case.sizes, "L": length} | ({"D": width} if "D" in case.sizes else {"P": width // 4})
    return replace(case, name=f"{case.name}-{width}x{length}", sizes=sizes)


LAWS += [widened(case, 72, 150) for case in LAWS if case.name in ("all", "seq_idx-order-reverse", "blocks")]
WIDE_NAMES = ("all", "plain", "complex", "seq_idx-order-reverse", "blocks-seq_idx", "order-reverse")
WIDE = [
    widened(c, *size) for c in SERVED if c.name in WIDE_NAMES for size in ((8, 300), (264, 65), (1024, 9))
]


@pytest.mark.parametrize("case", SERVED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    check(case, "native", dtype, DEVICE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for case in SERVED if case.name in NAMES], ids=str)
def test_agrees_with_the_reference_in_half_precision(case: Case, dtype: torch.dtype) -> None:
    check(case, "native", dtype, DEVICE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_agrees_with_the_reference_in_whole_vectors(case: Case, dtype: torch.dtype) -> None:
    check(case, "native", dtype, DEVICE)


@pytest.mark.parametrize("case", [c for c in CASES if c.slow and c.op in HERE], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_agrees_with_the_reference_over_long_walks(case: Case, dtype: torch.dtype) -> None:
    check(case, "native", dtype, DEVICE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", [c for c in STEPPED if c.op in HERE], ids=str)
def test_updates_agree_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    state, given = step_of(case, dtype)
    exact = wide(state.clone())
    expected = update(case, exact, {n: wide(v) for n, v in given.items()}, "reference")
    state, given = state.to(DEVICE), on_device(given)
    address = state.data_ptr()
    y = update(case, state, given)
    assert state.data_ptr() == address
    assert_close(f"{UPDATES[case.op]}, y", y.cpu(), expected)
    assert_close(f"{UPDATES[case.op]}, state", state.cpu(), exact)


def on_device(given: Mapping[str, Any]) -> dict[str, Any]:
    return {n: v.to(DEVICE) if isinstance(v, Tensor) else v for n, v in given.items()}


def results(case: Case, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Outputs and gradients for fixed cotangents, alike in every row."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    outputs = getattr(ops, case.op)(**leaves, **options, return_final_state=True, backend="native")
    cotangents = [(0.1 + o.detach().abs()).cos().to(o.dtype) for o in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    found = dict(zip(("y", "final state"), (o.detach() for o in outputs), strict=True))
    return found | {f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}


def assert_same_bits(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(got[name].nan_to_num(nan=123.0), value.nan_to_num(nan=123.0)), name
        assert not value.isnan().any(), name


@pytest.mark.parametrize("case", LAWS, ids=str)
def test_reads_and_leaves_nothing_uninitialised(case: Case) -> None:
    """Torch fills every `empty` tensor first: outputs with NaN, workspaces with bytes of 255."""
    expected = outcome(case, "native", torch.float32, DEVICE)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3, device=DEVICE).isnan().all()
    assert_same_bits(outcome(case, "native", torch.float32, DEVICE), expected)


@pytest.mark.parametrize("case", [c for c in CASES if c.slow and c.op in HERE], ids=str)
def test_looking_after_training_on_the_same_shapes(case: Case) -> None:
    """What `backward` would need takes other memory where it is not kept."""
    tensors, options = case.build(torch.float32, DEVICE)
    expected = results(case, tensors, options)["y"]
    y, _ = getattr(ops, case.op)(**tensors, **options, backend="native", return_final_state=True)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("case", LAWS, ids=str)
def test_repeats_give_the_same_bits(case: Case) -> None:
    tensors, options = case.build(torch.float32, DEVICE)
    expected = results(case, tensors, options)
    for _ in range(5):
        assert_same_bits(results(case, tensors, options), expected)


@pytest.mark.parametrize("case", LAWS, ids=str)
def test_a_row_does_not_depend_on_the_batch(case: Case) -> None:
    tensors, options = case.build(torch.float32, DEVICE)
    together = results(case, tensors, options)
    rows = [name for name in tensors if case.pattern(name)[0] == "B"]
    for row in range(case.sizes["B"]):
        some = {n: t[row : row + 1] if n in rows else t for n, t in tensors.items()}
        walk = {n: v[row : row + 1] if n == "seq_idx" else v for n, v in options.items()}
        alone = results(case, some, walk)
        for name in ("y", "final state", *(f"gradient of {name}" for name in rows)):
            assert torch.equal(alone[name][0], together[name][row]), name


@pytest.mark.parametrize("case", LAWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_and_misaligned_offsets(case: Case, dtype: torch.dtype) -> None:
    tensors, options = case.build(dtype, DEVICE)
    expected = results(case, tensors, options)
    assert_same_bits(results(case, {n: strided(t) for n, t in tensors.items()}, options), expected)
    turned = {n: t.mT.contiguous().mT if t.dim() > 1 else t for n, t in tensors.items()}
    assert_same_bits(results(case, turned, options), expected)


@pytest.mark.parametrize("case", LAWS, ids=str)
def test_two_streams(case: Case) -> None:
    tensors, options = case.build(torch.float32, DEVICE)
    expected = results(case, tensors, options)
    tables = {n: v.clone() if isinstance(v, Tensor) else v for n, v in options.items()}
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(3):
        found = []
        for stream in streams:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(100_000)  # what the walk's tables come from is still to be done
                found.append(results(case, tensors, tables))
        torch.cuda.synchronize()
        for got in found:
            assert_same_bits(got, expected)


@pytest.mark.parametrize("case", LAWS, ids=str)
def test_graphs_capture_forward_and_backward(case: Case) -> None:
    tensors, options = case.build(torch.float32, DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results(case, tensors, options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(case, tensors, options)
    for t in tensors.values():
        t.mul_(0.75)
    if "seq_idx" in options:
        options["seq_idx"].copy_(options["seq_idx"].flip(1))
    graph.replay()
    replayed = {name: value.clone() for name, value in captured.items()}
    assert_same_bits(replayed, results(case, tensors, options))


@pytest.mark.parametrize("case", LAWS, ids=str)
def test_opcheck(case: Case) -> None:
    arguments = [a.to(DEVICE) if isinstance(a, Tensor) else a for a in pairs_of(case, None)]
    arguments = [
        a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in arguments
    ]
    assert arguments[-1] == dispatch.concrete(case.op, None, DEVICE) == "native"
    done = torch.library.opcheck(getattr(torch.ops.nvsubq, case.op).default, tuple(arguments))
    assert set(done.values()) == {"SUCCESS"}


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("case", [case for case in SERVED if case.name in ("all", "real")], ids=str)
def test_compiles_without_a_break(case: Case) -> None:
    tensors, options = case.build(torch.float32, DEVICE)
    expected = results(case, tensors, options)

    def call(leaves: dict[str, Tensor]) -> Tensor:
        return getattr(ops, case.op)(**leaves, **options, return_final_state=True)

    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    outputs = torch.compile(call, fullgraph=True)(leaves)
    cotangents = [(0.1 + o.detach().abs()).cos() for o in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    found = {"y": outputs[0].detach(), "final state": outputs[1].detach()}
    assert_same_bits(found | {f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}, expected)


def test_auto_takes_native() -> None:
    for op in HERE:
        case = case_of(op, "all") if op != "linear_scan" else case_of(op, "real")
        tensors, options = case.build(torch.float32, DEVICE)
        function = getattr(ops, op)
        assert torch.equal(function(**tensors, **options), function(**tensors, **options, backend="native"))


BIG = {
    "causal_conv1d": {"B": 2, "L": 2051, "D": 1 << 19, "K": 4},
    "linear_scan": {"B": 2, "L": 2051, "D": 1 << 19},
    "rglru_scan": {"B": 2, "L": 2051, "D": 1 << 19},
    "selective_scan": {"B": 2, "L": 2051, "D": 1 << 19, "N": 1},
    "ssd_scan": {"B": 2, "L": 2051, "H": 1 << 13, "P": 64, "G": 1, "N": 4},
}
LAST = 8  # channels, or heads


@pytest.mark.parametrize("op", HERE)
def test_more_than_two_to_the_31_elements(op: str) -> None:
    """The last channels of the last row are what they are alone."""
    case = Case(op, "big", BIG[op])
    assert case.sizes["B"] * case.sizes["L"] * case.sizes.get("D", 1 << 19) > 1 << 31
    generator = torch.Generator(DEVICE).manual_seed(0)
    tensors = {}
    for name in case.tensor_names:
        shape = [case.sizes[letter] for letter in case.pattern(name)]
        dtype = torch.bfloat16 if case.is_activation(name) else torch.float32
        value = torch.empty(shape, dtype=dtype, device=DEVICE).uniform_(0.1, 0.9, generator=generator)
        tensors[name] = -value if name == "A" else value
    options: dict[str, Any] = {"reverse": True}
    first = next(n for n in case.tensor_names if {"D", "H"} & {*case.pattern(n)} and case.is_activation(n))

    def last(name: str, t: Tensor) -> Tensor:
        for axis, letter in enumerate(case.pattern(name)):
            if letter in "DH":
                t = t.narrow(axis, t.shape[axis] - LAST, LAST)
            if letter == "B":
                t = t[-1:]
        return t

    def run(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        leaf = given[first].detach().requires_grad_()
        y = getattr(ops, op)(**{**given, first: leaf}, **options, backend="native")
        (grad,) = torch.autograd.grad(y, leaf, y.detach())
        return y.detach(), grad

    y, grad = run(tensors)
    expected_y, expected_grad = run({n: last(n, t).contiguous() for n, t in tensors.items()})
    assert_close(f"{op}, y", last(first, y).float(), expected_y.double(), tolerance=5e-3)
    assert_close(f"{op}, gradient", last(first, grad).float(), expected_grad.double(), tolerance=5e-3)
