"""The tables of whole cores: bidirectional blocks, and one token through one layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from nvsubq.bench.gpu.cases import BOTH, DECODED_WIDTH, EAGER, FORWARD, GRAPH
from nvsubq.bench.gpu.measure import Absent, Subject, Task
from nvsubq.bench.gpu.work import Work, moved

# Class in nvsubq.cores, its arguments beside d_model, and the ops that it stands on.
CORES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "Mamba": ("Mamba", {}, ("causal_conv1d", "selective_scan")),
    "Mamba2": ("Mamba2", {}, ("causal_conv1d", "ssd_scan")),
    "S5": ("S5", {"d_state": 64}, ("linear_scan",)),
    "S7": ("S7", {"d_state": 16}, ("linear_scan",)),
    "RGLRU": ("RGLRU", {}, ("causal_conv1d", "rglru_scan")),
    "Attention": ("Attention", {"causal": False}, ()),
}
THEIRS = {"mamba-ssm Mamba": "Mamba", "mamba-ssm Mamba2": "Mamba2"}
DECODED = ("Mamba", "Mamba2", "S5", "S7", "RGLRU")
STEPS = {"Mamba": "mamba_step", "Mamba2": "mamba2_step", "S5": "s5_step", "RGLRU": "rglru_step"}


def core_factory(name: str) -> tuple[Callable[..., nn.Module], str]:
    """A factory of a core, and what a reader must know of it here: ops that run without their kernel.

    Args:
        name: a key of `CORES` or `THEIRS`.

    Raises:
        Absent: the package is not installed, or was built without its kernels.
    """
    if name in THEIRS:
        return _theirs(THEIRS[name]), ""
    from nvsubq import cores
    from nvsubq.ops import native

    kind, options, ops = CORES[name]
    lacking = [op for op in ops if native.missing(op, torch.device("cuda")) is not None]
    note = f"portable: {', '.join(lacking)}" if lacking else ""
    return partial(getattr(cores, kind), **options), note


def _theirs(kind: str) -> Callable[..., nn.Module]:
    from nvsubq.ops.mamba_ssm import inactive

    reason = inactive()
    if kind == "Mamba" and reason is not None:
        raise Absent(f"not installed: {reason}")
    import mamba_ssm

    return getattr(mamba_ssm, kind)


def blocks(field: Sequence[int], device: torch.device) -> list[Subject]:
    """Every core in a bidirectional mixer over a field `[B, *spatial, C]`."""
    case = f"[{', '.join(map(str, field))}]"
    return [
        Subject("blocks", case, name, partial(block_task, name, field, device)) for name in (*CORES, *THEIRS)
    ]


def block_task(name: str, field: Sequence[int], device: torch.device) -> Task:
    """Forward without grad, and forward and backward to input and weights, under autocast."""
    from nvsubq import NDMixer

    factory, note = core_factory(name)
    torch.manual_seed(0)
    mixer = NDMixer(factory, d_model=field[-1], bidirectional=True).to(device)
    x = torch.randn(*field, device=device, requires_grad=True)
    wanted = [x, *mixer.parameters()]
    autocast = partial(torch.autocast, device.type, torch.bfloat16)
    with autocast(), torch.no_grad():
        cotangent = torch.randn_like(mixer(x))

    @torch.no_grad()
    def forward() -> None:
        with autocast():
            mixer(x)

    def both() -> None:
        with autocast():
            y = mixer(x)
        torch.autograd.grad(y, wanted, cotangent, allow_unused=True)

    return Task({FORWARD: forward, BOTH: both}, remember=BOTH, note=note)


def decode(device: torch.device, width: int = DECODED_WIDTH) -> list[Subject]:
    """One token through each core that has a state, one sequence."""
    return [
        Subject("decode", "one token", name, partial(decode_task, name, device, width))
        for name in (*DECODED, *THEIRS)
    ]


def step_note(name: str, note: str) -> str:
    """What a reader must know of a step: that it is no native call, and what `note` says of its ops then."""
    from nvsubq.ops import native

    step = STEPS.get(name)
    if step is not None and native.missing(step, torch.device("cuda")) is None:
        return ""
    return f"composed of ops; {note}" if note else "composed of ops"


def decode_task(name: str, device: torch.device, width: int) -> Task:
    """A step by the wall clock, and as a CUDA graph; its floor is the bytes of the weights."""
    factory, note = core_factory(name)
    if name in CORES:
        note = step_note(name, note)
    torch.manual_seed(0)
    core = factory(d_model=width, device=device, dtype=torch.bfloat16)
    token = torch.randn(1, 1, width, device=device, dtype=torch.bfloat16)
    cache = core.allocate_inference_cache(1, 1)  # type: ignore[operator]
    given = cache if name in THEIRS else (cache,)

    @torch.no_grad()
    def step() -> None:
        core.step(token, *given)  # type: ignore[operator]

    weights = Work(moved(core.parameters()))
    return Task(
        {EAGER: step, GRAPH: step},
        wall=(EAGER,),
        graphs=(GRAPH,),
        work={EAGER: weights, GRAPH: weights},
        note=note,
    )
