"""Which subjects each table has, in how many sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nvsubq.bench.gpu import blocks, ops
from nvsubq.bench.gpu.cases import FIELDS, SIZES, Size
from nvsubq.bench.gpu.measure import Subject


def subjects(
    table: str,
    device: torch.device,
    sizes: Sequence[Size] = SIZES,
    fields: Sequence[Sequence[int]] = FIELDS,
) -> list[Subject]:
    """All rows of a table, not measured yet.

    Args:
        table: key of `cases.TABLES`.
        device: where they will run.
        sizes: of ops.
        fields: of blocks.
    """
    if table == "blocks":
        return [subject for field in fields for subject in blocks.blocks(field, device)]
    if table == "decode":
        return blocks.decode(device)
    if table == "host":
        return ops.host(device)
    make = getattr(ops, table)
    return [subject for size in sizes for subject in make(size, device)]
