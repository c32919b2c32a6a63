"""What part of a step each process has, so that several of them train and score as one does."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DistributedSampler


def share_of(loader: Any, batch_idx: int, count: int) -> tuple[int, float]:
    """How many items of a batch count, and by what the mean over them is to be multiplied.

    Processes take every `num_replicas`-th item of an epoch. Where its size is no multiple of that, samplers
    give some processes one item a second time at the end. It must not count; and the average over processes
    is the mean over all items only if each has a weight by how many of its items do.

    Args:
        loader: of this process.
        batch_idx: number of the batch in the epoch.
        count: items in it, the same in all processes.

    Returns:
        Items at the beginning of the batch that count, and the weight of their mean (1 with one process).

    Example:
        >>> sampler = DistributedSampler(range(5), num_replicas=2, rank=1)
        >>> from torch.utils.data import DataLoader
        >>> share_of(DataLoader(range(5), batch_size=2, sampler=sampler), 1, 1)  # its 3rd item is a filler
        (0, 0.0)
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return count, 1.0
    processes, size = sampler.num_replicas, len(sampler.dataset)  # type: ignore[arg-type]
    before = batch_idx * loader.batch_size
    mine = -(-(size - sampler.rank) // processes)  # items rank, rank + processes, ... below size
    own = min(max(mine - before, 0), count)
    everybodys = min(size, (before + count) * processes) - before * processes
    return own, own * processes / everybodys
