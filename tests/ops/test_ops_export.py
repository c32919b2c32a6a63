"""The ops as an exported program has them, against the reference: every case of one walk and whole rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, Case, case_of, outcome
from test_operators import DEFAULTS, OPS
from tolerances import assert_close
from torch import Tensor

from nvsubq.ops.export import exported

ONE_WALK = [
    case
    for case in CASES
    if not case.slow and case.blocks == 1 and not {"seq_idx", "packed"} & set(case.give) and case.sizes["L"]
]


def looped(combine: Callable, init: Tensor, xs: list[Tensor], **_: Any) -> tuple[Tensor, Tensor]:
    """What `scan` means; itself it compiles each body, and is at work in tests/cores/test_core_export.py."""
    outputs = []
    for k in range(len(xs[0])):
        init, y = combine(init, [x[k] for x in xs])
        outputs.append(y)
    return init, torch.stack(outputs)


def call(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    tensors, options = case.build(dtype)
    op = OPS[case.op]
    given = {name: tensors.get(name) for name in op.tensors}
    given |= {name: options.get(name, DEFAULTS[name]) for name in op.options}
    return exported(
        case.op, given, options.get("seq_idx"), options.get("order"), options.get("reverse", False)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ONE_WALK, ids=str)
def test_is_the_reference(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("torch._higher_order_ops.scan")  # the package's `scan` is the function
    monkeypatch.setattr(module, "scan", looped)
    expected = outcome(case, "reference", dtype, as_double=True, backward=False)
    plain = outcome(case, "reference", dtype, backward=False)
    for name, got in zip(("y", "final_state"), call(case, dtype), strict=True):
        assert got.dtype == plain[name].dtype
        assert_close(f"{case}, {name}", got, expected[name])


def test_what_an_exported_program_does_not_have() -> None:
    packed = next(case for case in CASES if "packed" in case.give and case.blocks == 1)
    with pytest.raises(ValueError, match=r"`seq_idx` and `lengths` must be None in torch\.export"):
        call(packed, torch.float32)
    several = case_of("selective_scan", "blocks-reverse")
    tensors, options = several.build()
    with pytest.raises(ValueError, match=r"`order` and `reverse` must name one walk in torch\.export"):
        exported("selective_scan", tensors, None, None, options["reverse"])
