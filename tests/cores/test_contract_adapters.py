"""What every core promises of its linear layers: an adapter in the place of one, or a hook on it, acts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from comparing import B, C, L, close, close_gradients, draw, gradients
from option_cases import every_case, every_core
from torch import Tensor, nn

from nvsubq.cores import LTV_LRNN
from nvsubq.cores.block_linear import BlockLinear


def linear_names(core: LTV_LRNN) -> list[str]:
    return [name for name, part in core.named_modules() if isinstance(part, nn.Linear | BlockLinear)]


def additions(layer: nn.Module) -> nn.Module:
    """What an adapter adds: the same kind of layer, without bias."""
    added = copy.deepcopy(layer)
    with torch.no_grad():
        added.weight.copy_(0.1 * draw(*layer.weight.shape, seed=5))
        if added.bias is not None:
            added.bias.zero_()
    return added


def adapt(layer: nn.Module, how: str) -> None:
    added = [additions(layer)]  # in a list: no part of the layer, so of no state either
    if how == "merged":
        with torch.no_grad():
            layer.weight.add_(added[0].weight)
    elif how == "hook":
        layer.register_forward_hook(lambda _, given, made: made + added[0](given[0]))
    elif how == "subclass":
        kind = type(layer)
        layer.__class__ = type(
            "Adapted", (kind,), {"forward": lambda self, x: kind.forward(self, x) + added[0](x)}
        )
    else:
        layer.forward = lambda x: type(layer).forward(layer, x) + added[0](x)


def outcomes(case: Any, name: str, how: str | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs of a core with one adapted layer, on each path through it, and gradients."""
    core = case.make(dtype=torch.float64)
    if how is not None:
        adapt(core.get_submodule(name), how)
    x, lengths = draw(B, L, C, dtype=torch.float64), torch.tensor([L, 9, 0])
    y, grads = gradients(core, x, lambda x: core(x, lengths=lengths))
    found = {"lengths": y}
    for timed in (False, True) if case.timesteps else (False,):
        dt = draw(B, L, seed=3, dtype=torch.float64).abs() if timed else None
        found[f"forward {timed}"] = core(x, dt).detach()
        cache = core.allocate_inference_cache(B, L)
        first = core(x[:, :9], None if dt is None else dt[:, :9], inference_cache=cache)
        with torch.no_grad():
            rest = [
                core.step(x[:, k : k + 1], cache, *(() if dt is None else (dt[:, k],)))[0]
                for k in range(9, L)
            ]
        found[f"stepped {timed}"] = torch.cat([first.detach(), *rest], 1)
    return found, grads


@every_case
@pytest.mark.parametrize("how", ["subclass", "hook", "forward"])
def test_it_acts_as_its_merged_weight(case, how) -> None:
    for name in linear_names(case.make()):
        plain, _ = outcomes(case, name, None)
        want, want_grads = outcomes(case, name, "merged")
        found, found_grads = outcomes(case, name, how)
        for path, y in found.items():
            close(y, want[path], rtol=1e-8, atol=1e-9)
        # Not on every path: with `dirac` and timesteps delta has no effect.
        assert not torch.allclose(found["forward False"], plain["forward False"], rtol=1e-6), name
        close_gradients(found_grads, want_grads, rtol=1e-8, atol=1e-9)


@every_core
def test_hooks_of_the_backward_are_called(case) -> None:
    core = case.make()
    called: set[str] = set()
    for name in linear_names(core):
        part = core.get_submodule(name)
        part.register_full_backward_hook(lambda *_, name=name: called.add(name))
    core(draw(B, L, C).requires_grad_()).sum().backward()
    assert called == set(linear_names(core))


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision(case, dtype) -> None:
    """Cast to bf16, or in autocast."""
    plain = case.make()
    core = copy.deepcopy(plain)
    if not linear_names(core):
        return
    for name in linear_names(core):
        core.get_submodule(name).register_forward_hook(lambda _, given, made: made)
    core, x = core.to(dtype), draw(B, L, C).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        y, found = gradients(core, x, core)
        with torch.no_grad():
            stepped, _ = core.step(x[:, :1], core.allocate_inference_cache(B, 1))
    close(y.float(), plain(x.float()), rtol=0.05, atol=0.05)
    close(stepped.float(), y[:, :1].float(), rtol=0.05, atol=0.05)
    assert all(grad.isfinite().all() for grad in found.values() if grad is not None)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@every_core
def test_one_graph(case) -> None:
    torch.compiler.reset()
    core, x = case.make(), draw(B, L, C)
    for name in linear_names(core):
        part = core.get_submodule(name)
        kind = type(part)
        part.__class__ = type(
            "Doubled", (kind,), {"forward": lambda self, x, kind=kind: 2 * kind.forward(self, x)}
        )
    compiled = torch.compile(core, fullgraph=True, backend="aot_eager")
    close(compiled(x), core(x))
