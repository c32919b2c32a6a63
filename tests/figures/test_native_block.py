"""Figures of the native CPU kernels at work in a Mamba block and in an NDMixer, on two cores.

Run with `scripts/test.sh -m figure -s tests/figures/test_native_block.py`; ratios are medians of alternating
runs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvsubq.cores import Mamba
from nvsubq.nd import NDMixer
from nvsubq.ops import backends, selective_scan

pytestmark = [
    pytest.mark.figure,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not next(b for b in backends() if b.name == "native").active, reason="no native"),
]


def show(what: str, required: str, measured: str) -> None:
    print(f"\n{what:<78} required {required:<14} measured {measured}")


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratio(slow: Callable[[], object], fast: Callable[[], object], repeats: int) -> tuple[float, str]:
    """The median of slow over fast, alternating, and a line with the medians of both."""
    pairs = [(seconds(slow), seconds(fast)) for _ in range(repeats + 1)][1:]
    ratios = [a / b for a, b in pairs]
    a, b = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
    return statistics.median(ratios), f"({a:.1f} ms over {b:.1f} ms, {min(ratios):.2f} to {max(ratios):.2f})"


def forward(module: nn.Module, x: Tensor, **options: object) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            module(x, **options)

    return run


def both(module: nn.Module, x: Tensor, **options: object) -> Callable[[], None]:
    def run() -> None:
        module.zero_grad()
        module(x.clone().requires_grad_(), **options).sum().backward()

    return run


def mambapy_block(width: int) -> nn.Module:
    from mambapy import mamba

    return mamba.MambaBlock(mamba.MambaConfig(d_model=width, n_layers=1))


@pytest.mark.parametrize("run", [forward, both], ids=["forward", "forward+backward"])
def test_mamba_block_beside_mambapy(run: Callable[..., Callable[[], None]]) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4096, 192)
    times, line = ratio(run(mambapy_block(192), x), run(Mamba(192), x), 9)
    show(
        f"Mamba block (1, 4096, 192), {run.__name__}, times as fast as mambapy",
        ">= 10",
        f"{times:.1f} {line}",
    )
    assert times >= 10


def test_mamba_block_beside_lite_mamba() -> None:
    import lite_mamba

    torch.manual_seed(0)
    x = torch.randn(1, 1024, 192)
    times, line = ratio(both(lite_mamba.Mamba(192), x), both(Mamba(192), x), 3)
    show("Mamba block (1, 1024, 192), both, times as fast as lite-mamba", ">= 100", f"{times:.0f} {line}")
    assert times >= 100


def products(block: Mamba, x: Tensor) -> Callable[[], None]:
    """The block's matrix products alone, forward."""
    inner = torch.randn(*x.shape[:2], block.d_inner)
    low = torch.randn(*x.shape[:2], block.dt_rank)

    def run() -> None:
        with torch.no_grad():
            block.in_proj(x)
            block.x_proj(inner)
            F.linear(low, block.dt_proj.weight)
            block.out_proj(inner)

    return run


def test_share_of_the_block_that_is_not_matrix_products() -> None:
    block, x = Mamba(192), torch.randn(1, 4096, 192)
    times, line = ratio(products(block, x), forward(block, x), 25)
    show("share of the block's forward that is no matrix product", "< 0.50", f"{1 - times:.2f} {line}")
    assert 1 - times < 0.5


@pytest.mark.parametrize("run", [forward, both], ids=["forward", "forward+backward"])
def test_both_directions_over_one(run: Callable[..., Callable[[], None]]) -> None:
    x = torch.randn(1, 64, 64, 192)
    two, one = (NDMixer(Mamba, d_model=192, bidirectional=b) for b in (True, False))
    times, line = ratio(run(two, x), run(one, x), 15)
    show(f"bidirectional NDMixer over one direction, {run.__name__}", "<= 2.15", f"{times:.2f} {line}")
    assert times <= 2.15


@pytest.mark.parametrize("run", [forward, both], ids=["forward", "forward+backward"])
def test_a_random_order_over_row_major(run: Callable[..., Callable[[], None]]) -> None:
    block, x, order = Mamba(192), torch.randn(1, 4096, 192), torch.randperm(4096)
    times, line = ratio(run(block, x, order=order), run(block, x), 15)
    show(f"a random order over row-major, Mamba block, {run.__name__}", "<= 1.15", f"{times:.2f} {line}")
    assert times <= 1.15


_PEAK = """
import sys, torch
from nvsubq.cores import Mamba
torch.manual_seed(0)
block = Mamba(192)
def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
def run(length):
    x = torch.randn(1, length, 192, requires_grad=True)
    held = peak()
    block(x).sum().backward()
    return peak() - held
run(64)
print(run(65536) / (65536 * block.d_inner * 4))
"""


def test_peak_memory_of_the_block() -> None:
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    measured = float(done.stdout)
    show(
        "peak memory of forward+backward at (1, 65536, 192), in sizes of the scan's u",
        "< 15",
        f"{measured:.1f}",
    )
    assert 1 < measured < 15


def test_growth_of_the_block_with_length() -> None:
    """Time per cell at 65536 over that at 4096, beside that of its matrix products and of its gate."""
    block = Mamba(192)
    short, long = torch.randn(1, 4096, 192), torch.randn(1, 65536, 192)
    grown, line = ratio(forward(block, long), forward(block, short), 7)
    matrix, matrix_line = ratio(products(block, long), products(block, short), 7)
    sizes = (65536, 4096)
    gates = [partial(F.silu, torch.randn(1, length, block.d_inner)) for length in sizes]
    gate, gate_line = ratio(gates[0], gates[1], 7)

    def shared(module: Callable[[], object], other: Callable[[], object]) -> Callable[[], object]:
        return lambda: (module(), other())

    both_long, both_short = shared(products(block, long), gates[0]), shared(products(block, short), gates[1])
    together, together_line = ratio(both_long, both_short, 7)
    show("time per cell at 65536 over 4096: the block", "<= products and gate", f"{grown / 16:.2f} {line}")
    show("    its matrix products and its gate", "", f"{together / 16:.2f} {together_line}")
    show("    its matrix products alone", "", f"{matrix / 16:.2f} {matrix_line}")
    show("    its gate alone", "", f"{gate / 16:.2f} {gate_line}")
    assert grown <= together * 1.05  # medians of a noisy machine


def every_option(grad: bool) -> tuple[dict[str, Tensor], dict[str, object]]:
    B, L, D, N = 1, 4, 8, 4
    tensors = {
        "u": torch.randn(B, L, D),
        "delta": torch.randn(B, L, D),
        "A": -torch.rand(D, N),
        "B": torch.randn(B, L, N),
        "C": torch.randn(B, L, N),
        "D": torch.randn(D),
        "z": torch.randn(B, L, D),
        "delta_bias": torch.randn(D),
        "delta_a": torch.rand(D),
        "timesteps": torch.rand(B, L),
        "decay_gate": torch.rand(B, L, N),
        "initial_state": torch.randn(B, D, N),
    }
    options = {
        "delta_softplus": True,
        "discretization": "zoh",
        "return_final_state": True,
        "order": torch.randperm(L),
        "seq_idx": torch.zeros(B, L, dtype=torch.int32),
        "reverse": True,
    }
    return {name: t.requires_grad_(grad) for name, t in tensors.items()}, options


def test_host_time_of_a_call_with_every_option() -> None:
    torch.set_num_threads(1)

    def microseconds(run: Callable[[], object]) -> float:
        for _ in range(100):
            run()
        return statistics.median(seconds(lambda: [run() for _ in range(100)]) * 1e4 for _ in range(21))

    tensors, options = every_option(False)
    plain = microseconds(lambda: selective_scan(**tensors, **options))
    tensors, options = every_option(True)
    recorded = microseconds(lambda: selective_scan(**tensors, **options))
    leaves = list(tensors.values())
    ones = torch.ones(1, 4, 8)

    def forward_backward() -> None:
        y, _ = selective_scan(**tensors, **options)
        torch.autograd.grad(y, leaves, ones)

    trained = microseconds(forward_backward)
    measured = f"{plain:.1f} / {recorded:.1f} / {trained:.1f}"
    show("host time without grad / with grad / forward+backward, microseconds", "20 / 35 / 130", measured)
    assert plain <= 20
    assert recorded <= 35
    assert trained <= 130
