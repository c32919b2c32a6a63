"""The machine and the packages that a measurement belongs to."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvsubq.bench.packages import version


def facts(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, cores, memory, system, and what the native backend is here.

    Args:
        packages: whose versions are told where they are installed, beside ours.

    Example:
        >>> sorted(facts())
        ['cores', 'cpu', 'load', 'memory', 'native', 'system', 'versions']
    """
    from nvsubq.ops import backends
    from nvsubq.training.system import usable_cores

    native = next(backend for backend in backends() if backend.name == "native")
    served = f", for {', '.join(native.ops)}" if native.active else ""
    reason = "; ".join(native.reason.splitlines())
    return {
        "cpu": _cpu(),
        "cores": usable_cores(),
        "memory": _memory(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "native": f"{'active' if native.active else 'not active'}: {reason}{served}",
        "versions": _versions(packages),
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("nvsubq", "torch", *packages):
        installed = version(name)
        if installed:
            found[name] = installed
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def gpu(index: int) -> dict[str, Any]:
    """Name, memory, compute capability and driver of a CUDA device, and torch's CUDA."""
    import torch

    about = torch.cuda.get_device_properties(index)
    return {
        "gpu": about.name,
        "gpu_memory": about.total_memory,
        "capability": f"{about.major}.{about.minor}",
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
        return next(word for word in text.split() if word.count(".") >= 1 and word[0].isdigit())
    except (OSError, StopIteration):
        return "unknown"
