"""Slabs: the processes that share one field, cut along its slowest axis, and what they send each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nvsubq.ops.once import once_differentiable

__all__ = ["Slabs"]


class Slabs:
    """The processes of a group, each with one slab of a field, in the order of their ranks.

    Making one is collective: all processes of the group do it at the same time. Where the group's backend is
    not gloo two more come with it: a gloo group, so that sizes are compared without waiting for a GPU, and
    one of the same backend for walks from the end.

    Args:
        group: of `torch.distributed`; None: all processes.
        overlap: on CUDA, walks from the end run on a stream of their own beside the others: while the slabs
            at one end wait for a state, those at the other have one to make.

    Raises:
        RuntimeError: `torch.distributed` has not been initialised.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, overlap: bool = True) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "slabs need processes that know each other: call torch.distributed.init_process_group first."
            )
        self.group: Any = dist.group.WORLD if group is None else group
        self.rank, self.count = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.ranks = dist.get_process_group_ranks(self.group)
        self.overlap = overlap
        self._sizes = self._back = self.group
        if dist.get_backend(self.group) != "gloo":
            options: dict[str, Any] = {"ranks": self.ranks, "use_local_synchronization": True}
            self._sizes = dist.new_group(backend="gloo", **options)
            # Exchanges of one group follow each other: those of walks that overlap must not.
            self._back = dist.new_group(backend=dist.get_backend(self.group), **options)

    def __deepcopy__(self, memo: dict) -> Slabs:
        return self  # a copy of a model has its slabs in the same processes

    def layout(self, shape: Sequence[int], axis: int = 1) -> list[int]:
        """The sizes of all slabs along `axis`, from the shape of this process's own.

        Raises:
            ValueError: in every process, where ranks or other axes differ, or a slab is empty.
        """
        own = torch.full((16,), -1, dtype=torch.int64)
        own[: len(shape)] = torch.tensor(list(shape))
        found = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(found, own, group=self._sizes)
        shapes = [tuple(n for n in one.tolist() if n >= 0) for one in found]
        others = {(*one[:axis], *one[axis + 1 :]) for one in shapes}
        if len(others) > 1 or len({len(one) for one in shapes}) > 1:
            raise ValueError(
                f"the slabs of one field must have the same shape but for axis {axis}; they have {shapes}."
            )
        sizes = [one[axis] for one in shapes]
        if min(sizes) < 1:
            raise ValueError(f"a slab must have at least one cell along axis {axis}; they have {sizes}.")
        return sizes

    def gather(self, x: Tensor, back: bool = False) -> Tensor:
        """`[R, *x.shape]`, the tensors of all processes; not recorded. `back`: for walks from the end."""
        real = (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).contiguous()
        found = real.new_empty(self.count, *real.shape)
        dist.all_gather(list(found.unbind()), real, group=self._back if back else self.group)
        return torch.view_as_complex(found) if x.is_complex() else found

    def swap(self, to_before: Tensor, to_after: Tensor) -> tuple[Tensor, Tensor]:
        """Send to both neighbours and receive from them, zeros where there is none; not recorded.

        What comes from the slab before has the shape of `to_after`, and the other way round.
        """
        from_before, from_after = torch.zeros_like(to_after), torch.zeros_like(to_before)
        from_before, from_after = from_before.contiguous(), from_after.contiguous()
        work = []
        for there, sent, received in (
            (self.rank - 1, to_before, from_before),
            (self.rank + 1, to_after, from_after),
        ):
            if 0 <= there < self.count:
                peer = self.ranks[there]
                work.append(dist.P2POp(dist.isend, sent.contiguous(), peer, self.group))
                work.append(dist.P2POp(dist.irecv, received, peer, self.group))
        for one in dist.batch_isend_irecv(work) if work else ():
            one.wait()
        return from_before, from_after

    def same(self, x: Tensor) -> Tensor:
        """What the first process has, in all of them; not recorded."""
        x = x.contiguous()
        dist.broadcast(x, self.ranks[0], group=self.group)
        return x

    def gathered(self, x: Tensor) -> Tensor:
        """As `gather`, recorded: the loss is the sum of the processes' own, and so are gradients."""
        return _Gathered.apply(self, x)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"Slabs(rank={self.rank}, count={self.count})"


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, slabs: Slabs, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.slabs = slabs
        return slabs.gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return None, ctx.slabs.gather(grad)[:, ctx.slabs.rank].sum(0)
