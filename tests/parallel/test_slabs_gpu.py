"""A field in two uneven slabs, each on a GPU of its own (nccl): outputs, gradients, trainings of one GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spawning import found_by
from test_slabs import CASES, REFUSALS, TOLERANCE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return found_by(2, tmp_path_factory.mktemp("slabs"), "cuda")


@pytest.mark.parametrize("case", CASES)
def test_slabs_on_two_gpus_equal_the_whole(processes: list[Any], case: str) -> None:
    for rank, process in enumerate(processes):
        wrong = {what: error for what, error in process["errors"][case].items() if not error <= TOLERANCE}
        assert not wrong, f"process {rank}"


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_cut_is_refused_on_both(processes: list[Any], case: str) -> None:
    for process in processes:
        assert REFUSALS[case] in process["refusals"][case]
