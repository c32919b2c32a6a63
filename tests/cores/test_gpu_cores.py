"""Every core with every option on a CUDA device, against the same core in fp64 on the CPU.

Needs a GPU: `scripts/gpu.sh`; with `--write-table=docs` it writes that column of docs/cores.md.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from option_cases import SIMPLE, WIDTH, Case, every_case
from torch import Tensor, nn

from nvsubq import generate
from nvsubq.cores import LTV_LRNN, RGLRU, Mamba, move_cache, reorder_cache

pytestmark = [
    pytest.mark.gpu,
    # An op without a kernel of its own for these arguments is served by another backend, and says so once.
    pytest.mark.filterwarnings("ignore:.*runs without its CUDA kernel:RuntimeWarning"),
]

B, L = 3, 67
every_clock = pytest.mark.parametrize("timed", [False, True], ids=["plain", "timed"])


def pair(case: Case) -> tuple[LTV_LRNN, LTV_LRNN]:
    """The core on the GPU, and what it is held to."""
    core = case.make()
    return copy.deepcopy(core).cuda(), copy.deepcopy(core).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def timesteps(timed: bool) -> Tensor | None:
    return draw(B, L, seed=3).abs() * 3 if timed else None


def near(got: Tensor, want: Tensor, name: str = "output", tolerance: float = 1e-4) -> None:
    """Within `tolerance` of the largest value: fp32 against fp64 over a whole core."""
    got, want = got.detach().cpu().double(), want.detach().double()
    error = (got - want).abs().max() / want.abs().max().clamp(min=1e-3)
    assert error < tolerance, f"{name} is {error:.1e} off"


def outcome(core: LTV_LRNN, x: Tensor, dt: Tensor | None, **walk: Any) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    y = core(x, dt, **walk) if dt is not None else core(x, **walk)
    weight = draw(*y.shape, seed=9).to(y)
    found = torch.autograd.grad((y * weight).sum(), [x, *core.parameters()], allow_unused=True)
    names = ["x", *(name for name, _ in core.named_parameters())]
    return {"output": y.detach()} | {
        n: g for n, g in zip(names, found, strict=True) if g is not None and g.any()
    }


def walk_of(name: str, device: str) -> dict[str, Any]:
    seq_idx = (torch.arange(L)[None] // torch.tensor([[70], [20], [9]])).int()
    seq_idx[1, 5:9] = -1
    walk = {
        "plain": {},
        "packed": {"seq_idx": seq_idx},
        "reverse": {"reverse": True, "lengths": torch.tensor([L, 30, 0])},
        "order": {"order": torch.randperm(L, generator=torch.Generator().manual_seed(1)), "seq_idx": seq_idx},
    }[name]
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in walk.items()}


@pytest.mark.column("GPU")
@every_case
@every_clock
@pytest.mark.parametrize("walk", ["plain", "packed", "reverse", "order"])
def test_forward_and_backward(case: Case, walk: str, timed: bool) -> None:
    if timed and not case.timesteps:
        return
    core, exact = pair(case)
    x, dt = draw(B, L, WIDTH), timesteps(timed)
    got = outcome(core, x.cuda(), None if dt is None else dt.cuda(), **walk_of(walk, "cuda"))
    want = outcome(exact, x.double(), None if dt is None else dt.double(), **walk_of(walk, "cpu"))
    assert got.keys() == want.keys()
    for name, value in want.items():
        near(got[name], value, name)


@pytest.mark.column("GPU")
@every_case
@every_clock
@torch.no_grad()
def test_prefill_and_steps(case: Case, timed: bool) -> None:
    if timed and not case.timesteps:
        return
    core, exact = pair(case)
    x, dt = draw(B, L, WIDTH), timesteps(timed)
    want = exact(x.double(), dt.double()) if timed else exact(x.double())
    x, dt = x.cuda(), None if dt is None else dt.cuda()
    for cuts in ((50, 1, 0, 9), ()):
        cache = core.allocate_inference_cache(B, L)
        parts, done = [], 0
        for size in cuts:
            part = slice(done, done + size)
            parts.append(core(x[:, part], None if dt is None else dt[:, part], inference_cache=cache))
            done += size
        for k in range(done, L):
            clock = () if dt is None else (dt[:, k],)
            parts.append(core.step(x[:, k : k + 1], cache, *clock)[0])
        near(torch.cat(parts, 1), want)
        assert cache["seqlen_offset"] == L


@pytest.mark.column("GPU")
@every_case
@torch.no_grad()
def test_a_cache_moves(case: Case) -> None:
    """From the CPU to the GPU and back, in the midst of a walk; the one that it is copied from stays."""
    core = case.make()
    there, x = copy.deepcopy(core).cuda(), draw(B, L, WIDTH)
    cache = core.allocate_inference_cache(B, L)
    parts = [core(x[:, :20], inference_cache=cache)]
    on_gpu = move_cache(cache, "cuda")
    parts.append(there(x[:, 20:40].cuda(), inference_cache=on_gpu).cpu())
    parts.append(there.step(x[:, 40:41].cuda(), on_gpu)[0].cpu())
    back = move_cache(reorder_cache(on_gpu, torch.tensor([0, 1, 2]).cuda()), "cpu")
    parts += [core.step(cell, back)[0] for cell in x[:, 41:].split(1, 1)]
    near(torch.cat(parts, 1), core(x))
    assert (cache["seqlen_offset"], on_gpu["seqlen_offset"], back["seqlen_offset"]) == (20, 41, L)


@pytest.mark.column("GPU")
@every_case
def test_bf16(case: Case) -> None:
    core, exact = pair(case)
    x = draw(1, 4096, WIDTH)
    with torch.no_grad():
        want = exact(x.double())
        with torch.autocast("cuda", torch.bfloat16):
            got = core(x.cuda())
    assert (got.cpu().double() - want).norm() < 2e-2 * want.norm()


@pytest.mark.column("GPU")
@every_case
def test_generation_in_a_graph(case: Case) -> None:
    """The graph's steps are those of the plain loop, bit for bit, and no call leaves anything behind."""
    core, exact = pair(case)
    prompt = draw(B, 9, WIDTH).cuda()
    got = generate(core, prompt, 12)
    assert torch.equal(generate(core, prompt, 12, cuda_graph=False), got)
    generate(core, 2 * prompt, 5)
    assert torch.equal(generate(core, prompt, 12), got)
    near(got, generate(exact, prompt.cpu().double(), 12), tolerance=1e-3)  # errors go round


@pytest.mark.parametrize("case", [case for case in SIMPLE if case.timesteps], ids=lambda case: case.name)
def test_timesteps_and_ragged_prompts_in_a_graph(case: Case) -> None:
    core, prompt = case.make().cuda(), draw(B, 9, WIDTH).cuda()
    options = {
        "integration_timesteps": draw(B, 20, seed=2).abs().cuda(),
        "lengths": torch.tensor([9, 1, 4]).cuda(),
    }
    got = generate(core, prompt, 12, **options)
    assert torch.equal(generate(core, prompt, 12, cuda_graph=False, **options), got)


def test_a_drawing_head_draws_the_same_in_a_graph() -> None:
    core, prompt = Mamba(WIDTH).cuda(), draw(B, 9, WIDTH).cuda()
    drawn = []
    for cuda_graph in (True, False):
        torch.manual_seed(5)
        drawn.append(generate(core, prompt, 8, head=lambda y: y + torch.randn_like(y), cuda_graph=cuda_graph))
    torch.testing.assert_close(*drawn)


def test_autocast_in_a_graph() -> None:
    core, prompt = nn.Sequential(RGLRU(WIDTH), nn.Linear(WIDTH, WIDTH)).cuda(), draw(B, 9, WIDTH).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        got = generate(core, prompt, 8)
        torch.testing.assert_close(generate(core, prompt, 8, cuda_graph=False), got)


class Replacing(nn.Module):
    """Its cache gets a new tensor at each step."""

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int) -> dict[str, Tensor]:
        return {"sum": torch.zeros(batch_size, 1, WIDTH, device="cuda")}

    def step(self, x: Tensor, cache: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        cache["sum"] = cache["sum"] + x
        return cache["sum"], cache


def test_what_a_graph_can_not_follow() -> None:
    prompt = torch.ones(2, 3, WIDTH, device="cuda")
    with pytest.raises(ValueError, match="`model` puts new tensors into its cache at each step"):
        generate(Replacing(), prompt, 4, cuda_graph=True)
    assert generate(Replacing(), prompt, 4)[0, :, 0].tolist() == [3.0, 6.0, 12.0, 24.0]
    core = Case("Attention").make().cuda()
    with pytest.raises(ValueError, match="can't capture a model with a layer that says `capturable = False`"):
        generate(core, prompt, 4, cuda_graph=True)
