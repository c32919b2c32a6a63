"""The portable backend against the reference: every case, outputs and all gradients, in every float dtype."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case, cases, check

# One case per op and option is run in the other dtypes too; all cases run in fp64.
CHOSEN = [
    c
    for c in cases()
    if c.name in ("all", "seq_idx-order-reverse", "reverse", "L1", "L63", "L65", "zoh", "N64", "complex")
]


@pytest.mark.parametrize("case", cases(), ids=str)
def test_agrees_with_the_reference(case: Case) -> None:
    check(case, "torch", torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.slow], ids=str)
def test_agrees_with_the_reference_over_long_walks(case: Case) -> None:
    check(case, "torch", torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_agrees_with_the_reference_in_other_dtypes(case: Case, dtype: torch.dtype) -> None:
    check(case, "torch", dtype)
