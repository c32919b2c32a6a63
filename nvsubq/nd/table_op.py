"""An operator that makes the table of a named order, so that a compiler has one node for it.

Dynamo would trace how a table is made, and past its cache, each time a shape is new.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nvsubq.nd.orders import ScanOrder, scan_order

__all__ = ["order_table"]


@torch.library.custom_op("nvsubq::scan_order", mutates_args=())
def _named(order: str, shape: Sequence[int], device: torch.device) -> Tensor:
    return scan_order(
        order, shape, device=device
    ).clone()  # compiled code may use its memory for something else


@_named.register_fake
def _(order: str, shape: Sequence[int], device: torch.device) -> Tensor:
    length = 1
    for size in shape:
        length = length * size
    return torch.empty(length, dtype=torch.int64, device=device)


def order_table(order: ScanOrder, shape: torch.Size, device: torch.device) -> Tensor:
    """`scan_order`, in eager and in compiled code."""
    if torch.compiler.is_dynamo_compiling() and isinstance(order, str):
        return _named(order, list(shape), device)
    return scan_order(order, shape, device=device)
