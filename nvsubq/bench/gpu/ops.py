"""The tables of single ops: native beside portable, and beside other packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nvsubq.bench.gpu import inputs, peers, work
from nvsubq.bench.gpu.cases import BOTH, FORWARD, HOST_SIZE, NO_GRAD, STATES, WITH_GRAD, Size
from nvsubq.bench.gpu.inputs import Tensors
from nvsubq.bench.gpu.measure import Absent, Subject, Task
from nvsubq.bench.gpu.peers import Peer
from nvsubq.bench.names import OURS, PORTABLE, TRITON

MakePeer = Callable[[Tensors], Peer]
BACKENDS = {OURS: "native", PORTABLE: "torch"}


def _ours(op: str, backend: str, options: Mapping[str, Any], tensors: Tensors) -> Peer:
    from nvsubq import ops

    return tensors, partial(getattr(ops, op), **options, backend=backend)


def _triton(op: str, options: Mapping[str, Any], tensors: Tensors) -> Peer:
    from nvsubq.ops import triton

    reason = triton.inactive() or triton.missing(op, next(iter(tensors.values())).device)
    if reason:
        raise Absent(f"not there: {reason}")
    return _ours(op, "triton", options, tensors)


def runs(peer: Peer) -> tuple[dict[str, Callable[[], Any]], Tensor]:
    """The forward without grad, and forward and backward to every tensor; and a tensor like the output."""
    tensors, function = peer
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    cotangent = torch.randn_like(next(iter(leaves.values())))

    @torch.no_grad()
    def forward() -> None:
        function(**leaves)

    def both() -> None:
        y = function(**leaves)
        torch.autograd.grad(y, list(leaves.values()), cotangent)

    return {FORWARD: forward, BOTH: both}, cotangent


def op_task(make: Callable[[], Tensors], exps: int, peer: MakePeer, note: str = "") -> Task:
    """The task of an op, whose work is that of our tensors, whatever layout a peer is given.

    Args:
        make: makes our tensors.
        exps: special functions of the forward.
        peer: gives leaves and function.
        note: what a reader must know.
    """
    given = peer(make())
    timed, like = runs(given)
    forward, both = work.of_op(given[0].values(), like, exps)
    return Task(timed, work={FORWARD: forward, BOTH: both}, remember=BOTH, note=note)


def _subjects(
    table: str,
    case: str,
    make: Callable[[], Tensors],
    exps: int,
    op: str,
    options: Mapping[str, Any],
    others: Mapping[str, tuple[MakePeer, str]],
) -> list[Subject]:
    own: dict[str, tuple[MakePeer, str]] = {
        name: (partial(_ours, op, backend, options), "") for name, backend in BACKENDS.items()
    }
    return [
        Subject(table, case, name, partial(op_task, make, exps, peer, note))
        for name, (peer, note) in {**own, **others}.items()
    ]


def scan(size: Size, device: torch.device) -> list[Subject]:
    """`selective_scan`, beside Triton's kernels and mamba-ssm."""
    make, exps = partial(inputs.of_scan, size, device), work.of_scan(size.elements, STATES)
    options = {"delta_softplus": True}
    triton = partial(_triton, "selective_scan", options)
    others: dict[str, tuple[MakePeer, str]] = {TRITON: (triton, ""), "mamba-ssm": (peers.mamba_ssm_scan, "")}
    return _subjects("scan", str(size), make, exps, "selective_scan", options, others)


def order(size: Size, device: torch.device) -> list[Subject]:
    """`selective_scan` on the native backend, in other orders than that of memory."""
    make, exps = partial(inputs.of_scan, size, device), work.of_scan(size.elements, STATES)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(size.length, generator=generator).to(device, torch.int32)
    walks: dict[str, dict[str, Any]] = {
        "row-major": {},
        "reverse": {"reverse": True},
        "random order": {"order": shuffled},
        "random order, reverse": {"order": shuffled, "reverse": True},
    }
    found = []
    for name, walk in walks.items():
        peer = partial(_ours, "selective_scan", "native", {"delta_softplus": True, **walk})
        found.append(Subject("order", str(size), name, partial(op_task, make, exps, peer)))
    return found


def linear_scan(size: Size, device: torch.device) -> list[Subject]:
    """`linear_scan` in fp32, beside Triton's kernels and accelerated-scan."""
    triton = partial(_triton, "linear_scan", {})
    others: dict[str, tuple[MakePeer, str]] = {
        TRITON: (triton, ""),
        "accelerated-scan": (peers.accelerated_scan, ""),
    }
    make = partial(inputs.of_linear, size, device)
    return _subjects("linear_scan", str(size), make, 0, "linear_scan", {}, others)


def rglru_scan(size: Size, device: torch.device) -> list[Subject]:
    """`rglru_scan` in fp32, beside lrnnx, and in bf16."""
    found = []
    for dtype, label in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        make, exps = partial(inputs.of_rglru, size, device, dtype), work.of_rglru(size.elements)
        alone = {"lrnnx": (peers.lrnnx_rglru, "the scan alone: its gates are not timed")}
        others = alone if dtype == torch.float32 else {}
        found += _subjects("rglru_scan", f"{size} {label}", make, exps, "rglru_scan", {}, others)
    return found


def conv(size: Size, device: torch.device) -> list[Subject]:
    """`causal_conv1d`, beside causal-conv1d."""
    make, exps = partial(inputs.of_conv, size, device), work.of_silu(size.elements)
    others = {"causal-conv1d": (peers.causal_conv1d, "")}
    return _subjects("conv", str(size), make, exps, "causal_conv1d", {"activation": "silu"}, others)


def host(device: torch.device, size: Size = HOST_SIZE) -> list[Subject]:
    """What a call of `selective_scan` costs the host, beside what autograd takes of that."""

    def task(peer: MakePeer) -> Task:
        tensors, function = peer(inputs.of_scan(size, device))
        timed, _ = runs((tensors, function))
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        found: dict[str, Callable[[], Any]] = {
            NO_GRAD: timed[FORWARD],
            WITH_GRAD: partial(function, **leaves),
            BOTH: timed[BOTH],
        }
        return Task(found, wall=tuple(found))

    ours = partial(_ours, "selective_scan", "native", {"delta_softplus": True})
    given: dict[str, MakePeer] = {
        OURS: ours,
        "autograd alone": peers.allocation,
        "mamba-ssm": peers.mamba_ssm_scan,
    }
    return [Subject("host", "selective_scan", name, partial(task, peer)) for name, peer in given.items()]
