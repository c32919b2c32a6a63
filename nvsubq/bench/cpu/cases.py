"""What is measured: cores, sizes, implementations and their defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nvsubq.bench.names import OURS, PORTABLE

if TYPE_CHECKING:
    from torch import nn


class Size(NamedTuple):
    """Shape of the input: batch `B`, length `L`, width `C`.

    Example:
        >>> str(Size(1, 1024, 192)), Size(4, 196, 192).cells
        ('(1, 1024, 192)', 784)
    """

    batch: int
    length: int
    d_model: int

    @property
    def cells(self) -> int:
        return self.batch * self.length

    @property
    def elements(self) -> int:
        return self.cells * self.d_model

    def __str__(self) -> str:
        return f"({self.batch}, {self.length}, {self.d_model})"


SIZES = (
    Size(4, 196, 192),
    Size(1, 1024, 192),
    Size(1, 4096, 192),
    Size(1, 4096, 384),
    Size(1, 65536, 192),
)
QUICK = (Size(4, 196, 192),)

# Class in nvsubq.cores and its arguments beside d_model.
CORES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {"d_state": 16}),
    "mamba2": ("Mamba2", {"d_state": 64}),
    "s5": ("S5", {"d_state": 64, "conj_sym": True}),
    "rglru": ("RGLRU", {}),
}

PEERS = ("mambapy", "transformers", "lite-mamba")
"""Other packages that have a Mamba block in plain PyTorch."""


def parse_size(text: str) -> Size:
    """A size from `B,L,C`.

    Raises:
        ValueError: it is not three whole numbers above 0.

    Example:
        >>> parse_size("1,1024,192")
        Size(batch=1, length=1024, d_model=192)
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"`--sizes` ({text!r}) must have the form B,L,C with three numbers above 0.")
    return Size(*map(int, parts))


def implementations(core: str, peers: tuple[str, ...]) -> tuple[str, ...]:
    """The implementations of a core, ours first; the peers have Mamba alone.

    Example:
        >>> implementations("s5", PEERS)
        ('nvsubq', 'nvsubq torch')
    """
    return (OURS, PORTABLE, *(peers if core == "mamba" else ()))


def build(core: str, size: Size, *, portable: bool = False) -> nn.Module:
    """A core with the same weights in every process, away from its initial decays, which repeat.

    Raises:
        ValueError: the core cannot have this width.
    """
    import torch

    from nvsubq import cores

    name, options = CORES[core]
    torch.manual_seed(0)
    module = getattr(cores, name)(size.d_model, **options)
    module.use_fast_path = not portable
    if core == "mamba":
        with torch.no_grad():
            module.A_log += 0.3 * torch.randn_like(module.A_log)
            module.D += torch.randn_like(module.D)
    return module
