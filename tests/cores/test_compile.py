"""`torch.compile(fullgraph=True)` of every core and of NDMixer: one graph, the same numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from option_cases import WIDTH, every_case
from torch import Tensor, nn

from nvsubq import cores
from nvsubq.nd import NDMixer

# Dynamo itself makes an instance of every `autograd.Function` that it traces.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

OPTIONS: dict[str, dict[str, Any]] = {
    "Mamba": {},
    "Mamba2": {"d_state": 8, "headdim": 8},
    "S5": {"d_state": 8},
    "S7": {"d_state": 8},
    "RGLRU": {},
    "Attention": {"num_heads": 2},
}
WALKS = ["plain", "order", "lengths", "seq_idx"]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)


def outcome(module: Any, parameters: list[Tensor], x: Tensor, **walk: Any) -> list[Tensor]:
    """The output and the gradients of the input and of all parameters."""
    x = x.detach().requires_grad_()
    y = module(x, **walk)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *parameters])]


def check(module: nn.Module, x: Tensor, **walk: Any) -> None:
    parameters = list(module.parameters())
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected = outcome(module, parameters, x, **walk)
    for got, want in zip(outcome(compiled, parameters, x, **walk), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


def walk_of(name: str) -> dict[str, Tensor]:
    return {
        "plain": {},
        "order": {"order": torch.randperm(7)},
        "lengths": {"lengths": torch.tensor([7, 4])},
        "seq_idx": {"seq_idx": torch.tensor([[0, 0, 1, 1, 1, 2, 2], [0, -1, 0, 0, 1, 1, -1]])},
    }[name]


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_core_is_one_graph(name: str, walk: str) -> None:
    core = getattr(cores, name)(d_model=8, **OPTIONS[name])
    check(core, torch.randn(2, 7, 8), **walk_of(walk))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_mixer_is_one_graph(name: str) -> None:
    make = partial(getattr(cores, name), **OPTIONS[name])
    check(NDMixer(make, d_model=8, bidirectional=True), torch.randn(2, 3, 2, 8))


def test_a_core_on_its_own_clock_is_one_graph() -> None:
    for name in ("Mamba", "S5"):
        core = getattr(cores, name)(d_model=8, **OPTIONS[name])
        check(core, torch.randn(2, 7, 8), integration_timesteps=torch.rand(2, 7))


@pytest.mark.slow
@pytest.mark.column("compile")
@every_case
def test_every_option_is_one_graph(case) -> None:
    walk = walk_of("seq_idx") | ({"integration_timesteps": torch.rand(2, 7)} if case.timesteps else {})
    check(case.make(), torch.randn(2, 7, WIDTH), **walk)


@pytest.mark.slow
@pytest.mark.column("compile")
@every_case
def test_a_step_is_one_graph(case) -> None:
    core = case.make()
    compiled = torch.compile(core.step, fullgraph=True, backend="aot_eager")
    caches = [core.allocate_inference_cache(2, 8) for _ in range(2)]
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(2, 1, WIDTH)
            torch.testing.assert_close(compiled(x, caches[0])[0], core.step(x, caches[1])[0])
    for key, state in caches[1].items():
        if isinstance(state, Tensor):
            torch.testing.assert_close(caches[0][key], state)


def test_another_length_runs_too() -> None:
    core = cores.Mamba(d_model=8)
    compiled = torch.compile(core, fullgraph=True, backend="aot_eager")
    for length in (3, 5, 40, 70):
        x = torch.randn(2, length, 8)
        torch.testing.assert_close(compiled(x), core(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # importing it warns of torch's own deprecations
@pytest.mark.parametrize("fast", [True, False])
def test_inductor_compiles_a_mixer(fast: bool) -> None:
    """Unlike `aot_eager` it holds the operators to the strides that their fakes promise."""
    mixer = NDMixer(partial(cores.Mamba, d_state=4, use_fast_path=fast), d_model=8, bidirectional=True)
    x = torch.randn(2, 3, 2, 8)
    parameters = list(mixer.parameters())
    compiled = torch.compile(mixer, fullgraph=True)
    for got, want in zip(outcome(compiled, parameters, x), outcome(mixer, parameters, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
