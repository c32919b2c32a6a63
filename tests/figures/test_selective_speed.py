"""Figures of the C kernels of `selective_scan` and `causal_conv1d`, one thread, on buffers allocated before.

Run with `scripts/test.sh -m figure -s tests/figures/test_selective_speed.py`. Times are those of the thread,
ratios medians of alternating runs; a neighbour on the same core still slows a run by up to a half.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nvsubq.ops import backends
from nvsubq.ops.native import conv, library, selective
from nvsubq.ops.native.walking import tables_of

pytestmark = [
    pytest.mark.figure,
    pytest.mark.skipif(not next(b for b in backends() if b.name == "native").active, reason="no native"),
]

WIDTH, STATES, TAPS, LENGTH, LONG = 384, 16, 4, 4096, 65536
ORDER_RATIO, LENGTH_RATIO, MEMORY = 1.15, 1.15, 15.0
AIMS = {"avx512": (1.0, 3.5), "avx2": (1.2, 5.0)}  # cycles per state: forward, recompute and backward
LEVELS = [name for name in AIMS if library.has_level(library.LEVELS[name])]

Passes = tuple[Callable[[], None], Callable[[], None]]


def show(what: str, required: str, measured: str) -> None:
    print(f"\n{what:<78} required {required:<14} measured {measured}")


def passes(
    name: str, layout: library.Layout, scalars: dict[str, int], tensors: dict[str, Tensor], level: str
) -> Passes:
    """Forward and backward of an op through its C functions; all memory is made, and touched, here."""
    loaded, packer = library.library(), layout.packer()
    scalars = scalars | {
        "batch": 1,
        "width": WIDTH,
        "blocks": 1,
        "threads": 1,
        "level": library.LEVELS[level],
    }
    one_group = {n: (lambda s: (*s[:2], 0, s[2])) for n in ("B", "C", "d_B", "d_C")}
    fields = [
        value for n in layout.tensors for value in library.describe(tensors.get(n), one_group.get(n))
    ]  # fmt: skip
    numbers = [scalars.get(n, 0) for n in layout.scalars]
    buffer = ctypes.create_string_buffer(packer.size)

    def pack(*memory: int) -> None:
        packer.pack_into(buffer, 0, packer.size, library.ABI, *numbers, *memory, *fields)

    pack(0, 0, 0, 0, 0)
    work, saved = (
        torch.zeros(getattr(loaded, f"nvsubq_{name}_{which}")(buffer), dtype=torch.uint8)
        for which in ("workspace", "saved")
    )
    pack(work.data_ptr(), work.numel(), 0, saved.data_ptr(), saved.numel())

    def run(direction: str, kept: tuple[object, ...] = (work, saved, tensors)) -> None:
        assert kept
        assert getattr(loaded, f"nvsubq_{name}_{direction}")(buffer) == 0, loaded.nvsubq_last_error()

    run("forward")
    run("backward")
    return lambda: run("forward"), lambda: run("backward")


def scan(length: int, level: str, order: Tensor | None = None) -> Passes:
    torch.manual_seed(0)
    cells = (1, length, WIDTH)
    inputs = {
        "u": torch.randn(cells),
        "delta": torch.randn(cells) - 3,
        "A": -15 * torch.rand(WIDTH, STATES) - 1,
        "B": torch.randn(1, length, STATES),
        "C": torch.randn(1, length, STATES),
        "D": torch.randn(WIDTH),
        "z": torch.randn(cells),
        "delta_bias": torch.randn(WIDTH),
    }
    outputs = {
        "y": torch.zeros(cells),
        "final_state": torch.zeros(1, WIDTH, STATES),
        "d_y": torch.randn(cells),
    }
    grads = {f"d_{n}": torch.zeros_like(t) for n, t in inputs.items()}
    tables = tables_of(length, order, False, None, torch.device("cpu")).named
    scalars = {"length": length, "states": STATES, "groups": 1, "flags": library.SOFTPLUS}
    tensors = {**inputs, **outputs, **grads, **tables}
    return passes("selective_scan", selective.LAYOUT, scalars, tensors, level)


def convolution(length: int, level: str, order: Tensor | None = None) -> Passes:
    torch.manual_seed(0)
    cells = (1, length, WIDTH)
    inputs = {"x": torch.randn(cells), "weight": torch.randn(WIDTH, TAPS), "bias": torch.randn(WIDTH)}
    grads = {f"d_{n}": torch.zeros_like(t) for n, t in inputs.items()}
    outputs = {"y": torch.zeros(cells), "d_y": torch.randn(cells)}
    tables = tables_of(length, order, False, None, torch.device("cpu")).named
    scalars = {"length": length, "taps": TAPS, "dilation": 1, "state_width": TAPS - 1, "flags": library.SILU}
    return passes("conv1d", conv.LAYOUT, scalars, {**inputs, **outputs, **grads, **tables}, level)


def seconds(run: Callable[[], None], times: int = 1) -> float:
    start = time.thread_time()
    for _ in range(times):
        run()
    return (time.thread_time() - start) / times


@pytest.fixture(scope="module")
def count_additions(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], None]:
    """16 million additions that wait for each other, one a cycle: the clock."""
    folder: Path = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(
        "void additions(void) { long x = 1; for (long i = 0; i < 2000000; ++i)"
        f' __asm__ volatile("{"add $1, %0;" * 8}" : "+r"(x)); }}'
    )
    built = folder / "clock.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", built, folder / "clock.c"], check=True)
    return ctypes.CDLL(str(built)).additions


@pytest.mark.parametrize("level", LEVELS)
def test_cycles_per_state(level: str, count_additions: Callable[[], None]) -> None:
    """Aims, so nothing fails here but a kernel that is far from them."""
    runs = scan(LENGTH, level)
    found: list[list[float]] = [[], []]
    for _ in range(20):
        clock = 16e6 / seconds(count_additions)
        for cycles, run in zip(found, runs, strict=True):
            cycles.append(seconds(run) * clock / (LENGTH * WIDTH * STATES))
    for what, aim, cycles in zip(("forward", "recompute and backward"), AIMS[level], found, strict=True):
        least, median = min(cycles), statistics.median(cycles)
        show(f"{level}, {what}, cycles per state", f"aim {aim}", f"{median:.2f} (least {least:.2f})")
        assert least < 2 * aim


@pytest.mark.parametrize("make", [scan, convolution])
@pytest.mark.parametrize("level", LEVELS)
def test_a_random_order_costs_what_row_major_does(level: str, make: Callable[..., Passes]) -> None:
    plain = make(LENGTH, level)
    walked = make(LENGTH, level, torch.randperm(LENGTH, generator=torch.Generator().manual_seed(1)))
    ratios = [sum(map(seconds, walked)) / sum(map(seconds, plain)) for _ in range(40)]
    measured = statistics.median(ratios)
    show(f"{level}, {make.__name__}, random order over row-major", f"<= {ORDER_RATIO}", f"{measured:.3f}")
    assert measured <= ORDER_RATIO


@pytest.mark.parametrize("level", LEVELS)
def test_time_per_cell_does_not_grow_with_the_length(level: str) -> None:
    short, long = scan(LENGTH, level), scan(LONG, level)
    for what, few, many in zip(("forward", "backward"), short, long, strict=True):
        ratios = [seconds(many) * LENGTH / (seconds(few, LONG // LENGTH) * LONG) for _ in range(9)]
        measured = statistics.median(ratios)
        line = f"{level}, scan {what}, time per cell at {LONG} over {LENGTH}"
        show(line, f"<= {LENGTH_RATIO}", f"{measured:.3f}")
        assert measured <= LENGTH_RATIO


@pytest.mark.parametrize("level", LEVELS)
def test_a_long_convolution_beside_a_copy(level: str) -> None:
    """Nothing but memory bounds a long convolution: it reads and writes what a copy does, and no faster."""
    runs = convolution(LONG, level)
    source = torch.randn(1, LONG, WIDTH)
    target = torch.zeros_like(source)
    for what, tensors, run in zip(("forward", "backward"), (2, 3), runs, strict=True):
        found: tuple[list[float], list[float]] = ([], [])
        for _ in range(9):
            found[0].append(seconds(run))
            found[1].append(seconds(lambda: target.copy_(source)) * tensors / 2)
        ours, copy = map(statistics.median, found)
        size = tensors * source.numel() * source.element_size()
        speed = f"{size / ours / 1e9:.1f} GB/s, a copy {size / copy / 1e9:.1f} GB/s"
        show(
            f"{level}, convolution {what} of {LONG} cells, over a copy's time",
            "< 8",
            f"{ours / copy:.2f} ({speed})",
        )
        assert ours < 8 * copy


_PEAK = """
import torch
from nvsubq.ops import selective_scan

torch.manual_seed(0)
D, N = 384, 16
def make(L):
    cells = [torch.randn(1, L, D, requires_grad=True) for _ in range(3)]
    by_state = [torch.randn(1, L, N, requires_grad=True) for _ in range(2)]
    by_channel = [torch.randn(D, requires_grad=True) for _ in range(2)]
    return cells, by_state, by_channel, (-torch.rand(D, N) - 0.1).requires_grad_()

def scan(given):
    (u, delta, z), (b, c), (skip, bias), A = given
    y = selective_scan(u, delta, A, b, c, skip, z, delta_bias=bias, delta_softplus=True, backend="native")
    y.backward(torch.ones_like(y))

def memory(field):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) * 1024

scan(make(64))  # libraries load at the first call; they are no part of the op
given = make(65536)
before = memory("VmRSS:")
scan(given)
print((memory("VmHWM:") - before) / (65536 * D * 4))
"""


def test_peak_memory() -> None:
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    measured = float(done.stdout)
    show(
        "selective_scan (1, 65536, 384), forward+backward, peak in sizes of u",
        f"< {MEMORY}",
        f"{measured:.1f}",
    )
    assert 1 < measured < MEMORY  # the output alone takes 1
