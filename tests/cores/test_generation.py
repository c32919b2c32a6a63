"""`generate`: what a loop over whole forwards gives, for cores, stacks and models with their own step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from option_cases import SIMPLE
from torch import Tensor, nn

import nvsubq
from nvsubq import generate
from nvsubq.cores import RGLRU, S5, Attention, Mamba

B, L, C, STEPS = 3, 5, 16, 6
every_core = pytest.mark.parametrize("case", SIMPLE, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def by_whole_forwards(
    model: nn.Module, x: Tensor, steps: int, head: Any = lambda y: y, dt: Any = None
) -> Tensor:
    """The same without caches: all of it again for each new cell."""
    length = x.shape[1]
    with torch.no_grad():
        for k in range(steps):
            given = () if dt is None else (dt[:, : length + k],)
            x = torch.cat([x, head(model(x, *given)[:, -1:])], 1)
    return x[:, length:]


class Stack(nn.Module):
    """A model as users write it: residual blocks, with a cache for each core."""

    def __init__(self, *cores: nn.Module) -> None:
        super().__init__()
        self.cores = nn.ModuleList(cores)
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in cores)

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int) -> dict[str, Any]:
        return {"layers": [core.allocate_inference_cache(batch_size, max_seqlen) for core in self.cores]}

    def forward(self, x: Tensor, inference_cache: dict[str, Any] | None = None) -> Tensor:
        caches = inference_cache["layers"] if inference_cache else [None] * len(self.cores)
        for norm, core, cache in zip(self.norms, self.cores, caches, strict=True):
            x = x + core(norm(x), inference_cache=cache)
        return x

    def step(self, x: Tensor, cache: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        for norm, core, one in zip(self.norms, self.cores, cache["layers"], strict=True):
            x = x + core.step(norm(x), one)[0]
        return x, cache


class Stepped(Stack):
    """One that knows steps alone: the prompt goes in cell by cell."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@every_core
def test_a_core(case) -> None:
    core, prompt = case.make(), torch.randn(B, L, C)
    got = generate(core, prompt, STEPS)
    assert got.shape == (B, STEPS, C)
    assert not got.requires_grad
    torch.testing.assert_close(got, by_whole_forwards(core, prompt, STEPS), rtol=1e-5, atol=1e-5)


@every_core
def test_two_calls_do_not_know_of_each_other(case) -> None:
    core, prompt = case.make(), torch.randn(B, L, C)
    first = generate(core, prompt, STEPS)
    generate(core, 3 * prompt, 2)
    assert torch.equal(generate(core, prompt, STEPS), first)
    assert torch.equal(generate(core, prompt, 2), first[:, :2])


@pytest.mark.parametrize("kind", [Stack, Stepped])
def test_a_model_with_steps(kind: type) -> None:
    model, prompt = kind(Mamba(C), RGLRU(C), S5(C, 8), Attention(C)), torch.randn(B, L, C)
    got = generate(model, prompt, STEPS)
    torch.testing.assert_close(got, by_whole_forwards(model, prompt, STEPS), rtol=1e-5, atol=1e-5)


def test_a_sequential_of_other_widths_than_the_prompt() -> None:
    inner = nn.Sequential(Mamba(C), nn.LayerNorm(C), nn.SiLU())
    model, prompt = nn.Sequential(nn.Linear(2, C), inner, RGLRU(C), nn.Linear(C, 2)), torch.randn(B, L, 2)
    got = generate(model, prompt, STEPS)
    torch.testing.assert_close(got, by_whole_forwards(model, prompt, STEPS), rtol=1e-5, atol=1e-5)


def test_a_head_makes_the_next_input() -> None:
    core, prompt, head = Mamba(C), torch.randn(B, L, C), nn.Linear(C, C)
    got = generate(core, prompt, STEPS, head=head)
    torch.testing.assert_close(got, by_whole_forwards(core, prompt, STEPS, head), rtol=1e-5, atol=1e-5)
    assert generate(core, prompt, 4, head=lambda y: y.clamp(-1e-3, 1e-3)).abs().max() <= 1e-3


@pytest.mark.parametrize("case", [case for case in SIMPLE if case.timesteps], ids=lambda case: case.name)
def test_timesteps_of_prompt_and_generated_cells(case) -> None:
    core, prompt, dt = case.make(), torch.randn(B, L, C), torch.rand(B, L + STEPS - 1) * 3
    got = generate(core, prompt, STEPS, integration_timesteps=dt)
    torch.testing.assert_close(got, by_whole_forwards(core, prompt, STEPS, dt=dt), rtol=1e-5, atol=1e-5)
    assert generate(core, prompt, 0, integration_timesteps=dt[:, :L]).shape == (B, 0, C)


@every_core
def test_ragged_prompts(case) -> None:
    core, prompt, lengths = case.make(), torch.randn(B, L, C), torch.tensor([L, 1, 3])
    got = generate(core, prompt, STEPS, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = generate(core, prompt[row : row + 1, :length], STEPS)
        torch.testing.assert_close(got[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_bf16() -> None:
    core, prompt = Mamba(C), torch.randn(B, L, C)
    want = generate(core, prompt, STEPS)
    with torch.autocast("cpu", torch.bfloat16):
        got = generate(core, prompt, STEPS)
    assert got.dtype == torch.float32
    assert (got - want).norm() < 5e-2 * want.norm()
    assert generate(core.bfloat16(), prompt.bfloat16(), STEPS).dtype == torch.bfloat16


def test_modes_around_it() -> None:
    core, prompt = Mamba(C), torch.randn(B, L, C, requires_grad=True)
    want = generate(core, prompt, STEPS)
    with torch.inference_mode():
        assert torch.equal(generate(core, prompt, STEPS), want)
    assert generate(core, prompt[:0], STEPS).shape == (0, STEPS, C)


def test_a_compiled_model_is_run_as_it_was() -> None:
    model, prompt = nn.Sequential(Mamba(C), nn.Linear(C, C)), torch.randn(B, L, C)
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.equal(generate(compiled, prompt, STEPS), generate(model, prompt, STEPS))


def test_what_may_be_captured() -> None:
    from nvsubq.cores.streaming import Streamed

    said = Stack(Mamba(C))
    said.capturable = True
    with_attention = Stack(Attention(C))
    with_attention.capturable = True  # which its layer gainsays
    for model, capturable in (
        (Mamba(C), True),
        (nn.Sequential(nn.Linear(C, C), S5(C, 4)), True),
        (Attention(C), False),
        (nn.Sequential(Mamba(C), Attention(C)), False),
        (Stack(Mamba(C)), None),
        (said, True),
        (with_attention, False),
    ):
        assert Streamed(model).capturable is capturable


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": -1}, r"`steps` \(=-1\) must be an int of at least 0"),
            ({"steps": 1.5}, r"`steps` \(=1.5\) must be an int"),
            (
                {"prompt": torch.ones(2, 0, C)},
                r"`prompt` must have shape \[B, L, C\] with L of at least 1, got",
            ),
            ({"prompt": torch.ones(2, C)}, r"`prompt` must have shape \[B, L, C\] with L of at least 1, got"),
            ({"lengths": torch.tensor([1, 0])}, r"`lengths` \(=\[1, 0\]\) must be in 1 .. L \(=3\)"),
            (
                {"lengths": torch.tensor([1])},
                r"`lengths` \(shape \[1\], torch.int64\) must be integers of shape",
            ),
            (
                {"integration_timesteps": torch.ones(2, 3)},
                r"`integration_timesteps` must have shape \[2, 6\]",
            ),
            (
                {"head": lambda y: y[..., :3]},
                r"`head` makes \[2, 1, 3\] of a cell, but the next input must have",
            ),
            ({"head": lambda y: None}, r"`head` makes NoneType of a cell"),
            ({"cuda_graph": True}, r"`cuda_graph` \(=True\) needs a `prompt` on a GPU, this one is on cpu"),
        ],
    )
    def test_arguments(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            generate(**({"model": Mamba(C), "prompt": torch.ones(2, 3, C), "steps": 4} | options))

    def test_an_output_that_is_no_input(self) -> None:
        with pytest.raises(ValueError, match=r"`model` makes \[2, 1, 4\] of a cell, .* give a `head`"):
            generate(nn.Sequential(Mamba(C), nn.Linear(C, 4)), torch.ones(2, 3, C), 2)

    def test_models_without_a_step(self) -> None:
        model = nn.Sequential(Mamba(C), nn.Sequential(nn.Conv1d(C, C, 3)))
        with pytest.raises(
            TypeError, match=r"Sequential.1.0 \(a Conv1d\) can't be run one cell at a time: it"
        ):
            generate(model, torch.ones(2, 3, C), 2)

    def test_lengths_and_a_forward_without_them(self) -> None:
        with pytest.raises(
            ValueError, match=r"`lengths` need a `forward` with `lengths` and .* Stepped has x"
        ):
            generate(Stepped(Mamba(C)), torch.ones(2, 3, C), 2, lengths=torch.tensor([1, 2]))


def test_public_name() -> None:
    from nvsubq.cores.generation import generate as home

    assert nvsubq.generate is home
