"""A second CUDA stream for walks that would otherwise wait for each other."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["Beside"]


class Beside:
    """A context whose work runs beside that of the stream on which it was made, from there on.

    Args:
        given: what the work reads; it must be complete on the current stream.
    """

    def __init__(self, given: Tensor) -> None:
        self.stream = _second(given.device)
        self.stream.wait_stream(torch.cuda.current_stream(given.device))
        given.record_stream(self.stream)

    def __enter__(self) -> None:
        self._entered: Any = torch.cuda.stream(self.stream)
        self._entered.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def joined(self, out: Tensor) -> Tensor:
        """What the work has made, for the current stream, which waits for it."""
        here = torch.cuda.current_stream(out.device)
        here.wait_stream(self.stream)
        out.record_stream(here)
        return out


@lru_cache
def _second(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
