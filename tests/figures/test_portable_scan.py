"""Figures of the portable scan: peak memory of the op, speed of a whole Mamba block beside mambapy's.

Run with `scripts/test.sh -m figure -s`; required and measured are printed side by side.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch

pytestmark = pytest.mark.figure

MEMORY_LIMIT = 12.0  # times the bytes of `u`
SPEEDUP = 3.0

_PEAK = """
import torch
from nvsubq.ops import selective_scan

torch.manual_seed(0)
B, L, D, N = 1, 4096, 768, 16
def scan(L):
    u, delta, z = (torch.randn(B, L, D, requires_grad=True) for _ in range(3))
    b, c = (torch.randn(B, L, N, requires_grad=True) for _ in range(2))
    A = (-torch.rand(D, N) - 0.1).requires_grad_()
    skip, bias = (torch.randn(D, requires_grad=True) for _ in range(2))
    y = selective_scan(u, delta, A, b, c, skip, z, delta_bias=bias, delta_softplus=True, backend="torch")
    y.backward(torch.ones_like(y))

def peak():
    # Not getrusage: its maximum is handed on by the process that started this one.
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024

scan(16)  # libraries load at the first call; they are no part of the op
before = peak()
scan(L)
print((peak() - before) / (B * L * D * 4))
"""


def test_peak_memory_of_the_scan() -> None:
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    measured = float(done.stdout)
    print("\nselective_scan [1, 4096, 768], N 16, forward+backward, peak memory in sizes of u:")
    print(f"required < {MEMORY_LIMIT:.0f}, measured {measured:.1f}")
    assert 1 < measured < MEMORY_LIMIT  # the output alone takes 1


def test_speed_of_a_mamba_block_beside_mambapy() -> None:
    from mambapy import mamba as mambapy

    from nvsubq.cores import Mamba

    torch.manual_seed(0)
    x = torch.randn(1, 4096, 384)
    ours = Mamba(384, use_fast_path=False)
    theirs = mambapy.MambaBlock(mambapy.MambaConfig(d_model=384, n_layers=1))
    run_ours, run_theirs = (_forward_backward(block, x) for block in (ours, theirs))
    pairs = [(_seconds(run_ours), _seconds(run_theirs)) for _ in range(6)][1:]
    fast, slow = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print("\nMamba block, d_model 384, L 4096, forward+backward, times as fast as mambapy's:")
    print(f"ours {fast:.2f} s, mambapy {slow:.2f} s")
    print(f"required >= {SPEEDUP:.0f}, measured {ratio:.1f}")
    assert ratio >= SPEEDUP


def _forward_backward(block: torch.nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        block.zero_grad()
        given = x.clone().requires_grad_()
        y = block(given)
        y.square().mean().backward()

    return run


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
