"""Bilinear forms against torch's own, and their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nvsubq.cores import bilinear
from nvsubq.cores.bilinear import bilinear_form


@pytest.mark.parametrize("elements", [1, 40, 2**20])  # a cell at a time, some, all
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 7)])
def test_is_torchs_bilinear(shape: tuple[int, ...], elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bilinear, "_MATRIX_ELEMENTS", elements)
    torch.manual_seed(0)
    made = [torch.randn(*shape, 3), torch.randn(*shape, 4), torch.randn(5, 3, 4)]
    found = []
    for form in (bilinear_form, F.bilinear):
        leaves = [t.double().requires_grad_() for t in made]
        out = form(*leaves)
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    leaves = [torch.randn(2, 3, k, dtype=torch.float64, requires_grad=True) for k in (3, 4)]
    weight = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bilinear_form, (*leaves, weight))


def test_sums_of_half_precision_are_kept_in_fp32() -> None:
    ones = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight = torch.ones(1024, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    bilinear_form(ones, ones, weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full_like(weight, 4096))
