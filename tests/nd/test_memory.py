"""Peak memory of a walk by torch's allocator: an order costs our cores no copy, a foreign one a single."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from nd_helpers import ForeignGRU
from torch.profiler import ProfilerActivity, profile

from nvsubq import NDMixer, use_backend
from nvsubq.cores import RGLRU, S5, Mamba, Mamba2

WIDTH, SPATIAL = 32, (32, 32)
OURS = {
    "mamba": partial(Mamba, d_state=4),
    "mamba2": partial(Mamba2, d_state=8, headdim=8),
    "s5": partial(S5, d_state=8),
    "rglru": RGLRU,
}


def peak(mixer: NDMixer, backward: bool) -> float:
    """The most bytes held at once in a call, in sizes of the field."""
    x = torch.randn(1, *SPATIAL, WIDTH, requires_grad=backward)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            y = mixer(x)
        if backward:
            y.sum().backward()

    run()  # tables, gradients
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / x.nbytes


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("core", OURS.values(), ids=OURS)
def test_an_order_costs_our_cores_no_copy(core: Any, backward: bool) -> None:
    with use_backend("native"):
        base, ordered = (
            peak(NDMixer(core, d_model=WIDTH, scan=scan), backward) for scan in ("row_major", "random")
        )
    assert base > 2
    assert ordered <= base * 1.01


def test_a_foreign_core_is_given_one_copy() -> None:
    class Linear(ForeignGRU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2.0

    base, ordered = (
        peak(NDMixer(partial(Linear, WIDTH), scan=scan), False) for scan in ("row_major", "random")
    )
    assert ordered - base == pytest.approx(1, abs=0.1)
