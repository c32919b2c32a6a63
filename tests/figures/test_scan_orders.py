"""Figures of scan orders and modes on a CPU, on two cores: time and peak memory beside those of row-major.

Run with `scripts/test.sh -m figure -s tests/figures/test_scan_orders.py`; ratios are medians of alternating
runs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nvsubq.cores import Mamba
from nvsubq.nd import NDMixer
from nvsubq.ops import backends

pytestmark = [
    pytest.mark.figure,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not next(b for b in backends() if b.name == "native").active, reason="no native"),
]
WIDTH = 192
ORDERS = ["column_major", "snake", "window(8)", "hilbert", "morton", "random(0)"]
SHAPES = {"2-D 64x64": (64, 64), "3-D 16^3": (16, 16, 16)}
FOUR = {"split_channels": ["row_major", "column_major"]}


def show(what: str, required: str, measured: str) -> None:
    print(f"\n{what:<78} required {required:<8} measured {measured}")


def step(mixer: NDMixer, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        mixer.zero_grad()
        mixer(x.clone().requires_grad_()).sum().backward()

    return run


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratios(run: dict[str, Callable[[], None]], base: str, repeats: int) -> dict[str, tuple[float, str]]:
    """For each run the median of its time over that of `base`, all taken in turn."""
    rounds = [{name: seconds(call) for name, call in run.items()} for _ in range(repeats + 1)][1:]
    found = {}
    for name in run.keys() - {base}:
        pairs = [times[name] / times[base] for times in rounds]
        own, other = (statistics.median(times[key] for times in rounds) * 1e3 for key in (name, base))
        found[name] = (
            statistics.median(pairs),
            f"({own:.1f} ms over {other:.1f} ms, {min(pairs):.2f} to {max(pairs):.2f})",
        )
    return found


def build(scan: Any, **options: Any) -> NDMixer:
    torch.manual_seed(0)
    return NDMixer(Mamba, d_model=WIDTH, scan=scan, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_time_of_every_order(shape: str) -> None:
    x = torch.randn(1, *SHAPES[shape], WIDTH)
    runs = {order: step(build(order), x) for order in ["row_major", *ORDERS]}
    found = ratios(runs, "row_major", 15)
    for order in ORDERS:
        show(
            f"{order} over row-major, {shape}, forward+backward", "<= 1.15", "{:.2f} {}".format(*found[order])
        )
    assert max(times for times, _ in found.values()) <= 1.15


@pytest.mark.parametrize("threads", [1, 2])
def test_time_of_four_directions_that_split_the_channels(threads: int) -> None:
    torch.set_num_threads(threads)
    x = torch.randn(1, 64, 64, WIDTH)
    runs = {"split": step(build(FOUR, bidirectional=True), x), "one": step(build("row_major"), x)}
    times, line = ratios(runs, "one", 25)["split"]
    what = f"split_channels, four directions over one, 64x64, forward+backward, {threads} threads"
    show(what, "<= 1.3", f"{times:.2f} {line}")
    assert times <= 1.3


_PEAK = """
import sys, torch
from nvsubq.cores import Mamba
from nvsubq.nd import NDMixer
scan = sys.argv[1]
torch.manual_seed(0)
mixer = NDMixer(Mamba, d_model=192, scan=scan)
def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1])
def run(*shape):
    x = torch.randn(1, *shape, 192, requires_grad=True)
    mixer(x).sum().backward()
run(8, 8)
held = peak()
run(128, 128)
print(peak() - held)
"""


def peak_of(order: str) -> float:
    done = [
        int(
            subprocess.run(
                [sys.executable, "-c", _PEAK, order], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(3)
    ]
    return statistics.median(done)


def test_peak_memory_of_every_order() -> None:
    base = peak_of("row_major")
    grown = {order: peak_of(order) / base for order in ORDERS}
    for order, times in grown.items():
        show(f"peak memory, {order} over row-major, 128x128, forward+backward", "<= 1.05", f"{times:.3f}")
    assert max(grown.values()) <= 1.05
