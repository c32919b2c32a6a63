"""What is measured on a GPU: the tables, their sizes, and other packages."""

from __future__ import annotations

import math
from typing import NamedTuple


class Size(NamedTuple):
    """Shape of an op's activations: batch `B`, length `L`, inner width `D`.

    Example:
        >>> str(Size("a", 64, 196, 768)), Size("x", 2, 3, 5).elements
        ('a (64, 196, 768)', 30)
    """

    name: str
    batch: int
    length: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.batch, self.length, self.width

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.shape))})"


SIZES = (
    Size("a", 64, 196, 768),  # ViT-S on 14 x 14
    Size("b", 8, 4096, 1536),  # 64 x 64
    Size("c", 2, 65536, 768),
    Size("v", 2, 32768, 384),  # a volume of 32 x 32 x 32
)
FIELDS = ((64, 14, 14, 384), (8, 64, 64, 768), (2, 32, 32, 32, 192), (1, 64, 64, 64, 192))
"""Inputs of blocks, `[B, *spatial, C]`."""

STATES, TAPS, DECODED_WIDTH = 16, 4, 1024
HOST_SIZE = Size("host", 1, 16, 64)
"""So small that a call takes as long as the host needs for it."""

FORWARD, BOTH, EAGER, GRAPH = "forward", "forward+backward", "eager", "CUDA graph"
NO_GRAD, WITH_GRAD = "without grad", "with grad"


class Table(NamedTuple):
    """A table: its title, and what is timed, a group of columns each."""

    title: str
    timed: tuple[str, ...]


TABLES = {
    "scan": Table(f"selective_scan, bf16, N = {STATES}, with z, D, bias and softplus", (FORWARD, BOTH)),
    "order": Table("selective_scan, by order of the walk", (FORWARD, BOTH)),
    "linear_scan": Table("linear_scan, fp32", (FORWARD, BOTH)),
    "rglru_scan": Table("rglru_scan, with both biases", (FORWARD, BOTH)),
    "conv": Table(f"causal_conv1d, bf16, width {TAPS}, SiLU", (FORWARD, BOTH)),
    "blocks": Table("blocks, bidirectional, autocast bf16, weights fp32", (FORWARD, BOTH)),
    "decode": Table(f"one token through one layer, d_model {DECODED_WIDTH}, bf16", (EAGER, GRAPH)),
    "host": Table(f"the host's time in a call on {HOST_SIZE.shape}", (NO_GRAD, WITH_GRAD, BOTH)),
}

PACKAGES = ("mamba-ssm", "causal-conv1d", "accelerated-scan", "lrnnx", "triton")
"""Whose versions are told."""
