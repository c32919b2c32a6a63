"""N-dimensional mixers from linear-recurrent cores.

A lazy config builds a 1-D recurrent core, an N-dimensional wrapper walks an image or a volume with it. Names
resolve on first use (PEP 562), so that ``import nvsubq.lazy_config`` needs no torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("nvsubq")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

_HOME = {
    "NDMixer": "nvsubq.nd",
    "MambaND": "nvsubq.nd",
    "NDBackbone": "nvsubq.models",
    "NDSegmenter": "nvsubq.models",
    "NDUNet": "nvsubq.models",
    "LazyConfig": "nvsubq.lazy_config",
    "instantiate": "nvsubq.lazy_config",
    "validate": "nvsubq.lazy_config",
    "as_factory": "nvsubq.lazy_config",
    "to_yaml": "nvsubq.lazy_config",
    "from_yaml": "nvsubq.lazy_config",
    "allow_targets": "nvsubq.lazy_config",
    "ConfigError": "nvsubq.lazy_config",
    "PLACEHOLDER": "nvsubq.lazy_config",
    "generate": "nvsubq.cores.generation",
    "load_weights": "nvsubq.compat.weights",
    "backends": "nvsubq.ops",
    "use_backend": "nvsubq.ops",
}

__all__ = [
    "PLACEHOLDER",
    "ConfigError",
    "LazyConfig",
    "MambaND",
    "NDBackbone",
    "NDMixer",
    "NDSegmenter",
    "NDUNet",
    "__version__",
    "allow_targets",
    "as_factory",
    "backends",
    "from_yaml",
    "generate",
    "instantiate",
    "load_weights",
    "to_yaml",
    "use_backend",
    "validate",
]

if TYPE_CHECKING:
    from nvsubq.compat.weights import load_weights
    from nvsubq.cores.generation import generate
    from nvsubq.lazy_config import (
        PLACEHOLDER,
        ConfigError,
        LazyConfig,
        allow_targets,
        as_factory,
        from_yaml,
        instantiate,
        to_yaml,
        validate,
    )
    from nvsubq.models import NDBackbone, NDSegmenter, NDUNet
    from nvsubq.nd import MambaND, NDMixer
    from nvsubq.ops import backends, use_backend


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nvsubq' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
