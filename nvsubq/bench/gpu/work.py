"""What a computation cannot do without: bytes through memory and operations of the special-function unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches, measured in the same run.

    Args:
        bytes: per second, read and written, by a device copy.
        exps: exponentials per second.
        how: how these were measured.
    """

    bytes: float
    exps: float
    how: str


@dataclass(frozen=True)
class Work:
    """The least that has to be done.

    Args:
        bytes: every input, output, cotangent and gradient moved once.
        exps: exponentials, logarithms, reciprocals and roots.

    Example:
        >>> ceilings = Ceilings(bytes=1e12, exps=1e12, how="")
        >>> Work(2_000_000, 1_000_000).floor(ceilings), Work(0, 3_000_000).floor(ceilings)
        ((2e-06, 'bytes'), (3e-06, 'exps'))
    """

    bytes: int
    exps: int = 0

    def floor(self, ceilings: Ceilings) -> tuple[float, str]:
        """Seconds at the ceilings, and which of the two it is."""
        by_bytes, by_exps = self.bytes / ceilings.bytes, self.exps / ceilings.exps
        return (by_bytes, "bytes") if by_bytes >= by_exps else (by_exps, "exps")


def moved(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def of_op(inputs: Iterable[Tensor], output: Tensor, exps: int) -> tuple[Work, Work]:
    """The work of an op's forward, and of forward and backward.

    The backward reads the inputs and the output's cotangent and writes a gradient for each input; it
    takes each exponential once more.

    Args:
        inputs: all of them, each with a gradient.
        output: or anything of its size.
        exps: of the forward.
    """
    given, made = moved(inputs), moved([output])
    return Work(given + made, exps), Work(3 * given + 2 * made, 2 * exps)


def of_scan(elements: int, states: int) -> int:
    """Special functions of `selective_scan`: the decay of each state; softplus and SiLU take two each."""
    return elements * (states + 4)


def of_rglru(elements: int) -> int:
    """Special functions of `rglru_scan`: two sigmoids of two each, the decay, and the root."""
    return elements * 6


def of_silu(elements: int) -> int:
    """An exponential and a reciprocal each."""
    return elements * 2
