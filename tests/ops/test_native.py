"""The native backend against the reference: every case that it serves, in every dtype and instruction set."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case, cases, check

from nvsubq.ops import backends, native
from nvsubq.ops.native import declines, library

pytestmark = pytest.mark.skipif(
    not next(b for b in backends() if b.name == "native").active, reason="native is not active"
)


def served(case: Case) -> bool:
    tensors, options = case.build()
    return hasattr(native, case.op) and declines(case.op, tensors | options) is None


SERVED = [case for case in cases() if served(case)]
LEVELS = [name for name, level in library.LEVELS.items() if library.has_level(level)]
NAMES = (
    "all",
    "plain",
    "zoh-timesteps",
    "seq_idx-order-reverse",
    "L65",
    "N64",
    "bilinear-delta_a",
    "blocks",
    "G6",
    "tanh",
    "not-normalized-seq_idx",
    "real",
    "complex",
    "complex-dt-zoh-zoh",
    "complex-dt-bilinear-sqrt",
    "complex-blocks-seq_idx",
    "fixed",
    "complex-BC",
    "zoh-complex",
    "no_discretization-gate",
    "complex-seq_idx-order-reverse",
)
CHOSEN = [case for case in SERVED if case.name in NAMES]


def test_every_case_of_the_scan_is_served() -> None:
    assert [case for case in cases("selective_scan") if not served(case)] == []


@pytest.mark.parametrize("case", SERVED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    check(case, "native", dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_agrees_with_the_reference_in_half_precision(case: Case, dtype: torch.dtype) -> None:
    check(case, "native", dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CHOSEN, ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set_agrees(
    case: Case, dtype: torch.dtype, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "forced_level", library.LEVELS[level])
    check(case, "native", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.slow and served(c)], ids=str)
def test_agrees_with_the_reference_over_long_walks(case: Case) -> None:
    check(case, "native", torch.float64)
    check(case, "native", torch.float32)
