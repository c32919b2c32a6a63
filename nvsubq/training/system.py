"""What a run reports about the machine: threads, memory, versions."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import torch

PACKAGES = ("nvsubq", "torch", "lightning", "hydra-core", "omegaconf", "numpy", "torchmetrics", "einops")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group.

    Example:
        >>> usable_cores() >= 1
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no control groups of version 2: no quota
    return cores


def set_threads(threads: int | None) -> int:
    """Sets torch's threads in an operator: the number given, or `OMP_NUM_THREADS`, or the usable cores."""
    if threads is None and not os.environ.get("OMP_NUM_THREADS"):
        threads = usable_cores()
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return torch.get_num_threads()


# Parameters of glibc's `mallopt` (malloc.h), and the values that it takes at most.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST_ON_HEAP = 2**31 - 1, 32 * 2**20


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that tensors on the CPU free, for those of the next step.

    By default glibc gives it back to the system and asks for it anew in every step, page by page: a fifth of
    the time of a small model's training step. Does nothing where the user has set glibc's allocator up, or
    where there is another C library.

    Returns:
        Whether it was done.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return False
    if any(name.startswith("MALLOC_") for name in os.environ) or "LD_PRELOAD" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not say."""
    try:  # Linux: what getrusage says there may be the peak of the process that started this one
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_memory() -> int | None:
    """The most CUDA memory that torch has held, in bytes; None without a CUDA device in use."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
