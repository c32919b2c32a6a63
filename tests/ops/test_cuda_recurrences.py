"""`linear_scan` and `rglru_scan` on CUDA: chains of many tiles, whose blocks wait for each other.

`test_cuda.py` has the shared cases and what every op promises.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from nvsubq.ops import linear_scan, native, rglru_scan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        native.missing("linear_scan", torch.device("cuda")) is not None, reason="no CUDA kernels"
    ),
]

Call = tuple[Callable, dict[str, Tensor], dict]


def _normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, device="cuda")


def gated(batch: int, length: int, width: int) -> Call:
    """`rglru_scan` with all of its tensors; states last for hundreds of steps."""
    over_cells = {name: _normal(batch, length, width) for name in ("x", "r", "i", "gate")}
    fixed = {"a_log": _normal(width) + 4, "r_bias": _normal(width) - 2, "i_bias": _normal(width)}
    return rglru_scan, over_cells | fixed | {"initial_state": _normal(batch, width)}, {}


def linear(form: str, batch: int, length: int, width: int) -> Call:
    """`linear_scan`: `fixed`, `varying` or `timed`, with `complex` in the name for complex numbers."""
    complex_ = "complex" in form
    kind = torch.complex128 if complex_ else torch.float64
    cells = (batch, length, width)
    tensors = {"b": _normal(*cells, dtype=kind), "initial_state": _normal(batch, width, dtype=kind)}
    if "timed" in form:
        phase = 3j * _normal(width) if complex_ else 0
        rate = -0.5 - torch.rand(width, device="cuda", dtype=torch.float64)
        dt = torch.rand(batch, length, device="cuda", dtype=torch.float64) * 0.1
        return linear_scan, tensors | {"a": rate + phase, "dt": dt}, {"input_scale": "zoh"}
    shape = (width,) if "fixed" in form else cells
    phase = torch.exp(1j * _normal(*shape)) if complex_ else 1
    decay = 0.98 - 0.1 * torch.rand(shape, device="cuda", dtype=torch.float64)
    return linear_scan, tensors | {"a": decay * phase}, {"input_scale": "none" if "plain" in form else "sqrt"}


CALLS: dict[str, Callable[..., Call]] = {"rglru": gated}
for _form in ("plain", "fixed", "varying", "timed", "fixed complex", "varying complex", "timed complex"):
    CALLS[_form] = lambda *sizes, form=_form: linear(form, *sizes)
each = pytest.mark.parametrize("make", CALLS.values(), ids=list(CALLS))


def rounded(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Real tensors over cells in `dtype`, what else there is in fp32 at least."""
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    complex_ = torch.complex128 if wide == torch.float64 else torch.complex64
    return {
        n: t.to(complex_ if t.is_complex() else dtype if t.dim() == 3 or n == "dt" else wide)
        for n, t in tensors.items()
    }


def run(op: Callable, tensors: dict[str, Tensor], options: dict, backend: str = "native") -> list[Tensor]:
    """y, the final state and all gradients, of cotangents that every dtype holds exactly."""
    leaves = {n: t.detach().requires_grad_() for n, t in tensors.items()}
    outputs = op(**leaves, **options, return_final_state=True, backend=backend)
    cotangents = [
        (torch.arange(t.numel(), device="cuda") * 7919 % 255 / 128 - 1).to(t.dtype).view_as(t)
        for t in outputs
    ]
    grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    return [*(t.detach() for t in outputs), *grads]


def differing(got: list[Tensor], expected: list[Tensor]) -> list[str]:
    """Which outputs have other bits, and how many of their elements."""
    pairs = enumerate(zip(got, expected, strict=True))
    return [
        f"output {i}: {int((a != b).sum())} of {a.numel()}" for i, (a, b) in pairs if not torch.equal(a, b)
    ]


def agrees(call: Call, dtype: torch.dtype = torch.float64, tolerance: float | None = None) -> None:
    op, tensors, options = call
    tensors = rounded(tensors, dtype)
    exact = {n: t.to(torch.complex128 if t.is_complex() else torch.float64) for n, t in tensors.items()}
    expected = run(op, exact, options, "torch")
    for i, (got, want) in enumerate(zip(run(op, tensors, options), expected, strict=True)):
        assert_close(f"output {i}", got, want, tolerance=tolerance)


@each
@pytest.mark.parametrize("length", [15, 17, 127, 128, 129, 255, 256, 257, 511, 513, 1000, 2049, 5000])
def test_lengths(make: Callable[..., Call], length: int) -> None:
    """Around the borders of chunks and tiles, and chains of many tiles."""
    agrees(make(2, length, 37), tolerance=1e-10)


@each
@pytest.mark.parametrize("width", [1, 31, 32, 33, 64, 65, 130, 600])
def test_widths(make: Callable[..., Call], width: int) -> None:
    agrees(make(3, 300, width), tolerance=1e-10)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_over_many_tiles(make: Callable[..., Call], dtype: torch.dtype) -> None:
    agrees(make(2, 3000, 70), dtype)


@each
def test_walks_over_many_tiles(make: Callable[..., Call]) -> None:
    """An order for each half of the channels, sequences that start and cells that are not there."""
    op, tensors, options = make(3, 2100, 66)
    order = torch.stack([torch.randperm(2100, device="cuda") for _ in range(2)]).int()
    runs = (torch.rand(3, 2100, device="cuda") < 0.01).cumsum(1)
    runs[torch.rand(3, 2100, device="cuda") < 0.2] = -1
    runs[2] = -1
    for walk in (
        {"order": order, "reverse": (True, False)},
        {"reverse": True},
        {"order": order[0], "seq_idx": runs.int()},
        {"seq_idx": runs.int(), "reverse": (False, True)},
    ):
        agrees((op, tensors, options | walk), tolerance=1e-10)


@each
def test_bits_do_not_depend_on_the_run_or_the_batch(make: Callable[..., Call]) -> None:
    op, tensors, options = make(4, 5000, 200)
    tensors = rounded(tensors, torch.float32)
    expected = run(op, tensors, options)
    for _ in range(20):
        assert not differing(run(op, tensors, options), expected)
    y = op(**tensors, **options, backend="native")
    for row in (0, 3):
        alone = {n: t if t.dim() == 1 else t[row : row + 1] for n, t in tensors.items()}
        assert torch.equal(op(**alone, **options, backend="native")[0], y[row])


@each
def test_reads_and_leaves_nothing_uninitialised(make: Callable[..., Call]) -> None:
    op, tensors, options = make(2, 700, 50)
    tensors = rounded(tensors, torch.float32)
    expected = run(op, tensors, options)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3, device="cuda").isnan().all()
        got = run(op, tensors, options)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not any(t.isnan().any() for t in got)
    assert not differing(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_numbers_whose_bits_are_all_set(dtype: torch.dtype) -> None:
    """Where every bit is set, a block takes a number of another's for one that was not written yet."""
    sizes, wide = (2, 1200, 40), dtype in (torch.float64, torch.complex128)
    parts = (*sizes, 2) if dtype.is_complex else sizes
    b = torch.full(parts, -1, dtype=torch.int64 if wide else torch.int32, device="cuda")
    b = b.view(torch.float64 if wide else torch.float32)
    b = torch.view_as_complex(b) if dtype.is_complex else b
    # Sequences of one step: nothing is added to b.
    alone = torch.arange(sizes[1], device="cuda", dtype=torch.int32).expand(*sizes[:2])
    y, last = linear_scan(
        torch.full_like(b, 0.5), b, seq_idx=alone, return_final_state=True, backend="native"
    )
    assert y.isnan().all()
    assert last.isnan().all()


@each
def test_strides_and_misaligned_offsets(make: Callable[..., Call]) -> None:
    op, tensors, options = make(2, 300, 37)
    tensors = rounded(tensors, torch.float32)
    expected = run(op, tensors, options)

    def apart(t: Tensor) -> Tensor:
        wide = t.new_full((*t.shape[:-1], t.shape[-1] + 5), torch.nan)
        wide[..., 3:-2] = t
        return wide[..., 3:-2]

    assert not differing(run(op, {n: apart(t) for n, t in tensors.items()}, options), expected)


@each
def test_mixed_dtypes(make: Callable[..., Call]) -> None:
    op, tensors, options = make(2, 300, 37)
    tensors = rounded(tensors, torch.float32)
    name = "x" if op is rglru_scan else "a"
    if tensors[name].is_complex():
        tensors["b"] = tensors["b"].real.bfloat16()
    else:
        tensors[name] = tensors[name].bfloat16()
    got = run(op, tensors, options)
    exact = {n: t.to(torch.complex128 if t.is_complex() else torch.float64) for n, t in tensors.items()}
    for i, (mine, want) in enumerate(zip(got, run(op, exact, options, "torch"), strict=True)):
        assert_close(f"output {i}", mine, want)


@each
def test_replays_of_a_graph(make: Callable[..., Call]) -> None:
    """Captured on a stream of its own, replayed with other values."""
    op, tensors, options = make(2, 1100, 70)
    tensors = rounded(tensors, torch.float32)
    run(op, tensors, options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(op, tensors, options)
    for _ in range(2):
        tensors["initial_state"].mul_(0.5)
        graph.replay()
        assert not differing(got, run(op, tensors, options))
