"""Backend `mamba_ssm` and the foreign cores over the packages themselves, where they are installed.

`test_mamba_ssm.py` and `tests/cores/test_foreign_configs.py` have the same over stand-ins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Case
from omegaconf import OmegaConf
from test_mamba_ssm import SERVED
from tolerances import assert_close
from torch import Tensor

from nvsubq import NDMixer, ops
from nvsubq.ops import mamba_ssm

REASON = mamba_ssm.inactive()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
CONFIGS = Path(__file__).parents[2] / "configs" / "core"
CORES = ("mamba_ssm_mamba", "mamba_ssm_mamba2")


def outcome(case: Case, backend: str, dtype: torch.dtype, *, as_double: bool = False) -> dict[str, Tensor]:
    """y, and gradients where the scan has them: not of the final state."""
    tensors, options = case.build(dtype, "cuda")
    if as_double:
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.requires_grad_()
    y = getattr(ops, case.op)(**tensors, **options, backend=backend)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    grads = torch.autograd.grad(y, tuple(tensors.values()), cotangent.to(y))
    named = {f"grad of {name}": grad for name, grad in zip(tensors, grads, strict=True)}
    return {"y": y.detach()} | named


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SERVED, ids=str)
def test_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    expected = outcome(case, "reference", dtype, as_double=True)
    for name, got in outcome(case, "mamba_ssm", dtype).items():
        # Their sums are by atomics and in the storage dtype in places: as good as that, no better.
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
        assert_close(f"{case}, {name}", got, expected[name], tolerance=tolerance)


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # of the package
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CORES)
def test_a_mixer_takes_a_foreign_core(name: str) -> None:
    torch.manual_seed(0)
    mixer = NDMixer(OmegaConf.load(CONFIGS / f"{name}.yaml"), d_model=64, bidirectional=True).cuda()
    x = torch.randn(2, 5, 7, 64, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        y: Any = mixer(x)
    assert y.shape == x.shape
    y.float().square().mean().backward()
    for parameter in (x, *mixer.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
