"""`mamba_walks`: several Mamba cores in one, against the cores one after the other."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from nvsubq import NDMixer
from nvsubq.cores import Mamba
from nvsubq.ops import backends, use_backend
from nvsubq.ops.mamba_walks import mamba_walks

pytestmark = pytest.mark.skipif(
    not next(b for b in backends() if b.name == "native").active, reason="native is not active"
)

ORDER = torch.randperm(70, generator=torch.Generator().manual_seed(2))
WALKS: dict[str, dict[str, Any]] = {
    "both ways": {"reverse": (False, True)},
    "one way": {"reverse": (False, False)},
    "order": {"order": ORDER, "reverse": (False, True)},
    "three": {"reverse": (True, False, True)},
    "one": {"reverse": (True,)},
}


def cores(count: int, dtype: torch.dtype = torch.float64, **options: Any) -> list[Mamba]:
    torch.manual_seed(0)
    made = [Mamba(12, d_state=5, dt_rank=3, dtype=dtype, **options) for _ in range(count)]
    for core in made:
        core.D.data.uniform_(-1, 1)
    return made


def weights(some: list[Mamba]) -> list[Any]:
    found = [core.weights_together() for core in some]
    assert None not in found
    return found


def outcome(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    cotangent = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]


def composed(x: Tensor, some: list[Mamba], reverse: tuple[bool, ...], order: Tensor | None = None) -> Tensor:
    return sum(core(x, order=order, reverse=r) for core, r in zip(some, reverse, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("options", [{}, {"conv_bias": False}, {"discretization": "zoh"}], ids=str)
def test_is_the_sum_of_the_cores(walk: str, options: dict[str, Any]) -> None:
    some = cores(len(WALKS[walk]["reverse"]), **options)
    x = torch.randn(2, 70, 12, dtype=torch.float64, requires_grad=True)
    leaves = [x, *(p for core in some for p in core.parameters())]
    y = mamba_walks(x, weights(some), **WALKS[walk], discretization=some[0].discretization)
    assert y is not None
    expected = outcome(composed(x, some, **WALKS[walk]), leaves)
    for i, (got, want) in enumerate(zip(outcome(y, leaves), expected, strict=True)):
        assert_close(f"output {i}", got, want)
    with torch.no_grad():
        again = mamba_walks(x, weights(some), **WALKS[walk], discretization=some[0].discretization)
    assert again is not None
    assert torch.equal(again, y.detach())


def test_autocast_casts_products_and_nothing_else() -> None:
    some = cores(2, torch.float32)
    x = torch.randn(2, 70, 12, requires_grad=True)
    leaves = [x, *(p for core in some for p in core.parameters())]
    with torch.autocast("cpu", torch.bfloat16):
        y = mamba_walks(x, weights(some), reverse=(False, True))
        expected = composed(x, some, (False, True))
    assert y is not None
    assert y.dtype == expected.dtype == torch.bfloat16
    for got, want, leaf in zip(outcome(y, leaves)[1:], outcome(expected, leaves)[1:], leaves, strict=True):
        assert got.dtype == leaf.dtype
        assert_close("gradient", got, want.double(), tolerance=2e-2)


def test_what_does_not_ask_for_gradients_gets_none() -> None:
    some = cores(2)
    some[0].D.requires_grad_(False)
    some[1].A_log.requires_grad_(False)
    y = mamba_walks(torch.randn(1, 9, 12, dtype=torch.float64), weights(some), reverse=(False, True))
    assert y is not None
    y.sum().backward()
    for core in some:
        for name, parameter in core.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_graph_may_be_walked_back_twice() -> None:
    some = cores(2)
    x = torch.randn(1, 9, 12, dtype=torch.float64, requires_grad=True)
    y: Any = mamba_walks(x, weights(some), reverse=(False, True))
    (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(first, second)


def test_a_second_derivative_is_refused() -> None:
    some = cores(2)
    x = torch.randn(1, 9, 12, dtype=torch.float64, requires_grad=True)
    y: Any = mamba_walks(x, weights(some), reverse=(False, True))
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once-differentiable"):
        grad.sum().backward()


def test_leaves_alone_what_it_cannot_do() -> None:
    some, x = cores(2), torch.randn(1, 9, 12, dtype=torch.float64)
    both: dict[str, Any] = {"reverse": (False, True)}
    assert mamba_walks(x, weights(some), **both) is not None
    assert mamba_walks(x.float(), weights(some), **both) is None  # torch's own error is to be seen
    assert mamba_walks(x[:, :0], weights(some), **both) is None
    assert mamba_walks(x, weights(some), **both, backend="torch") is None
    with torch.autocast("cpu", torch.bfloat16):
        assert mamba_walks(x, weights(some), **both) is None  # autocast does not touch fp64
    with use_backend("reference"):
        assert mamba_walks(x, weights(some), **both) is None
    other = Mamba(12, d_state=4, dtype=torch.float64)
    assert mamba_walks(x, weights([some[0], other]), **both) is None
    assert torch.func.vmap(lambda t: torch.zeros(()) if mamba_walks(t, weights(some), **both) is None else t)(
        x[None]
    ).shape == (1,)


def test_cores_that_are_not_plain_have_no_weights_to_give() -> None:
    (core,) = cores(1)
    assert core.weights_together() is not None
    handle = core.out_proj.register_forward_hook(lambda *_: None)
    assert core.weights_together() is None
    handle.remove()
    for options in (
        {"bias": True},
        {"a_modulation": True},
        {"conv_dilations": (1, 2)},
        {"a_init": "s4d_lin"},
    ):
        assert Mamba(12, **options).weights_together() is None


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # autograd's thread starts with a product
@pytest.mark.parametrize("scan", ["row_major", "hilbert"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_mixer_walks_both_ways_together(scan: str, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixer = NDMixer(Mamba, d_model=48, bidirectional=True, scan=scan).cuda()
    x = torch.randn(2, 9, 20, 48, device="cuda", requires_grad=True)
    leaves = [x, *mixer.parameters()]

    def run() -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            y = mixer(x)
            with torch.no_grad():
                assert torch.equal(mixer(x), y)
        return outcome(y, leaves)

    assert mixer.core_layer.walk_with(mixer.core_layer_rev, x.flatten(1, 2), None, (False, True)) is not None
    together = run()
    assert all(torch.equal(a, b) for a, b in zip(run(), together, strict=True))  # the same bits again
    monkeypatch.setattr(Mamba, "walk_with", lambda *_: None)
    for i, (got, want) in enumerate(zip(together, run(), strict=True)):
        assert got.dtype == want.dtype
        assert_close(f"output {i}", got, want.double(), tolerance=2e-2 if autocast else 1e-4)


@pytest.mark.gpu
def test_more_states_than_the_kernel_takes_walk_one_after_the_other() -> None:
    mixer = NDMixer(Mamba, d_model=16, bidirectional=True).cuda()
    wide = NDMixer(partial(Mamba, d_state=257), d_model=16, bidirectional=True).cuda()
    x = torch.randn(1, 6, 16, device="cuda", requires_grad=True)
    both = (None, (False, True))
    assert mixer.core_layer.walk_with(mixer.core_layer_rev, x, *both) is not None
    assert wide.core_layer.walk_with(wide.core_layer_rev, x, *both) is None
    wide(x).sum().backward()
    assert x.grad is not None


@pytest.mark.gpu
def test_hooks_are_heard() -> None:
    mixer = NDMixer(Mamba, d_model=16, bidirectional=True).cuda()
    heard: list[int] = []
    mixer.core_layer_rev.register_forward_hook(lambda *_: heard.append(1))
    mixer(torch.randn(1, 6, 16, device="cuda"))
    assert heard == [1]
