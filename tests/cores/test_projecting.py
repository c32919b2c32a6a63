"""Linear layers as CUDA devices like them; elsewhere they are what they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nvsubq.cores import Mamba2
from nvsubq.cores.norm import GroupRMSNorm
from nvsubq.cores.projecting import normed_project, split_project

DEVICE = "cuda"


class Core(nn.Module):
    """A core's layers: in, norm, out."""

    def __init__(self, width: int = 12, groups: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.wide = nn.Linear(5, 11, bias=bias)
        self.norm = GroupRMSNorm(width, groups)
        self.last = nn.Linear(width, 3, bias=bias)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)


def test_off_cuda_a_layer_is_called_as_it_is() -> None:
    core, x = Core(), torch.randn(2, 7, 5)
    for part, expected in zip(
        split_project(core, "wide", x, (4, 7)), core.wide(x).split((4, 7), -1), strict=True
    ):
        assert torch.equal(part, expected)
    assert normed_project(core, "norm", "last", torch.randn(2, 7, 12)) is None


@pytest.mark.gpu
@pytest.mark.parametrize("bias", [True, False])
def test_parts_lie_in_whole_packs(bias: bool) -> None:
    core, x = Core(bias=bias).to(DEVICE), torch.randn(2, 7, 5, device=DEVICE)
    parts = split_project(core, "wide", x, (4, 7))
    assert [part.stride(1) for part in parts] == [16, 16]
    leaves = list(core.wide.parameters())
    expected = core.wide(x).split((4, 7), -1)
    for got, want in zip(parts, expected, strict=True):
        torch.testing.assert_close(got, want)
    cotangents = [torch.randn_like(part) for part in parts]
    grads = torch.autograd.grad(parts, leaves, cotangents)
    for got, want in zip(grads, torch.autograd.grad(expected, leaves, cotangents), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_norm_goes_along_with_the_layer_after_it(groups: int, dtype: torch.dtype) -> None:
    core = Core(groups=groups).to(DEVICE, dtype)
    x = torch.randn(2, 7, 12, device=DEVICE, dtype=dtype, requires_grad=True)
    leaves = [x, core.norm.weight, *core.last.parameters()]
    got, expected = normed_project(core, "norm", "last", x), core.last(core.norm(x))
    assert got is not None
    torch.testing.assert_close(got, expected)
    cotangent = torch.randn_like(expected)
    grads = [torch.autograd.grad(y, leaves, cotangent) for y in (got, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
def test_a_hook_is_called() -> None:
    core = Core().to(DEVICE)
    seen: list[int] = []
    for name, layer in (("wide", core.wide), ("last", core.last), ("norm", core.norm)):
        handle = layer.register_forward_hook(lambda *_, name=name: seen.append(name))
        split_project(core, "wide", torch.randn(2, 5, device=DEVICE), (11,))
        if name != "wide":
            assert normed_project(core, "norm", "last", torch.randn(2, 12, device=DEVICE)) is None
        handle.remove()
    assert seen == ["wide"]


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_is_what_it_is_on_a_cpu(groups: int, autocast: bool) -> None:
    torch.manual_seed(0)
    core = Mamba2(d_model=24, d_state=16, headdim=8, ngroups=groups)
    nn.init.uniform_(core.norm.weight, 0.5, 1.5)
    x = torch.randn(2, 150, 24)

    def run(core: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast and x.is_cuda):
            y = core(x)
        grads = torch.autograd.grad(y, [x, *core.parameters()], torch.ones_like(y))
        return [t.detach().double().cpu() for t in (y, *grads)]

    expected = run(core.double(), x.double())
    for got, want in zip(run(core.float().to(DEVICE), x.to(DEVICE)), expected, strict=True):
        assert (got - want).norm() <= (2e-2 if autocast else 2e-5) * want.norm()
