"""Recurrent cores: modules that map `[B, L, C]` to `[B, L, C]` along a walk (`LTV_LRNN` is `Core`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvsubq.cores.attention import Attention
    from nvsubq.cores.base import LTV_LRNN, Core, mask_absent
    from nvsubq.cores.cache import clone_cache, detach_cache, move_cache, reorder_cache, write_cache
    from nvsubq.cores.mamba import Mamba
    from nvsubq.cores.mamba2 import Mamba2
    from nvsubq.cores.rglru import RGLRU
    from nvsubq.cores.s5 import S5
    from nvsubq.cores.s7 import S7

__all__ = [
    "LTV_LRNN",
    "RGLRU",
    "S5",
    "S7",
    "Attention",
    "Core",
    "Mamba",
    "Mamba2",
    "clone_cache",
    "detach_cache",
    "mask_absent",
    "move_cache",
    "reorder_cache",
    "write_cache",
]

_FILES = {
    "LTV_LRNN": "base",
    "RGLRU": "rglru",
    "S5": "s5",
    "S7": "s7",
    "Attention": "attention",
    "Core": "base",
    "Mamba": "mamba",
    "Mamba2": "mamba2",
    "clone_cache": "cache",
    "detach_cache": "cache",
    "mask_absent": "base",
    "move_cache": "cache",
    "reorder_cache": "cache",
    "write_cache": "cache",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
