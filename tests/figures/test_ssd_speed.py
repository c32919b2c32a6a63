"""Figures of the native `ssd_scan` beside the portable one: speed in alternating runs, and peak memory.

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

from nvsubq.ops import backends, ssd_scan

pytestmark = [
    pytest.mark.figure,
    pytest.mark.skipif(
        not next(b for b in backends() if b.name == "native").active, reason="native is not active"
    ),
]

SIZES = [(64, 49, 2, 64, 128), (1, 4096, 6, 64, 128), (1, 4096, 6, 64, 16)]  # B, L, H, P, N
SPEEDUP = 2.0
MEMORY_LIMIT = 8.0  # times the bytes of `x`
REPEATS = 7

_PEAK = """
import sys
import torch
from nvsubq.ops import ssd_scan

torch.manual_seed(0)
B, L, H, P, N = map(int, sys.argv[2:])

def scan(L):
    x, z = (torch.randn(B, L, H, P, requires_grad=True) for _ in range(2))
    dt = torch.randn(B, L, H, requires_grad=True)
    b, c = (torch.randn(B, L, 1, N, requires_grad=True) for _ in range(2))
    A = (-torch.rand(H) - 0.1).requires_grad_()
    skip, bias = (torch.randn(H, requires_grad=True) for _ in range(2))
    cotangent = torch.ones(B, L, H, P)
    before = peak()
    y = ssd_scan(x, dt, A, b, c, skip, z, dt_bias=bias, dt_softplus=True, backend=sys.argv[1])
    y.backward(cotangent)
    return peak() - before

def peak():
    # Not getrusage: its maximum is handed on by the process that started this one.
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024

scan(3)  # libraries load at the first call; they are no part of the op
print(scan(L) / (B * L * H * P * 4))
"""


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_speed_beside_the_portable_backend(size: tuple[int, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    scan, step = _calls(size)
    print(f"\nssd_scan (B, L, H, P, N) = {size}, fp32, threads {threads}, times as fast as portable:")
    for name, run in (("forward", scan), ("forward+backward", step)):
        pairs = [(_seconds(run, "native", 3), _seconds(run, "torch", 1)) for _ in range(REPEATS + 1)][1:]
        native, portable = (min(times) for times in zip(*pairs, strict=True))
        ratios = [b / a for a, b in pairs]
        states = torch.Size(size).numel()
        print(
            f"{name}: native {1e3 * native:.2f} ms ({1e9 * native * threads / states:.3f} ns of a core per "
            f"state), portable {1e3 * portable:.2f} ms"
        )
        ratio = statistics.median(ratios)
        print(f"required >= {SPEEDUP:.1f}, measured {ratio:.1f} (least {min(ratios):.1f})")
        assert ratio >= SPEEDUP


@pytest.mark.parametrize("size", SIZES[1:], ids=str)
def test_peak_memory(size: tuple[int, ...]) -> None:
    """What a forward and backward takes beyond its inputs; y and the gradients are part of it."""
    measured = {}
    for backend in ("native", "torch"):
        command = [sys.executable, "-c", _PEAK, backend, *map(str, size)]
        measured[backend] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"\nssd_scan {size}, forward+backward, peak memory beyond the inputs in sizes of x:")
    print(
        f"required < {MEMORY_LIMIT:.0f}, measured {measured['native']:.1f}, portable {measured['torch']:.1f}"
    )
    assert 1 < measured["native"] < MEMORY_LIMIT  # the output alone takes 1


def _calls(size: tuple[int, ...]) -> tuple[Callable[[str], object], Callable[[str], object]]:
    """A forward without grad, and a forward with its backward, by backend."""
    batch, length, heads, width, states = size
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    x, z = (normal(batch, length, heads, width) for _ in range(2))
    b, c = (normal(batch, length, 1, states) for _ in range(2))
    A = (-torch.rand(heads, generator=generator) - 0.1).requires_grad_()
    dt, skip, bias = normal(batch, length, heads), normal(heads), normal(heads)
    leaves = (x, dt, A, b, c, skip, z, bias)
    cotangent = torch.ones(batch, length, heads, width)

    def scan(backend: str) -> torch.Tensor:
        y = ssd_scan(x, dt, A, b, c, skip, z, dt_bias=bias, dt_softplus=True, backend=backend)
        assert isinstance(y, torch.Tensor)
        return y

    return torch.no_grad()(scan), lambda backend: torch.autograd.grad(scan(backend), leaves, cotangent)


def _seconds(run: Callable[[str], object], backend: str, repeats: int) -> float:
    """Per run; the time of the process where it has one thread, which a busy neighbour disturbs less."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repeats):
        run(backend)
    return (clock() - start) / repeats
