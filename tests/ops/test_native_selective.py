"""`selective_scan` on the native backend: options together, complex numbers, decays at the edges."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from nvsubq.ops import backends, selective_scan
from nvsubq.ops.native import library

pytestmark = pytest.mark.skipif(
    not next(b for b in backends() if b.name == "native").active, reason="native is not active"
)

KINDS = ("mamba", "zoh", "bilinear", "dirac", "no_discretization")
LEVELS = [name for name, level in library.LEVELS.items() if library.has_level(level)]


def make(
    kind: str, b: str, c: str, is_complex: bool, states: int = 5, length: int = 70, width: int = 6
) -> dict[str, Tensor]:
    """A call with every tensor; B and the gate, and C, are `fixed`, or by cell with one or several groups."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, parts: bool = False) -> Tensor:
        dtype = torch.complex128 if parts and is_complex else torch.float64
        return torch.randn(shape, generator=generator, dtype=dtype)

    batch = 2
    shapes = {
        "fixed": (width, states), "one": (batch, length, states), "groups": (batch, length, 2, states),
    }  # fmt: skip
    A = -normal(width, states).exp()
    if is_complex:
        A = torch.complex(A, 3 * normal(width, states))
    if kind == "no_discretization":
        A = A / (1 + A.abs())
    return {
        "u": normal(batch, length, width),
        "delta": normal(batch, length, width) - 1,
        "A": A,
        "B": normal(*shapes[b], parts=True),
        "C": normal(*shapes[c], parts=True),
        "D": normal(width),
        "z": normal(batch, length, width),
        "delta_bias": normal(width),
        "decay_gate": torch.rand(shapes[b], generator=generator, dtype=torch.float64),
        "initial_state": normal(batch, width, states, parts=True),
    }


def outcome(inputs: dict[str, Tensor], backend: str, **options) -> list[Tensor]:
    """y, final state and all gradients."""
    leaves = {n: t.detach().requires_grad_() for n, t in inputs.items()}
    y, final = selective_scan(
        **leaves, delta_softplus=True, return_final_state=True, backend=backend, **options
    )
    cotangents = [torch.linspace(-1, 1, t.numel()).bfloat16().to(t.dtype).view_as(t) for t in (y, final)]
    return [y.detach(), final.detach(), *torch.autograd.grad((y, final), list(leaves.values()), cotangents)]


def agree(inputs: dict[str, Tensor], like: str = "torch", **options) -> None:
    names = ["y", "final_state", *inputs]
    got, expected = outcome(inputs, "native", **options), outcome(inputs, like, **options)
    for name, a, b in zip(names, got, expected, strict=True):
        assert_close(name, a, b)


def rounded(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.to(torch.complex64 if t.is_complex() else torch.float32) for n, t in inputs.items()}


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize(
    ("b", "c"), list(itertools.product(("fixed", "one", "groups"), repeat=2)), ids="-".join
)
@pytest.mark.parametrize("kind", KINDS)
def test_any_forms_of_B_and_C(kind: str, b: str, c: str, is_complex: bool) -> None:
    agree(make(kind, b, c, is_complex), discretization=kind)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("kind", KINDS[:-1])
@pytest.mark.parametrize("by_time", [False, True], ids=["delta_a", "timesteps"])
def test_event_mode_with_everything_else(kind: str, by_time: bool, is_complex: bool) -> None:
    inputs = make(kind, "fixed", "groups", is_complex)
    if by_time:
        inputs |= {"delta_a": torch.rand(6).double(), "timesteps": 3 * torch.rand(2, 70).double()}
    else:
        inputs["delta_a"] = torch.rand(2, 70, 6).double()
    seq_idx = (torch.arange(70) // 9).expand(2, 70) - torch.tensor([[0], [1]])
    agree(inputs, discretization=kind, seq_idx=seq_idx, order=torch.randperm(70), reverse=True)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("form", ["fixed", "groups"])
def test_blocks_with_walks_of_their_own(form: str, is_complex: bool) -> None:
    """Fixed B and C have no groups, and the blocks walk on their own all the same."""
    order = torch.stack([torch.randperm(70), torch.arange(70)])
    agree(make("zoh", form, form, is_complex), discretization="zoh", order=order, reverse=(True, False))


@pytest.mark.parametrize("states", [1, 16, 17, 64])
@pytest.mark.parametrize("width", [1, 17, 300])
def test_complex_states_and_widths(width: int, states: int) -> None:
    agree(make("zoh", "one", "one", True, states, 40, width), discretization="zoh")


def test_real_B_and_C_with_complex_A() -> None:
    inputs = make("mamba", "one", "fixed", True)
    agree(inputs | {"B": inputs["B"].real, "C": inputs["C"].real})


def test_lazy_conjugates_are_read_as_what_they_say() -> None:
    inputs = make("mamba", "one", "one", True)
    lazy = inputs | {"A": inputs["A"].conj(), "B": inputs["B"].conj(), "u": inputs["u"] * (1 + 1j)}
    lazy["u"] = lazy["u"].conj().imag
    assert lazy["A"].is_conj()
    assert lazy["u"].is_neg()
    plain = {n: t.resolve_conj().resolve_neg().clone() for n, t in lazy.items()}
    for a, b in zip(outcome(lazy, "native"), outcome(plain, "native"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["mamba", "zoh", "bilinear", "no_discretization"])
def test_complex_gradcheck(kind: str) -> None:
    inputs = {n: t.requires_grad_() for n, t in make(kind, "one", "fixed", True, 2, 4, 3).items()}

    def scan(*tensors: Tensor):
        named = dict(zip(inputs, tensors, strict=True))
        return selective_scan(
            **named, delta_softplus=True, discretization=kind, return_final_state=True, backend="native"
        )

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4, 1e7, 1e12])
def test_phases_of_any_size(
    scale: float, dtype: torch.dtype, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step from state 1 gives the decay itself, exp(i delta A), for phases of many turns."""
    monkeypatch.setattr(library, "forced_level", library.LEVELS[level])
    width = 257
    generator = torch.Generator().manual_seed(1)
    rate = (scale * torch.rand(width, 1, generator=generator, dtype=torch.float64)).to(dtype)
    delta = (torch.rand(1, 1, width, generator=generator, dtype=torch.float64) + 0.5).to(dtype)
    A = torch.complex(torch.zeros_like(rate), rate)
    nothing = torch.zeros(1, 1, 1, dtype=dtype)
    _, final = selective_scan(
        torch.zeros_like(delta), delta, A, nothing, nothing, initial_state=torch.ones(1, width, 1) + 0 * A,
        return_final_state=True, backend="native",
    )  # fmt: skip
    exact = [d * r for d, r in zip(delta.flatten().tolist(), rate.flatten().tolist(), strict=True)]
    expected = torch.tensor([complex(math.cos(p), math.sin(p)) for p in exact], dtype=torch.complex128)
    # In fp64 the expected phase is rounded itself.
    bound = 3e-7 if dtype == torch.float32 else max(4e-16, 3e-16 * scale)
    assert float((final.flatten().to(torch.complex128) - expected).abs().max()) < bound


@pytest.mark.parametrize("kind", KINDS[:-1])
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_long_gaps_and_vanishing_rates(kind: str, is_complex: bool) -> None:
    """A decay that underflows to 0, and A near 0 where (exp(z) - 1)/z is a series; gradients stay right."""
    inputs = make(kind, "one", "one", is_complex)
    inputs["A"][0], inputs["A"][1], inputs["A"][2] = -1e3, -1e-9, 0
    inputs["delta"][:, ::7] = 40.0
    agree(inputs, discretization=kind)
    for value in outcome(rounded(inputs), "native", discretization=kind):
        assert value.isfinite().all()


def test_a_decay_gate_may_close() -> None:
    inputs = make("mamba", "one", "one", False)
    inputs["decay_gate"][:, 30] = 0
    agree(inputs)


def test_complex_storage_in_half_precision() -> None:
    """Activations in bf16, A, B, C and states complex64."""
    inputs = rounded(make("zoh", "one", "fixed", True))
    inputs |= {n: inputs[n].bfloat16() for n in ("u", "delta", "z")}
    got = outcome(inputs, "native", discretization="zoh")
    wide = {n: t.to(torch.complex128 if t.is_complex() else torch.float64) for n, t in inputs.items()}
    expected = outcome(wide, "reference", discretization="zoh")
    for name, a, b in zip(["y", "final_state", *inputs], got, expected, strict=True):
        assert_close(name, a, b)
