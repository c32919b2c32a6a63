"""Whether Triton is there, and a device for it; it is imported when a call needs it, not before."""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

_PACKAGES = ("triton", "pytorch-triton-rocm", "triton-rocm", "triton-windows")  # all give the module `triton`


@cache
def interpreted() -> bool:
    """Whether Triton interprets its kernels, on CPU tensors too; it decides that when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def inactive() -> str | None:
    """Why the backend cannot be used here at all, or None."""
    if find_spec("triton") is None:
        return "there is no package `triton`; torch's builds for CUDA and ROCm bring it"
    if not torch.cuda.is_available() and not interpreted():
        return "torch finds no CUDA or ROCm device (TRITON_INTERPRET=1 runs it on the CPU, very slowly)"
    return None


def missing(op: str, device: torch.device) -> str | None:
    """Why it does not serve an op on a device, or None."""
    del op
    if device.type == "cuda" or interpreted():
        return None
    return f"its kernels take CUDA or ROCm tensors, not {device.type} ones"


def forget() -> None:
    """Look anew whether Triton interprets."""
    interpreted.cache_clear()


def about() -> str:
    """Which Triton it is, and what it is for."""
    target = "interpreted on the CPU" if interpreted() else "ROCm" if torch.version.hip else "CUDA"
    return f"Triton {_version()}, {target}; where there is no native kernel"


def _version() -> str:
    for package in _PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "of unknown version"
