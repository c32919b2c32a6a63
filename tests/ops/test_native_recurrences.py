"""`linear_scan` and `rglru_scan` on the native backend: bits, widths, strides, gradients, edge cases."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from nvsubq.ops import backends, linear_scan, rglru_scan
from nvsubq.ops.native import library

pytestmark = pytest.mark.skipif(
    not next(b for b in backends() if b.name == "native").active, reason="native is not active"
)

Call = tuple[Callable, dict[str, Tensor], dict]


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def gated(batch: int = 2, length: int = 70, width: int = 37) -> Call:
    """`rglru_scan` with all of its tensors."""
    cells, channels = (batch, length, width), (width,)
    over_cells = {name: normal(*cells) for name in ("x", "r", "i", "gate")}
    fixed = {"a_log": normal(*channels) + 2, "r_bias": normal(*channels), "i_bias": normal(*channels)}
    return rglru_scan, over_cells | fixed | {"initial_state": normal(batch, width)}, {}


def linear(form: str, batch: int = 2, length: int = 70, width: int = 37) -> Call:
    """`linear_scan`: `fixed`, `varying` or `timed`, with `complex` in the name for complex numbers."""
    complex_ = "complex" in form
    kind = torch.complex128 if complex_ else torch.float64
    b, state = normal(batch, length, width, dtype=kind), normal(batch, width, dtype=kind)
    tensors = {"b": b, "initial_state": state}
    if "timed" in form:
        phase = 3j * normal(width) if complex_ else 0
        tensors |= {"a": -torch.rand(width).double() + phase, "dt": torch.rand(batch, length).double()}
        return linear_scan, tensors, {"input_scale": "zoh"}
    shape = (width,) if "fixed" in form else (batch, length, width)
    phase = torch.exp(1j * normal(*shape)) if complex_ else 1
    return linear_scan, tensors | {"a": 0.9 * torch.rand(shape).double() * phase}, {"input_scale": "sqrt"}


CALLS: dict[str, Callable[..., Call]] = {"rglru": gated}
for _form in ("fixed", "varying", "timed", "fixed complex", "varying complex", "timed complex"):
    CALLS[_form] = lambda *sizes, form=_form: linear(form, *sizes)
each = pytest.mark.parametrize("make", CALLS.values(), ids=list(CALLS))


def narrowed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.to(torch.complex64 if t.is_complex() else torch.float32) for n, t in tensors.items()}


def run(op: Callable, tensors: dict[str, Tensor], options: dict, backend: str = "native") -> list[Tensor]:
    """y, the final state and all gradients."""
    leaves = {n: t.detach().requires_grad_() for n, t in tensors.items()}
    outputs = op(**leaves, **options, return_final_state=True, backend=backend)
    cotangents = [
        torch.linspace(-1, 1, t.numel(), dtype=torch.float64).to(t.dtype).view_as(t) for t in outputs
    ]
    grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    return [*(t.detach() for t in outputs), *grads]


def same_bits(got: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def check(call: Call) -> None:
    op, tensors, options = call
    expected = run(op, tensors, options, "torch")
    for i, (got, want) in enumerate(zip(run(op, tensors, options), expected, strict=True)):
        assert_close(f"output {i}", got, want)


@each
@pytest.mark.parametrize("width", [1, 7, 8, 15, 16, 17, 63, 64, 65, 130, 600])
def test_widths(make: Callable[..., Call], width: int) -> None:
    check(make(2, 40, width))


@each
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 65, 196])
def test_lengths(make: Callable[..., Call], length: int) -> None:
    check(make(2, length, 19))


@each
def test_any_number_of_threads_gives_the_same_bits(
    make: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of channels are cut by the threads, but no sum is."""
    monkeypatch.setattr(library, "_WORK_OF_ONE_THREAD", 0)
    op, tensors, options = make(2, 100, 600)
    tensors = narrowed(tensors)
    torch.set_num_threads(1)
    expected = run(op, tensors, options)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for _ in range(3):
            assert same_bits(run(op, tensors, options), expected)


@each
def test_a_row_does_not_depend_on_the_batch(make: Callable[..., Call]) -> None:
    op, tensors, options = make(5, 50, 40)
    tensors = narrowed(tensors)
    together = op(**tensors, **options, backend="native")
    for row in (0, 4):
        alone = {n: t if t.dim() == 1 else t[row : row + 1] for n, t in tensors.items()}
        assert torch.equal(op(**alone, **options, backend="native")[0], together[row])


@each
def test_strides_and_misaligned_offsets(make: Callable[..., Call]) -> None:
    op, tensors, options = make()
    tensors = narrowed(tensors)
    expected = run(op, tensors, options)

    def apart(t: Tensor) -> Tensor:
        wide = t.new_full((*t.shape[:-1], t.shape[-1] + 5), torch.nan)
        wide[..., 3:-2] = t
        return wide[..., 3:-2]

    assert same_bits(run(op, {n: apart(t) for n, t in tensors.items()}, options), expected)
    turned = {n: t.mT.contiguous().mT if t.dim() > 1 else t for n, t in tensors.items()}
    assert same_bits(run(op, turned, options), expected)


@each
def test_gradcheck(make: Callable[..., Call]) -> None:
    op, tensors, options = make(1, 5, 3)

    def call(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(tensors, values, strict=True))
        return op(**named, **options, return_final_state=True, backend="native")

    assert torch.autograd.gradcheck(call, tuple(t.requires_grad_() for t in tensors.values()))


@each
@pytest.mark.parametrize("which", [0, 1])
def test_gradients_of_one_output_alone(make: Callable[..., Call], which: int) -> None:
    op, tensors, options = make(2, 40, 5)
    grads = {}
    for backend in ("native", "torch"):
        leaves = [t.detach().requires_grad_() for t in tensors.values()]
        named = dict(zip(tensors, leaves, strict=True))
        output = op(**named, **options, return_final_state=True, backend=backend)[which]
        grads[backend] = torch.autograd.grad(output.abs().sum(), leaves)
    for got, want in zip(grads["native"], grads["torch"], strict=True):
        assert_close("gradient", got, want)


LEVELS = [level for level in library.LEVELS.values() if library.has_level(level)]
every_level = pytest.mark.parametrize("level", LEVELS)


@every_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_gates_that_are_all_but_shut_keep_their_digits(
    level: int, dtype: torch.dtype, gelu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tensor is small throughout, so that an error in it is not hidden behind its largest element."""
    monkeypatch.setattr(library, "forced_level", level)
    _, tensors, _ = gated(1, 64, 21)
    for name, shift in {"r": -12.0, "i": 9.0, "gate": -3.5, "a_log": 8.0}.items():
        tensors[name] = tensors[name] * 0.3 + shift
    exact = {n: t.to(dtype).double() for n, t in tensors.items()}
    expected = run(rglru_scan, exact, {"gelu": gelu}, "reference")
    got = run(rglru_scan, {n: t.to(dtype) for n, t in tensors.items()}, {"gelu": gelu})
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10  # in fp64 the reference's own 1 + erf cancels
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert_close(f"output {i}", a.double(), b, tolerance=tolerance)


@every_level
def test_logits_of_any_size_are_finite(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "forced_level", level)
    edges = torch.tensor([-1e30, -1e4, -100.0, -40.0, 0.0, 40.0, 100.0, 1e4, 1e18])
    r, i = torch.meshgrid(edges, edges, indexing="ij")
    logits = {"x": torch.ones(1, 9, 9), "r": r[None], "i": i[None], "gate": r[None].clamp(-1e15)}
    for a_log in (-100.0, 0.0, 30.0, 60.0):
        tensors = logits | {"a_log": torch.full((9,), a_log)}
        got = run(rglru_scan, tensors, {})
        expected = run(rglru_scan, {n: t.double() for n, t in tensors.items()}, {}, "reference")
        assert all(t.isfinite().all() for t in got)
        for name, a, b in zip(("y", "final state"), got, expected, strict=False):
            assert_close(f"a_log {a_log}: {name}", a, b)


def test_a_decay_of_one_trains() -> None:
    """The square root's derivative is 1000 there, not infinite."""
    for op, tensors in (
        (linear_scan, {"a": torch.tensor([1.0, -1.0, 2.0, 0.999999]), "b": torch.ones(1, 3, 4)}),
        (linear_scan, {"a": torch.tensor([1j, 0.6 + 0.8j, 2.0, 0.999j]), "b": torch.ones(1, 3, 4)}),
    ):
        options = {"input_scale": "sqrt"}
        doubled = {n: t.to(torch.complex128 if t.is_complex() else torch.float64) for n, t in tensors.items()}
        expected = run(op, doubled, options, "reference")
        for a, b in zip(run(op, doubled, options), expected, strict=True):
            assert_close("double", a, b, tolerance=1e-7)  # the reference subtracts near-equal numbers
        assert all(t.isfinite().all() for t in run(op, tensors, options))


@every_level
def test_phases_of_many_turns(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """S5's rates reach hundreds of radians a step; a product of dt and rate in fp32 alone would lose them."""
    monkeypatch.setattr(library, "forced_level", level)
    a = torch.complex(-torch.rand(33) * 0.1, 600 * torch.rand(33))
    b, dt = torch.randn(1, 50, 33, dtype=torch.complex64), torch.rand(1, 50)
    tensors = {"a": a, "b": b, "dt": dt}
    doubled = {n: t.to(torch.complex128 if t.is_complex() else torch.float64) for n, t in tensors.items()}
    expected = run(linear_scan, doubled, {}, "reference")
    for i, (got, want) in enumerate(zip(run(linear_scan, tensors, {}), expected, strict=True)):
        assert_close(f"output {i}", got, want)


def test_lazy_conjugates_and_signs() -> None:
    _, tensors, options = linear("varying complex")
    expected = run(linear_scan, {n: t.conj().resolve_conj() for n, t in tensors.items()}, options)
    lazy = {n: t.conj() for n, t in tensors.items()}
    assert all(t.is_conj() for t in lazy.values())
    got = linear_scan(**lazy, **options, backend="native")
    assert torch.equal(got, expected[0])
    b = tensors["b"].requires_grad_()
    ones = torch.full_like(b, 1j)
    plain, conjugate = (
        torch.autograd.grad(linear_scan(tensors["a"], b, backend="native"), b, cotangent)[0]
        for cotangent in (ones, (-ones).resolve_conj().conj())
    )
    assert torch.equal(plain, conjugate)
