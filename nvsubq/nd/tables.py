"""The tables that a layer walks by: of its field, or of the field and a class token in the walk's middle."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nvsubq.nd.orders import ScanOrder, scan_order

__all__ = ["order_name", "order_table", "slab_table"]

_MOST_REMEMBERED = 64
_CALLABLE = "callable "
_callables: WeakValueDictionary[str, Callable[..., Any]] = WeakValueDictionary()
_kept: dict[str, Callable[..., Any]] = {}  # those that allow no weak reference
_numbers = itertools.count()


def order_name(order: ScanOrder) -> str:
    """A name that `order_table` takes for `order`; of a callable, in this process and as long as it lives.

    Dynamo and operators have strings, and know nothing of what a callable does.
    """
    if isinstance(order, str):
        return order
    for name, known in [*_callables.items(), *_kept.items()]:
        if known is order:
            return name
    name = f"{_CALLABLE}{next(_numbers)}"
    try:
        _callables[name] = order
    except TypeError:
        _kept[name] = order
    return name


def order_table(order: ScanOrder, shape: torch.Size, device: torch.device, token: bool = False) -> Tensor:
    """`scan_order`, in eager and in compiled code; with `token` of one more cell, L, visited at step L // 2.

    Compiled code needs the name of a callable (`order_name`).

    Example:
        >>> order_table("column_major", torch.Size((2, 2)), torch.device("cpu"), token=True).tolist()
        [0, 2, 4, 1, 3]
    """
    if torch.compiler.is_dynamo_compiling() and isinstance(order, str):
        return _named(order, list(shape), device, token)
    return _table(order, tuple(shape), device, token)


def slab_table(
    order: ScanOrder, shape: Sequence[int], sizes: Sequence[int], own: int, device: torch.device
) -> Tensor:
    """The part of a field's walk that lies in one slab, in cells of the slab.

    Args:
        order: of the whole field.
        shape: of the slab.
        sizes: of all slabs along the first axis.
        own: which of them this is.
        device: of the table.

    Raises:
        ValueError: the walk does not go through one slab after another.

    Example:
        >>> slab_table("snake", (1, 3), (1, 1), 1, torch.device("cpu")).tolist()
        [2, 1, 0]
    """
    given = order, tuple(shape), tuple(sizes), own, device
    try:
        hash(order)
    except TypeError:
        return _slab(*given)
    return _remembered_slab(*given)


def _slab(
    order: ScanOrder, shape: tuple[int, ...], sizes: tuple[int, ...], own: int, device: torch.device
) -> Tensor:
    plane = math.prod(shape[1:])
    table = scan_order(order, (sum(sizes), *shape[1:]))
    with torch.no_grad():
        borders = torch.tensor([0, *sizes]).cumsum(0) * plane
        slabs = torch.bucketize(table, borders, right=True)
        if bool(
            (slabs[1:] < slabs[:-1]).any()
        ):  # every process looks at all slabs, so that all of them raise
            raise ValueError(
                f"`scan` (={order!r}) leaves a slab and comes back to it: its state can't be carried over. "
                f"Slabs of {list(sizes)} planes along the first axis need an order that has that axis as its "
                "slowest: 'row_major', 'snake', 'axes(0, ...)', or 'window(s)' where s divides the slabs."
            )
        part = table[borders[own] : borders[own + 1]] - borders[own]
    return part.to(device)


_remembered_slab = lru_cache(_MOST_REMEMBERED)(_slab)


def _table(order: ScanOrder, shape: tuple[int, ...], device: torch.device, token: bool) -> Tensor:
    if isinstance(order, str) and order.startswith(_CALLABLE):
        order = _called(order)
    if not token:
        return scan_order(order, shape, device=device)
    try:
        hash(order)
    except TypeError:
        return _with_token(order, shape, device)
    return _remembered(order, shape, device)


def _called(name: str) -> ScanOrder:
    order = _callables.get(name, _kept.get(name))
    if order is None:
        raise RuntimeError(
            f"a compiled or exported program walks by `scan` (={name!r}), which is not in this process; "
            "torch.export with strict=False keeps a callable's table instead."
        )
    return order


def _with_token(order: ScanOrder, shape: tuple[int, ...], device: torch.device) -> Tensor:
    cells = scan_order(order, shape, device=device)
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():  # as in `scan_order`
        half, last = len(cells) // 2, torch.full((1,), len(cells), dtype=torch.int64, device=device)
        return torch.cat([cells[:half], last, cells[half:]])


_remembered = lru_cache(_MOST_REMEMBERED)(_with_token)


# Dynamo would trace how a table is made, and past its cache; this is one node for it.
@torch.library.custom_op("nvsubq::scan_order", mutates_args=())
def _named(order: str, shape: Sequence[int], device: torch.device, token: bool) -> Tensor:
    return _table(order, tuple(shape), device, token).clone()  # compiled code may reuse the memory


@_named.register_fake
def _(order: str, shape: Sequence[int], device: torch.device, token: bool) -> Tensor:
    return torch.empty(math.prod(shape) + token, dtype=torch.int64, device=device)
