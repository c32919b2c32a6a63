"""`ssd_scan` on the native backend: chunks, segments and rounds that are not whole; bits, strides, limits."""

from __future__ import annotations

import math

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from nvsubq.ops import backends, ssd_scan
from nvsubq.ops.native import library

pytestmark = pytest.mark.skipif(
    not next(b for b in backends() if b.name == "native").active, reason="native is not active"
)

LEVELS = [name for name, level in library.LEVELS.items() if library.has_level(level)]


def make(
    batch: int = 2,
    length: int = 70,
    heads: int = 4,
    width: int = 5,
    states: int = 6,
    groups: int = 2,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """A call with every tensor that carries a gradient."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    cells = (batch, length)
    return {
        "x": normal(*cells, heads, width),
        "dt": normal(*cells, heads) - 1,
        "A": -normal(heads).exp(),
        "B": normal(*cells, groups, states),
        "C": normal(*cells, groups, states),
        "D": normal(heads, width),
        "z": normal(*cells, heads, width),
        "dt_bias": normal(heads),
        "initial_state": normal(batch, heads, width, states),
    }


def outcome(inputs: dict[str, Tensor], backend: str = "native", **options) -> dict[str, Tensor]:
    """y, final state and all gradients."""
    leaves = {n: t.detach().requires_grad_() for n, t in inputs.items()}
    options = {"dt_softplus": True} | options
    y, final = ssd_scan(**leaves, return_final_state=True, backend=backend, **options)
    cotangents = [torch.linspace(-1, 1, t.numel()).bfloat16().to(t.dtype).view_as(t) for t in (y, final)]
    grads = torch.autograd.grad((y, final), list(leaves.values()), cotangents)
    return {"y": y.detach(), "final_state": final.detach()} | dict(zip(inputs, grads, strict=True))


def agree(inputs: dict[str, Tensor], like: str = "torch", **options) -> None:
    """The same as another backend, in the dtype of the inputs; fp32 is held to the fp64 answer."""
    got = outcome(inputs, **options)
    wide = {n: t.double() for n, t in inputs.items()}
    for name, expected in outcome(wide, like, **options).items():
        assert_close(name, got[name], expected)


def same_bits(got: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(got[name], expected[name]) for name in expected)


def sequences(batch: int, length: int, chance: float, absent: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    found = (torch.rand(batch, length, generator=generator) < chance).cumsum(1) % 5
    found[torch.rand(batch, length, generator=generator) < absent] = -1
    return found.int()


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33, 63, 64, 65, 127, 128, 129, 257, 600])
@pytest.mark.parametrize("states", [3, 64, 80])
def test_lengths_across_chunks_and_segments(length: int, states: int) -> None:
    agree(make(2, length, 2, 5, states))
    agree(make(2, length, 2, 5, states, dtype=torch.float32))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 15, 16, 17, 32, 33, 48, 64, 80, 128])
@pytest.mark.parametrize("level", LEVELS)
def test_widths_of_a_head(width: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "forced_level", library.LEVELS[level])
    agree(make(2, 37, 3, width, 9, 1))
    agree(make(2, 37, 3, width, 9, 1, dtype=torch.float32))


@pytest.mark.parametrize("states", [1, 2, 7, 16, 31, 64, 65, 130, 256])
def test_numbers_of_states(states: int) -> None:
    agree(make(1, 150, 4, 3, states, 2))


@pytest.mark.parametrize("chance", [0.02, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("states", [5, 70])
@pytest.mark.parametrize("reverse", [False, True])
def test_sequences_of_any_length(chance: float, states: int, reverse: bool) -> None:
    """A chunk ends where a sequence does, so there are up to as many chunks as cells."""
    inputs = make(3, 300, 2, 4, states)
    for absent in (0.0, 0.3, 1.0):
        agree(inputs, seq_idx=sequences(3, 300, chance, absent), reverse=reverse)


def test_a_sequence_does_not_see_another() -> None:
    """Not even a NaN or an infinity of it."""
    inputs = make(1, 64, 2, 4, 5)
    seq_idx = torch.arange(64).view(1, 64).int() // 20
    expected = outcome(inputs, seq_idx=seq_idx)
    for value in (math.nan, math.inf):
        spoilt = {n: t.clone() for n, t in inputs.items()}
        for name in ("x", "dt", "B", "C", "z"):
            spoilt[name][:, 20:40] = value
        got = outcome(spoilt, seq_idx=seq_idx)
        for name in ("y", "x", "dt", "B", "C", "z"):
            for cells in (slice(0, 20), slice(40, 64)):
                assert torch.equal(got[name][:, cells], expected[name][:, cells]), name


def test_a_cell_does_not_see_a_later_one() -> None:
    inputs = make(1, 40, 2, 4, 5)
    expected = outcome(inputs)["y"]
    for name in ("x", "dt", "B", "C", "z"):
        inputs[name][:, 25:] = math.nan
    assert torch.equal(outcome(inputs)["y"][:, :25], expected[:, :25])


def test_rounds_of_rows_and_windows() -> None:
    """A call that is cut into rounds gives each row and cell what it gets alone."""
    inputs = make(70, 100, 4, 16, 64, 1, torch.float32)
    together = outcome(inputs)
    by_row = [name for name, t in inputs.items() if len(t) == 70]
    for row in (0, 33, 69):
        alone = outcome(inputs | {n: inputs[n][row : row + 1] for n in by_row})["y"]
        assert torch.equal(alone[0], together["y"][row])
    agree(inputs)
    agree(make(1, 1200, 8, 8, 128, 8, torch.float32))


def test_a_row_of_gradients_does_not_depend_on_the_batch() -> None:
    inputs = make(9, 80, 2, 16, 16, 1, torch.float32)
    by_row = [name for name, t in inputs.items() if len(t) == 9]
    leaves = {n: t.requires_grad_() for n, t in inputs.items()}
    y = ssd_scan(**leaves, dt_softplus=True, backend="native")
    together = torch.autograd.grad(y.sum(), [leaves[n] for n in by_row])
    for row in (0, 8):
        given = leaves | {n: leaves[n][row : row + 1].detach().requires_grad_() for n in by_row}
        y = ssd_scan(**given, dt_softplus=True, backend="native")
        for alone, all_rows in zip(
            torch.autograd.grad(y.sum(), [given[n] for n in by_row]), together, strict=True
        ):
            assert torch.equal(alone[0], all_rows[row])


@pytest.mark.parametrize("states", [16, 100])
def test_any_number_of_threads_gives_the_same_bits(states: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_WORK_OF_ONE_THREAD", 0)
    inputs = make(3, 300, 4, 20, states, 2, torch.float32)
    options = {"seq_idx": sequences(3, 300, 0.01, 0.1)}
    torch.set_num_threads(1)
    expected = outcome(inputs, **options)
    for threads in (1, 2, 8):
        torch.set_num_threads(threads)
        for _ in range(3):
            assert same_bits(outcome(inputs, **options), expected)


def test_rows_of_wider_tensors() -> None:
    """As `Mamba2` has them: x, B, C and z are columns of one projection."""
    inputs = make(2, 70, 4, 8, 6, 2)
    expected = outcome(inputs)

    def columns(t: Tensor) -> Tensor:
        flat = t.flatten(2)
        wide = flat.new_full((*flat.shape[:2], flat.shape[2] + 5), math.nan)
        wide[..., 3:-2] = flat
        return wide[..., 3:-2].unflatten(2, t.shape[2:])

    odd = inputs | {n: columns(inputs[n]) for n in ("x", "B", "C", "z")}
    assert not odd["x"].is_contiguous()
    assert odd["x"].data_ptr() % 16
    assert same_bits(outcome(odd), expected)
    turned = {n: t.mT.contiguous().mT if t.dim() > 1 else t for n, t in inputs.items()}
    assert same_bits(outcome(turned), expected)
    spread = inputs | {n: inputs[n][:, :, :1].expand(-1, -1, 2, -1) for n in ("B", "C")}
    agree(spread)


def test_limits_of_the_step() -> None:
    """Both ends belong to it, as torch's clamp has it; the gradient beyond is 0."""
    inputs = make(1, 40, 2, 4, 3)
    inputs["dt_bias"].zero_()
    inputs["dt"][0, :4, 0] = torch.tensor([0.25, 0.5, 0.1, 0.9])
    for limit in ((0.25, 0.5), (0.0, math.inf), (-math.inf, 0.3), (0.4, 0.4)):
        agree(inputs, "reference", dt_softplus=False, dt_limit=limit)
        agree(inputs, "reference", dt_limit=limit)
    grad = outcome(inputs, dt_softplus=False, dt_limit=(0.25, 0.5))["dt"][0, :4, 0]
    assert (grad != 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("rate", [0.0, 1e-6, 30.0, 1e4])
def test_decays_from_none_to_all(rate: float) -> None:
    inputs = make(1, 200, 2, 4, 3, dtype=torch.float32)
    inputs["A"] = torch.full_like(inputs["A"], -rate)
    got, expected = outcome(inputs), outcome({n: t.double() for n, t in inputs.items()}, "torch")
    if rate == 1e4:  # the gradient of A is no number of fp32
        assert got.pop("A").eq(0).all()
    for name, value in got.items():
        assert_close(name, value, expected[name])


def test_a_final_state_is_computed_on_demand() -> None:
    inputs = make(dtype=torch.float32)
    leaves = {n: t.requires_grad_() for n, t in inputs.items()}
    options = {"dt_softplus": True, "backend": "native"}
    y, _ = ssd_scan(**leaves, return_final_state=True, **options)
    alone = ssd_scan(**leaves, **options)
    assert torch.equal(alone, y)
    grads = [torch.autograd.grad(out.sum(), list(leaves.values())) for out in (y, alone)]
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_gradients_of_the_final_state_alone() -> None:
    grads = {}
    for backend in ("native", "torch"):
        leaves = {n: t.requires_grad_() for n, t in make().items()}
        final = ssd_scan(**leaves, dt_softplus=True, return_final_state=True, backend=backend)[1]
        names = ("x", "dt", "A", "B", "dt_bias", "initial_state")
        grads[backend] = torch.autograd.grad(final.square().sum(), [leaves[n] for n in names])
    for got, expected in zip(grads["native"], grads["torch"], strict=True):
        assert_close("gradient", got, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_with_parameters_in_fp32(dtype: torch.dtype) -> None:
    inputs = make(2, 100, 4, 20, 30, 1, torch.float32)
    inputs = {n: t.to(dtype) if t.dim() > 2 and n != "initial_state" else t for n, t in inputs.items()}
    agree(inputs)


@pytest.mark.parametrize("form", ["H", "H P"])
def test_gradcheck(form: str) -> None:
    inputs = make(2, 5, 2, 3, 2)
    if form == "H":
        inputs["D"] = inputs["D"][:, 0].clone()
    inputs = {n: t.requires_grad_() for n, t in inputs.items()}
    seq_idx = torch.tensor([[0, 0, 1, -1, 1], [2, 2, 2, 2, 2]])

    def scan(*tensors: Tensor):
        named = dict(zip(inputs, tensors, strict=True))
        return ssd_scan(**named, dt_softplus=True, seq_idx=seq_idx, return_final_state=True, backend="native")

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))
