"""`selective_scan` on a CUDA device, at the borders of its fast kernels: tiles, windows, pieces, chunks.

Needs a GPU (`scripts/gpu.sh`); `test_cuda.py` has the shared cases and the laws of every op.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from cases import Case, case_of, cases, check, outcome
from tolerances import assert_close

from nvsubq.ops import selective_scan
from nvsubq.ops.selective import SELECTIVE_SCAN

pytestmark = pytest.mark.gpu

ALL = case_of("selective_scan", "all")  # every optional tensor of Mamba, softplus
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def sized(case: Case, name: str, **sizes: int) -> Case:
    return replace(case, name=f"{name}-{case.name}", sizes={**case.sizes, "B": 2, **sizes})


def at_borders() -> Iterator[Case]:
    for states in (1, 3, 4, 7, 8, 16, 20, 64):
        for length in (5, 64, 65, 200):
            yield sized(ALL, f"N{states}-L{length}", N=states, L=length, D=70)
    for width in (1, 31, 128, 132, 300):
        yield sized(ALL, f"D{width}", N=16, L=100, D=width)
    for length, width in ((1500, 40), (2600, 24), (1100, 200)):  # walks in pieces
        yield sized(ALL, f"L{length}-D{width}", N=16, L=length, D=width)
    grouped = dict.fromkeys(("B", "C"), "B L G N")
    for groups in (2, 10, 40):
        case = replace(ALL, forms={**ALL.forms, **grouped})
        yield sized(case, f"G{groups}", N=16, L=100, D=80, G=groups)
    for name in (
        "order",
        "order-reverse",
        "seq_idx",
        "seq_idx-order-reverse",
        "packed",
        "blocks",
        "blocks-seq_idx",
    ):
        case = case_of("selective_scan", name)
        yield sized(case, "windows", N=16, L=150, D=64)
        yield sized(case, "pieces", N=16, L=1200, D=32)
        yield sized(case, "wide-states", N=40, L=70, D=20)


@pytest.mark.parametrize("case", list(at_borders()), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_reference_at_borders(case: Case, dtype: torch.dtype) -> None:
    check(case, "native", dtype, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [c for c in cases("selective_scan") if not c.slow], ids=str)
def test_every_case_in_half_precision(case: Case, dtype: torch.dtype) -> None:
    check(case, "native", dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [200, 2600])
def test_the_same_bits_every_time(length: int, dtype: torch.dtype) -> None:
    case = sized(ALL, "again", N=16, L=length, D=160)
    first, second = outcome(case, "native", dtype, "cuda"), outcome(case, "native", dtype, "cuda")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class Decaying(Case):
    """Channels and states that forget at once, never, and all between; without softplus some that grow."""

    def _value(self, name: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
        value = super()._value(name, shape, generator)
        soft = "delta_softplus" in self.options
        if name == "A":
            return -torch.exp2(6 * torch.rand(shape, generator=generator, dtype=torch.float64) - 4)
        if name == "delta_bias":
            return torch.linspace(-14, 3, *shape, dtype=torch.float64) if soft else value
        if name == "delta" and not soft:
            return 0.1 + 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        return value


def decaying(name: str, length: int) -> Case:
    case = sized(case_of("selective_scan", name), f"decaying-L{length}", N=16, L=length, D=40)
    return Decaying(**vars(case))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1500, 2600])
@pytest.mark.parametrize("name", ["all", "seq_idx", "with-delta_bias"])
def test_pieces_pass_on_what_is_not_forgotten(name: str, length: int, dtype: torch.dtype) -> None:
    check(decaying(name, length), "native", dtype, "cuda")


def test_long_pieces_give_what_short_ones_give() -> None:
    # Pieces of 4096 steps forth and of 1024 back; with few channels of 512.
    few, length, width = 40, 16384, 3072
    tensors, _ = sized(ALL, "long", N=16, L=length, D=width, B=1).build(torch.float32, "cuda")
    d_y = torch.randn(1, length, width, device="cuda", generator=torch.Generator("cuda").manual_seed(1))

    def results(channels: int) -> dict[str, torch.Tensor]:
        def cut(name: str, tensor: torch.Tensor) -> torch.Tensor:
            at = ALL.pattern(name).index("D") if "D" in ALL.pattern(name) else None
            return tensor if at is None else tensor.narrow(at, 0, channels)

        given = {name: cut(name, t).detach().requires_grad_() for name, t in tensors.items()}
        y = selective_scan(**given, delta_softplus=True, backend="native")
        grads = torch.autograd.grad(y, list(given.values()), d_y[..., :channels])
        of_channels = {n: cut(n, g) for n, g in zip(given, grads, strict=True) if n not in ("B", "C")}
        return {"y": y.detach(), **of_channels}

    expected = results(few)
    for name, found in results(width).items():
        at = ALL.pattern(name).index("D") if name in tensors else 2
        assert_close(name, found.narrow(at, 0, few), expected[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("states", [16, 40])
def test_the_gradient_of_delta_may_replace_it(states: int, dtype: torch.dtype) -> None:
    B, L, D = 2, 1200, 72
    make = torch.Generator("cuda").manual_seed(3)

    def random(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, device="cuda", generator=make).to(of)

    wide = random(B, L, 2 * D)
    kept = wide.clone()
    delta = wide[..., :D]
    order = torch.randperm(L, device="cuda", generator=make)
    A, skip, bias = -random(D, states, of=torch.float32).exp(), random(D), random(D)
    rows = random(B, L, D), delta, A, random(B, L, states), random(B, L, states), skip, random(B, L, D)
    tensors = *rows, bias, None, None, None, None
    call = SELECTIVE_SCAN.prepared(tensors, (True, "mamba"), None, order, False, "native")
    _, _, saved = call.forward(tensors, None, order)
    d_y = random(B, L, D)
    expected = call.backward(d_y, None, saved, tensors, None, order)
    found = call.backward(d_y, None, saved, tensors, None, order, {"delta": delta})  # type: ignore[call-arg]
    for name, one, other in zip(SELECTIVE_SCAN.tensors, expected, found, strict=True):
        assert (one is None) == (other is None), name
        if one is not None and other is not None:
            assert torch.equal(one, other), name
    assert expected[1] is not None
    assert torch.equal(delta, expected[1])
    assert torch.equal(wide[..., D:], kept[..., D:])  # and nothing else
