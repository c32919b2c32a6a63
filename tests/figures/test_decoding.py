"""Figures of decoding: a step of one token beside its matrix products alone, and beside the portable step.

Run with `scripts/test.sh -m figure -s`; required and measured are printed side by side.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvsubq.cores import RGLRU, S5, Mamba, Mamba2
from nvsubq.cores.base import LTV_LRNN
from nvsubq.ops import backends, use_backend

pytestmark = [
    pytest.mark.figure,
    pytest.mark.skipif(
        not next(b for b in backends() if b.name == "native").active, reason="native is not active"
    ),
]

WIDTH = 768
LIMIT = 1.35  # times the matrix products, for Mamba
CORES: dict[str, Callable[[], LTV_LRNN]] = {
    "Mamba": lambda: Mamba(WIDTH),
    "Mamba2": lambda: Mamba2(WIDTH),
    "RGLRU": lambda: RGLRU(WIDTH),
    "S5, d_state 64": lambda: S5(WIDTH, 64),
    "S5, d_state 256": lambda: S5(WIDTH, 256),
}


def products(core: Any) -> list[tuple[Tensor, Tensor]]:
    """Inputs and weights of a step's matrix products; those of S5 are real matrices of its complex ones."""
    if isinstance(core, S5):
        b = core.B.transpose(1, 2).reshape(2 * core.d_state, WIDTH)
        weights = [b.contiguous(), core.C.flatten(1)]
    else:
        weights = [part.weight for part in core.modules() if isinstance(part, nn.Linear)]
    return [(torch.randn(1, weight.shape[1]), weight) for weight in weights]


def median_seconds(*calls: Callable[[], object], rounds: int) -> list[float]:
    """Of each call, all of them in turn."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, seconds, strict=True):
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
    return [statistics.median(found[rounds // 10 :]) for found in seconds]


@pytest.mark.parametrize("name", CORES)
def test_a_step_is_hardly_more_than_its_matrix_products(name: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    core = CORES[name]()
    cell = torch.randn(1, 1, WIDTH)
    with torch.no_grad():
        cache, portable_cache = (core.allocate_inference_cache(1, 1) for _ in range(2))
        pairs = products(core)

        def step() -> None:
            core.step(cell, cache)

        def multiply() -> None:
            for x, weight in pairs:
                F.linear(x, weight)

        def portable() -> None:
            with use_backend("torch"):
                core.step(cell, portable_cache)

        native, alone = median_seconds(step, multiply, rounds=1000)
        beside, composed = median_seconds(step, portable, rounds=200)
    print(f"\n{name}: a step of one token, d_model {WIDTH}, one thread, fp32: {1e6 * native:.0f} us,")
    print(f"{1 / native:.0f} tokens/s ({composed / beside:.1f} times the portable step's speed);")
    required = f"required < {LIMIT}, " if name == "Mamba" else ""
    print(f"over its matrix products alone ({1e6 * alone:.0f} us): {required}measured {native / alone:.2f}")
    if name == "Mamba":
        assert native < LIMIT * alone
