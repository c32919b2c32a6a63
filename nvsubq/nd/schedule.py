"""Which orders, and which way along them, each layer of a network walks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nvsubq.nd.orders import NAMES, ScanOrder, parse_order

_FORMS = "{'alternate': [order, ...]} or {'split_channels': [order, ...]}"


class Path(NamedTuple):
    """One walk of a layer: its order, whether from the end, and the name of its core in the layer."""

    order: ScanOrder
    reverse: bool
    core: str = "core_layer"


class Schedule(NamedTuple):
    """The walks of a layer, and whether each has a share of the channels or all of them."""

    paths: tuple[Path, ...]
    split: bool = False


def plan_scan(scan: Any, layer_idx: int | None, bidirectional: bool) -> Schedule:
    """The walks of a layer.

    `[p, q, ...]` walks all of them, and `{"split_channels": [p, q, ...]}` too, each on its share of the
    channels. Both ways, an order's two walks follow each other: p, p from its end, q, q from its end.
    `{"alternate": [p, q, ...]}` goes through p, q, ..., then, where layers walk one way, through the same
    from their ends, and so on: every pair of an order and a direction is met before one comes again.

    Args:
        scan: an order (`scan_order`), a list of some, or one of the two mappings.
        layer_idx: number of the layer, needed to alternate.
        bidirectional: each order is walked both ways.

    Raises:
        ValueError: an unknown order, an empty list, another mapping, or no `layer_idx` to alternate by.

    Example:
        >>> [path.order for path in plan_scan({"alternate": ["snake", "hilbert"]}, 1, True).paths]
        ['hilbert', 'hilbert']
        >>> [path.core for path in plan_scan(["snake", "hilbert"], 1, True).paths]
        ['core_layer', 'core_layer_rev', 'core_layer_1', 'core_layer_1_rev']
    """
    if not isinstance(scan, Mapping):
        return Schedule(_paths(_orders(scan, scan) if _is_list(scan) else [_checked(scan)], bidirectional))
    if set(scan) == {"split_channels"}:
        return Schedule(_paths(_orders(scan["split_channels"], scan), bidirectional), split=True)
    if set(scan) != {"alternate"}:
        raise ValueError(f"`scan` (={dict(scan)!r}) must be an order, a list of orders, {_FORMS}.")
    orders = _orders(scan["alternate"], scan)
    if not isinstance(layer_idx, int) or layer_idx < 0:
        raise ValueError(f"`layer_idx` (={layer_idx!r}) must be the layer's number: `scan` alternates by it.")
    turn, place = divmod(layer_idx, len(orders))
    if bidirectional:
        return Schedule(_paths([orders[place]], True))
    return Schedule((Path(orders[place], turn % 2 == 1),))


def _paths(orders: Sequence[ScanOrder], bidirectional: bool) -> tuple[Path, ...]:
    names = ["core_layer" if i == 0 else f"core_layer_{i}" for i in range(len(orders))]
    ways = ((False, ""), (True, "_rev")) if bidirectional else ((False, ""),)
    return tuple(
        Path(order, reverse, name + suffix)
        for order, name in zip(orders, names, strict=True)
        for reverse, suffix in ways
    )


def _is_list(scan: Any) -> bool:
    return isinstance(scan, Sequence) and not isinstance(scan, str)


def _orders(orders: Any, scan: Any) -> list[ScanOrder]:
    if not _is_list(orders) or not orders:
        shown = dict(scan) if isinstance(scan, Mapping) else list(scan)
        raise ValueError(f"`scan` (={shown!r}) must be an order, a list of orders, {_FORMS}.")
    return [_checked(order) for order in orders]


def _checked(order: Any) -> ScanOrder:
    if isinstance(order, str):
        parse_order(order, "scan")
    elif not callable(order):
        raise ValueError(
            f"`scan` (={order!r}) must be one of {', '.join(NAMES)}, a callable of the shape, "
            f"a list of these, {_FORMS}."
        )
    return order
