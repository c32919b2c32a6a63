"""What a run does to the process that it runs in."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# As a training step: tens of megabytes are taken, written and freed, over and over.
_FAULTS = """
import ctypes, resource, sys
from nvsubq.training.system import keep_freed_memory

libc, size = ctypes.CDLL(None), 10 * 2**20
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def step():
    blocks = [libc.malloc(size) for _ in range(6)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)

done = keep_freed_memory() if sys.argv[1] == "keep" else None
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def faults(what: str, **environment: str) -> tuple[str, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    command = [sys.executable, "-c", _FAULTS, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean | environment)
    said, count = done.stdout.split()
    return said, int(count)


@glibc
def test_freed_memory_is_kept_for_the_next_step() -> None:
    said, kept = faults("keep")
    assert said == "True"
    assert kept < 0.2 * faults("leave")[1]


@glibc
@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_an_allocator_that_the_user_set_up_is_left_alone(name: str) -> None:
    value = {"MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}[name]
    assert faults("keep", **{name: value})[0] == "False"
