"""Which order, and which way along it, each layer of a network walks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nvsubq.nd.orders import NAMES, ScanOrder, parse_order


def choose_scan(scan: Any, layer_idx: int | None, bidirectional: bool) -> tuple[ScanOrder, bool]:
    """The order of a layer, and whether it is walked from its end.

    `{"alternate": [p, q, ...]}` goes through p, q, ..., then, where layers walk one way, through the same
    from their ends, and so on: every pair of an order and a direction is met before one comes again.

    Args:
        scan: an order (`scan_order`), or a mapping of "alternate" to some.
        layer_idx: number of the layer, needed to alternate.
        bidirectional: each layer walks both ways anyway.

    Raises:
        ValueError: an unknown order, an empty or other mapping, or no `layer_idx` to alternate by.

    Example:
        >>> [choose_scan({"alternate": ["snake", "hilbert"]}, i, False) for i in range(4)]
        [('snake', False), ('hilbert', False), ('snake', True), ('hilbert', True)]
    """
    if isinstance(scan, Mapping):
        orders = scan.get("alternate")
        if (
            set(scan) != {"alternate"}
            or isinstance(orders, str)
            or not isinstance(orders, Sequence)
            or not orders
        ):
            raise ValueError(f"`scan` (={dict(scan)!r}) must be an order, or {{'alternate': [order, ...]}}.")
        for order in orders:
            _check(order)
        if not isinstance(layer_idx, int) or layer_idx < 0:
            raise ValueError(
                f"`layer_idx` (={layer_idx!r}) must be the layer's number: `scan` alternates by it."
            )
        turn, place = divmod(layer_idx, len(orders))
        return orders[place], not bidirectional and turn % 2 == 1
    _check(scan)
    return scan, False


def _check(order: Any) -> None:
    if isinstance(order, str):
        parse_order(order, "scan")
    elif not callable(order):
        raise ValueError(
            f"`scan` (={order!r}) must be one of {', '.join(NAMES)}, a callable of the shape, "
            "or {'alternate': [order, ...]}."
        )
