"""The formulas that must not lose digits, against exact forms in fp64."""

import math

import pytest
import torch

from nvsubq.ops.numerics import (
    SQRT_MAX_DERIVATIVE,
    accumulation_dtype,
    bounded_sqrt,
    cast,
    expm1_over,
    one_minus_square,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_expm1_over_and_its_derivative(dtype: torch.dtype) -> None:
    sizes = torch.logspace(-12, 1.5, 400, dtype=torch.float64)
    z = torch.cat([-sizes, sizes[sizes < 5], torch.zeros(1, dtype=torch.float64)]).to(dtype)
    z.requires_grad_(True)
    value = expm1_over(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    exact = z.detach().double()
    far = exact.abs() > 1e-3
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-13}[dtype]
    one = torch.ones_like(exact)
    expected = torch.where(
        far, torch.expm1(exact) / torch.where(far, exact, one), 1 + exact / 2 + exact**2 / 6 + exact**3 / 24
    )
    assert (value.double() / expected - 1).abs().max() < tolerance
    by_parts = (exact.exp() - expected) / torch.where(far, exact, one)
    series = 0.5 + exact / 3 + exact**2 / 8 + exact**3 / 30
    assert (slope.double() / torch.where(far, by_parts, series) - 1).abs().max() < max(tolerance, 1e-11)


def test_expm1_over_of_complex_numbers() -> None:
    z = torch.tensor([0, 1e-9j, 0.2 + 0.2j, -0.3j, 2 + 3j, 2j * math.pi], dtype=torch.complex128)
    value = expm1_over(z)
    assert value[0] == 1
    assert (value[1] - (1 + 0.5e-9j)).abs() < 1e-15
    assert (value[2:] - (z[2:].exp() - 1) / z[2:]).abs().max() < 1e-14
    assert torch.autograd.gradcheck(expm1_over, z.clone().requires_grad_(True))


def test_bounded_sqrt() -> None:
    x = torch.tensor([-1.0, 0.0, 1e-12, 0.25, 4.0], requires_grad=True)
    root = bounded_sqrt(x)
    (slope,) = torch.autograd.grad(root.sum(), x)
    assert root.tolist() == pytest.approx([0, 0, 1e-6, 0.5, 2])
    assert slope.tolist() == pytest.approx([0, SQRT_MAX_DERIVATIVE, SQRT_MAX_DERIVATIVE, 1, 0.25])


def test_one_minus_square_next_to_one() -> None:
    log_a = torch.tensor([-1e-7, -1e-3, -5.0], dtype=torch.float32)
    expected = -torch.expm1(2 * log_a.double())
    assert (one_minus_square(log_a) / expected - 1).abs().max() < 3e-7


def test_accumulation_dtype() -> None:
    half, single = torch.ones(1, dtype=torch.bfloat16), torch.ones(1)
    assert accumulation_dtype(half, None, single) == torch.float32
    assert accumulation_dtype(half, torch.ones(1, dtype=torch.complex64)) == torch.float32
    assert accumulation_dtype(half, torch.ones(1, dtype=torch.complex128)) == torch.float64
    kinds = [
        t if t is None else t.dtype
        for t in cast(torch.float64, half, None, torch.ones(1, dtype=torch.complex64))
    ]
    assert kinds == [torch.float64, None, torch.complex128]
