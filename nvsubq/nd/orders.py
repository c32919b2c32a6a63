"""Scan orders by name: which cell of a field a walk visits first, second, and so on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nvsubq.nd import curves

ScanOrder = str | Callable[[tuple[int, ...]], Any]

NAMES = (
    "row_major",
    "column_major",
    "axes(i, j, ...)",
    "snake",
    "window(size, ...)",
    "hilbert",
    "morton",
    "random(seed)",
)
_CALL = re.compile(r"\s*([a-z_]+)\s*(?:\(([^()]*)\))?\s*")
_MOST_REMEMBERED = 64  # tables, of 8 bytes a cell each


def scan_order(order: ScanOrder, shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """The cells of a field in the order of a walk.

    | order | the walk |
    |---|---|
    | `row_major` | the last axis is the fastest |
    | `column_major` | the first axis is the fastest |
    | `axes(i, j, ...)` | all axes, from the slowest to the fastest |
    | `snake` | each line against the one before: consecutive cells touch |
    | `window(s)`, `window(s, t, ...)` | windows of s cells along each axis, or of s, t, ... |
    | `hilbert` | a Hilbert curve; ranks 2 and 3 |
    | `morton` | by the interleaved bits of the coordinates |
    | `random(seed)` | a permutation drawn by a generator of its own |
    | a callable | what it gives for the shape: any permutation |

    A table is made once for each shape and device, and then the same tensor is given; do not write to it.

    Args:
        order: a name as above (`window` and `random` alone mean 8 and 0), or a callable of the shape.
        shape: the spatial axes, of any rank from 1 up and any sizes.
        device: of the table.

    Returns:
        int64 `[L]`, L the number of cells: their row-major indices.

    Raises:
        ValueError: an unknown name, arguments that do not fit the shape, or a callable's result that is no
            permutation.

    Example:
        >>> scan_order("snake", (2, 3)).tolist()
        [0, 1, 2, 5, 4, 3]
        >>> scan_order("axes(1, 0)", (2, 3)).tolist()
        [0, 3, 1, 4, 2, 5]
    """
    sizes = _checked_shape(shape)
    if isinstance(order, str):
        parse_order(order)
    elif not callable(order):
        raise ValueError(f"`order` (={order!r}) must be a name or a callable of the shape.")
    try:
        hash(order)
    except TypeError:
        return _made(order, sizes).to(device)
    return _remembered(order, sizes, torch.device(device))


def parse_order(order: str, argument: str = "order") -> tuple[str, tuple[int, ...]]:
    """The name of an order and its arguments; `argument` is what messages call it.

    Raises:
        ValueError: it is not written as in `NAMES`.
    """
    match = _CALL.fullmatch(order)
    name = match[1] if match else ""
    if match is None or name not in _BUILDERS:
        raise ValueError(
            f"`{argument}` (={order!r}) must be one of {', '.join(NAMES)}, or a callable of the shape."
        )
    try:
        arguments = tuple(int(part) for part in match[2].split(",")) if match[2] and match[2].strip() else ()
    except ValueError:
        raise ValueError(f"`{argument}` (={order!r}) must have integers in its parentheses.") from None
    if arguments and name in _WITHOUT_ARGUMENTS:
        raise ValueError(f"`{argument}` (={order!r}) takes no arguments.")
    return name, arguments


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(shape)
    if not sizes or not all(isinstance(n, int) and n >= 0 for n in sizes):
        raise ValueError(f"`shape` (={sizes}) must be one or more sizes.")
    return sizes


@lru_cache(_MOST_REMEMBERED)
def _remembered(order: ScanOrder, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if device.type == "cpu":
        return _made(order, shape)
    with _disable_current_modes():
        return _remembered(order, shape, torch.device("cpu")).to(device)


def _made(order: ScanOrder, shape: tuple[int, ...]) -> Tensor:
    # What is remembered must serve training too, and be no fake tensor of one that traces.
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        if not isinstance(order, str):
            return _checked_table(order(shape), shape, order)
        name, arguments = parse_order(order)
        if math.prod(shape) == 0:
            return torch.empty(0, dtype=torch.int64)
        table = _BUILDERS[name](order, shape, arguments)
        return torch.from_numpy(np.ascontiguousarray(table, dtype=np.int64))


def _axes(order: str, shape: tuple[int, ...], arguments: tuple[int, ...]) -> np.ndarray:
    rank = len(shape)
    if sorted(arguments) != list(range(rank)):
        raise ValueError(
            f"`order` (={order!r}) must name each axis of the shape {shape} once, 0 to {rank - 1}."
        )
    return curves.axes(shape, arguments)


def _window(order: str, shape: tuple[int, ...], arguments: tuple[int, ...]) -> np.ndarray:
    arguments = arguments or (8,)
    sizes = arguments * len(shape) if len(arguments) == 1 else arguments
    if len(sizes) != len(shape) or min(sizes) < 1:
        raise ValueError(
            f"`order` (={order!r}) must have one positive size, or one for each axis of {shape}."
        )
    return curves.window(shape, [min(size, n) for size, n in zip(sizes, shape, strict=True)])


def _hilbert(order: str, shape: tuple[int, ...], arguments: tuple[int, ...]) -> np.ndarray:
    if len(shape) not in (2, 3):
        raise ValueError(f"`order` (={order!r}) is for fields of rank 2 and 3, not for the shape {shape}.")
    return curves.hilbert(shape)


def _random(order: str, shape: tuple[int, ...], arguments: tuple[int, ...]) -> np.ndarray:
    if len(arguments) > 1 or any(seed < 0 for seed in arguments):
        raise ValueError(f"`order` (={order!r}) must have one seed from 0 up.")
    generator = torch.Generator().manual_seed(arguments[0] if arguments else 0)
    return torch.randperm(math.prod(shape), generator=generator).numpy()


_BUILDERS: dict[str, Callable[[str, tuple[int, ...], tuple[int, ...]], np.ndarray]] = {
    "row_major": lambda order, shape, _: curves.axes(shape, range(len(shape))),
    "column_major": lambda order, shape, _: curves.axes(shape, range(len(shape))[::-1]),
    "axes": _axes,
    "snake": lambda order, shape, _: curves.snake(shape),
    "window": _window,
    "hilbert": _hilbert,
    "morton": lambda order, shape, _: curves.morton(shape),
    "random": _random,
}
_WITHOUT_ARGUMENTS = ("row_major", "column_major", "snake", "hilbert", "morton")


def _checked_table(table: Any, shape: tuple[int, ...], order: Any) -> Tensor:
    name = getattr(order, "__name__", type(order).__name__)
    length = math.prod(shape)
    table = torch.as_tensor(table)
    if table.shape != (length,) or table.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"`order` ({name}) must give integers of shape [{length}] for the shape {shape}, "
            f"not {table.dtype} of shape {list(table.shape)}."
        )
    table = table.to(device="cpu", dtype=torch.int64)
    if not torch.equal(table.sort().values, torch.arange(length)):
        raise ValueError(
            f"`order` ({name}) must give a permutation of 0 .. {length - 1} for the shape {shape}."
        )
    return table
