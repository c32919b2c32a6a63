"""How walks are cut, and what all launches share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.native.walking import Tables

PIECE = 64
"""Steps between two states that a forward keeps for its backward."""

TABLES = (("index", 1, torch.int64), ("segment", 2, torch.int32), ("count", 4, torch.int64))


@dataclass(frozen=True)
class Cut:
    """How many steps of L a program walks: by L alone, so that a row's bits do not depend on other rows.

    Args:
        length: L.
        chunk: steps of a program; a multiple of PIECE.
        chunks: how many.
        pieces: how many states are kept.
    """

    length: int
    chunk: int
    chunks: int
    pieces: int

    @classmethod
    def of(cls, length: int, chunk: int, most_uncut: int) -> Cut:
        """Leave a walk of at most `most_uncut` steps uncut."""
        chunk = chunk if length > most_uncut else -(-most_uncut // PIECE) * PIECE
        return cls(length, chunk, max(1, -(-length // chunk)), -(-length // PIECE))


def power_of_two(n: int) -> int:
    """The least that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def type_of(dtype: torch.dtype) -> Any:
    """Triton's name of fp32 or fp64."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def readable(tensor: Tensor) -> Tensor:
    """The tensor with its last axis contiguous, and no lazy conjugate."""
    tensor = tensor.resolve_conj().resolve_neg()
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def given_tables(tables: Tables, device: torch.device) -> tuple[list[Tensor], int, int]:
    """Index, segment and count, their flags, and the stride of index over rows."""
    flags, found = 0, []
    for name, flag, dtype in TABLES:
        table = tables.named.get(name)
        flags |= flag if table is not None else 0
        found.append(torch.empty(1, dtype=dtype, device=device) if table is None else table)
    index = tables.named.get("index")
    return found, flags, 0 if index is None or index.shape[0] == 1 else index.stride(0)


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Launch on the device of the tensors, on torch's current stream."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
    else:
        yield
