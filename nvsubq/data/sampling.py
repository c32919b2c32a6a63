"""Random draws and orders that are pure functions of their keys, and the sampler built on them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DistributedSampler

Key = tuple[int, int]


def generator(*key: int | str) -> np.random.Generator:
    """A random generator that depends on `key` alone.

    Args:
        key: non-negative integers and words, e.g. ``(seed, "crop", epoch, index)``.

    Raises:
        ValueError: an integer is negative.

    Example:
        >>> generator(0, "order", 3).integers(100) == generator(0, "order", 3).integers(100)
        np.True_
    """
    words = []
    for part in key:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else int(part)
        if number < 0:
            raise ValueError(f"A random key (={part}) must not be negative.")
        # Two words for every part: with one for small numbers, (2**32,) and (0, 1) would be the same key.
        words += [number & 0xFFFFFFFF, number >> 32]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def split_key(key: int | Key) -> Key:
    """`(epoch, index)` of a sampler's key; a bare index belongs to epoch 0.

    Example:
        >>> split_key(7), split_key((2, 7))
        ((0, 7), (2, 7))
    """
    if isinstance(key, (tuple, list)):
        epoch, index = key
        return int(epoch), int(index)
    return 0, int(key)


class EpochSampler(DistributedSampler):
    """Yields `(epoch, index)` keys in an order that depends on `(seed, epoch)` alone.

    An item made from such a key needs no state in the worker that makes it, so batches are the same for any
    number of workers, and a position in training is one number: the items taken so far in this epoch.
    It subclasses torch's `DistributedSampler` so that Lightning leaves it in place and calls `set_epoch`.

    Args:
        size: items in an epoch.
        seed: of the order.
        shuffle: without it, indices come in their own order.
        num_replicas, rank: processes that share the epoch, and which of them this is.

    Raises:
        ValueError: `size` is not positive, or `rank` is not below `num_replicas`.

    Example:
        >>> sampler = EpochSampler(3, seed=0, shuffle=False)
        >>> sampler.set_epoch(5)
        >>> list(sampler)
        [(5, 0), (5, 1), (5, 2)]
    """

    def __init__(
        self, size: int, *, seed: int = 0, shuffle: bool = True, num_replicas: int = 1, rank: int = 0
    ) -> None:
        if size < 1:
            raise ValueError(f"`size` (={size}) must be at least 1.")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"`rank` (={rank}) must be in [0, `num_replicas` (={num_replicas})).")
        items: Any = range(size)  # only its length counts
        super().__init__(items, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.position = 0

    def __iter__(self) -> Iterator[Key]:
        size = len(self.dataset)  # type: ignore[arg-type]
        order = (
            generator(self.seed, "order", self.epoch).permutation(size) if self.shuffle else np.arange(size)
        )
        # Ranks get equally many items: the order is repeated from its beginning to fill the last round.
        mine = np.resize(order, self.total_size)[self.rank :: self.num_replicas]
        epoch, start, self.position = self.epoch, self.position, 0
        for index in mine[start:]:
            yield epoch, int(index)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is that of `epoch`; a position that was loaded for another one is dropped."""
        if epoch != self.epoch:
            self.position = 0
        super().set_epoch(epoch)

    def state_dict(self, taken: int) -> dict[str, int]:
        """The position after `taken` items of this epoch; only their consumer knows, as workers run ahead."""
        return {"epoch": self.epoch, "position": int(taken)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass starts at the saved position of the saved epoch; passes after it start at 0."""
        if not 0 <= state["position"] <= self.num_samples:
            raise ValueError(f"`position` (={state['position']}) must be in [0, {self.num_samples}].")
        self.set_epoch(state["epoch"])
        self.position = state["position"]
