"""`mamba_shares`: several Mamba cores, each on its share of the channels, against each of them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from nvsubq.cores import Mamba
from nvsubq.ops import backends, use_backend
from nvsubq.ops.mamba_shares import mamba_shares

pytestmark = pytest.mark.skipif(
    not next(b for b in backends() if b.name == "native").active, reason="native is not active"
)

LENGTH, WIDTH = 70, 12
ORDER, OTHER = (torch.randperm(LENGTH, generator=torch.Generator().manual_seed(s)) for s in (2, 3))
WALKS: dict[str, dict[str, Any]] = {
    "both ways": {"orders": (None, None), "reverse": (False, True)},
    "orders": {"orders": (None, None, ORDER, ORDER), "reverse": (False, True, False, True)},
    "of each its own": {"orders": (OTHER, None, ORDER), "reverse": (True, True, False)},
    "one": {"orders": (ORDER,), "reverse": (True,)},
}


def cores(count: int, dtype: torch.dtype = torch.float64, **options: Any) -> list[Mamba]:
    torch.manual_seed(0)
    made = [Mamba(WIDTH, d_state=5, dt_rank=3, dtype=dtype, **options) for _ in range(count)]
    for core in made:
        core.D.data.uniform_(-1, 1)
    return made


def weights(some: list[Mamba]) -> list[Any]:
    found = [core.weights_together() for core in some]
    assert None not in found
    return found


def field(count: int, length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, count * WIDTH, dtype=torch.float64, requires_grad=True)


def outcome(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    cotangent = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]


def composed(x: Tensor, some: list[Mamba], orders: tuple[Any, ...], reverse: tuple[bool, ...]) -> Tensor:
    parts = zip(some, x.chunk(len(some), -1), orders, reverse, strict=True)
    return torch.cat([core(part, order=order, reverse=r) for core, part, order, r in parts], -1)


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("options", [{}, {"conv_bias": False}, {"discretization": "zoh"}], ids=str)
def test_is_the_cores_side_by_side(walk: str, options: dict[str, Any]) -> None:
    walks = WALKS[walk]
    some = cores(len(walks["reverse"]), **options)
    x = field(len(some))
    leaves = [x, *(p for core in some for p in core.parameters())]
    y = mamba_shares(x, weights(some), **walks, discretization=some[0].discretization)
    assert y is not None
    expected = outcome(composed(x, some, **walks), leaves)
    for i, (got, want) in enumerate(zip(outcome(y, leaves), expected, strict=True)):
        assert_close(f"output {i}", got, want)
    with torch.no_grad():
        again = mamba_shares(x, weights(some), **walks, discretization=some[0].discretization)
    assert again is not None
    assert torch.equal(again, y.detach())


def test_an_input_in_any_layout() -> None:
    some, x = cores(2), field(2).detach()
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    both: dict[str, Any] = WALKS["both ways"]
    first, second = (mamba_shares(given, weights(some), **both) for given in (x, turned))
    assert torch.equal(first, second)  # type: ignore[arg-type]


def test_one_core_on_every_share() -> None:
    (core,) = cores(1)
    walks, x = WALKS["both ways"], field(2)
    leaves = [x, *core.parameters()]
    y = mamba_shares(x, weights([core, core]), **walks)
    assert y is not None
    for got, want in zip(outcome(y, leaves), outcome(composed(x, [core] * 2, **walks), leaves), strict=True):
        assert_close("output", got, want)


def test_what_does_not_ask_for_gradients_gets_none() -> None:
    some = cores(2)
    some[0].D.requires_grad_(False)
    some[1].in_proj.weight.requires_grad_(False)
    y = mamba_shares(field(2).detach(), weights(some), **WALKS["both ways"])
    assert y is not None
    y.sum().backward()
    for core in some:
        for name, parameter in core.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_graph_may_be_walked_back_twice_but_not_differentiated() -> None:
    some, x = cores(2), field(2)
    y: Any = mamba_shares(x, weights(some), **WALKS["both ways"])
    (first,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="once-differentiable"):
        second.sum().backward()


def test_leaves_alone_what_it_cannot_do() -> None:
    some, x = cores(2), field(2).detach()
    both: dict[str, Any] = WALKS["both ways"]
    assert mamba_shares(x, weights(some), **both) is not None
    assert mamba_shares(x.float(), weights(some), **both) is None  # torch's own error is to be seen
    assert mamba_shares(x.half(), weights([core.half() for core in cores(2)]), **both) is None
    assert mamba_shares(x[:, :0], weights(some), **both) is None
    assert mamba_shares(x, weights(some), **both, backend="torch") is None
    with torch.autocast("cpu", torch.bfloat16):
        assert mamba_shares(x, weights(some), **both) is None
    with use_backend("reference"):
        assert mamba_shares(x, weights(some), **both) is None
    other = Mamba(WIDTH, d_state=4, dtype=torch.float64)
    assert mamba_shares(x, weights([some[0], other]), **both) is None
