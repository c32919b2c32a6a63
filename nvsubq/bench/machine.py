"""The machine and the packages that a measurement belongs to."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from nvsubq.bench.cases import PEERS
from nvsubq.bench.peers import version


def facts() -> dict[str, Any]:
    """Processor, cores, memory, system, and what the native backend is here.

    Example:
        >>> sorted(facts())
        ['cores', 'cpu', 'load', 'memory', 'native', 'system', 'versions']
    """
    from nvsubq.ops import backends
    from nvsubq.training.system import usable_cores

    native = next(backend for backend in backends() if backend.name == "native")
    served = f", for {', '.join(native.ops)}" if native.active else ""
    return {
        "cpu": _cpu(),
        "cores": usable_cores(),
        "memory": _memory(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "native": f"{'active' if native.active else 'not active'}: {native.reason}{served}",
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("nvsubq", "torch", *PEERS):
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
