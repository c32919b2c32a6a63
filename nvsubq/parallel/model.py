"""`sequence_parallel`: a model whose field lies in slabs, one in each process."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nvsubq.cores.base import LTV_LRNN
from nvsubq.cores.streaming import CELLWISE
from nvsubq.models.edges import is_convolution
from nvsubq.nd.mixer import NDMixer
from nvsubq.ops.slabs import Slabs

__all__ = ["sequence_parallel", "sum_gradients"]

_BUCKET = 1 << 24  # elements that are summed at once
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def sequence_parallel(model: nn.Module, slabs: Slabs | dist.ProcessGroup | None = None) -> Slabs:
    """Make a model take one slab of a field in each process, and give the same slab of its output.

    The field is cut along its first spatial axis, in the order of ranks; slabs may differ in size. Every
    walk goes through all slabs: states, and what a convolution sees over an edge, come from the neighbours,
    forward and backward. Weights must be the same in all processes, their gradients belong to the sum of the
    processes' losses once `sum_gradients` has added them up. The model is changed in place.

    Args:
        model: made of `NDMixer` with cores that carry their state through the package's ops (all but
            `Attention`), other modules of `nvsubq.models`, and modules of torch that treat each cell alike.
        slabs: the processes: a group, or None for all of them; collective, as making `Slabs` is.

    Returns:
        The processes, for `slab_of`, `join_slabs` and `sum_gradients`.

    Raises:
        ValueError: a module that sees more than a cell and can't be cut, by name.
        RuntimeError: `torch.distributed` has not been initialised.
    """
    for name, module in _cut(model, type(model).__name__):
        problem = _problem(module)
        if problem:
            raise ValueError(
                f"`model` can't take a field in slabs: {name} ({type(module).__name__}) {problem}."
            )
    slabs = slabs if isinstance(slabs, Slabs) else Slabs(slabs)
    for module in model.modules():
        if hasattr(type(module), "slabs"):
            module.slabs = slabs  # type: ignore[assignment]
    return slabs


def _cut(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules that see the field, and not those inside which are seen to."""
    yield name, module
    if isinstance(module, (NDMixer, LTV_LRNN)):
        return
    known = hasattr(type(module), "slabs")
    for key, child in module.named_children():
        if not (known and is_convolution(child)):
            yield from _cut(child, f"{name}.{key}")


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn")


def _problem(module: nn.Module) -> str | None:
    """Why a module can't be cut; None where it can."""
    if isinstance(module, LTV_LRNN):
        return "is a core outside an NDMixer, which says which of its cells lie where"
    if isinstance(module, NDMixer) and not module.causal:
        return "has a core that sees all cells at once"
    if isinstance(module, NDMixer):
        cores = [getattr(module, path.core) for path in module.paths]
        foreign = [type(core).__name__ for core in cores if not getattr(core, "carries", False)]
        return f"has a core ({foreign[0]}) that does not carry its state on" if foreign else None
    if getattr(module, "class_token", None) is not None:
        return "has a class token, which would lie in one of them"
    if _is_of_torch(module) and type(module) not in (*CELLWISE, *_CONTAINERS):
        return "may see more than one cell, or scale by what it sees of the field"
    return None


@torch.no_grad()
def sum_gradients(model: nn.Module, slabs: Slabs) -> None:
    """Add up the gradients of all processes, in place, between `backward` and the optimizer's step."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    for _, alike in groupby(grads, key=lambda grad: (grad.dtype, grad.device)):
        for bucket in _buckets(list(alike)):
            flat = torch.cat([grad.flatten() for grad in bucket])
            dist.all_reduce(flat, group=slabs.group)
            for grad, total in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                grad.copy_(total.view_as(grad))


def _buckets(grads: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    elements = 0
    for grad in grads:
        if bucket and elements + grad.numel() > _BUCKET:
            yield bucket
            bucket, elements = [], 0
        bucket.append(grad)
        elements += grad.numel()
    if bucket:
        yield bucket
