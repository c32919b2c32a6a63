"""The reference's gradients against finite differences, in fp64."""

import pytest
import torch
from cases import CASES, Case

from nvsubq import ops

_CHECKED = (
    "all",
    "G2",
    "fixed",
    "complex-BC",
    "complex-gate",
    "fixed-zoh-complex",
    "zoh",
    "zoh-complex",
    "bilinear-delta_a",
    "zoh-timesteps",
    "dirac-gate",
    "no_discretization",
    "complex",
    "complex-a",
    "real-sqrt",
    "complex-dt-zoh-zoh",
    "complex-dt-bilinear-sqrt",
    "real-dt-bilinear-bilinear",
    "real-wide-dt",
    "tanh",
    "not-normalized",
    "D-per-channel",
    "limit",
    "dilation2",
    "blocks-seq_idx",
    "seq_idx-order-reverse",
)


@pytest.mark.parametrize("case", [c for c in CASES if c.name in _CHECKED], ids=str)
def test_gradients(case: Case) -> None:
    small = {"B": 2, "L": 4} | {n: s for n, s in {"D": 2, "N": 2, "P": 2, "K": 2}.items() if n in case.sizes}
    if "G" in case.sizes and case.op == "selective_scan":
        small |= {"D": 4, "G": 2}
    case = Case(**{**vars(case), "sizes": {**case.sizes, **small}})
    tensors, options = case.build(requires_grad=True)

    def run(*values: torch.Tensor):
        named = dict(zip(tensors, values, strict=True))
        return getattr(ops, case.op)(**named, **options, return_final_state=True, backend="reference")

    assert torch.autograd.gradcheck(run, tuple(tensors.values()), fast_mode=True)
