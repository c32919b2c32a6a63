"""A field in 2 and 3 uneven slabs, a process each (gloo): outputs, gradients, trainings of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from slab_cases import CORES, MODELS, SCANS
from spawning import found_by
from torch import nn

from nvsubq import NDBackbone, NDMixer
from nvsubq.cores import Attention, Mamba
from nvsubq.parallel import Slabs, sequence_parallel
from nvsubq.parallel.fields import slab_sizes

TOLERANCE = 1e-5  # of the largest value of an output or a gradient
WAYS = [f"{core}{ways}" for core in CORES for ways in ("", ", both ways")]
CASES = [*WAYS, *(f"scan {scan}" for scan in SCANS), *MODELS, "training"]
REFUSALS = {
    "columns": "`scan` (='column_major') leaves a slab and comes back to it",
    "batches": "the slabs of one field must have the same shape but for axis 1",
    "patches": "must be multiples of 2 (but for the last one)",
    "thin": "and have at least 2",
}


@pytest.fixture(scope="module", params=[2, 3])
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return found_by(request.param, tmp_path_factory.mktemp("slabs"), "cpu")


def test_every_case_is_there(processes: list[Any]) -> None:
    for process in processes:
        assert list(process["errors"]) == CASES
        assert all(len(errors) > 2 for errors in process["errors"].values())


@pytest.mark.parametrize("case", CASES)
def test_slabs_equal_the_whole(processes: list[Any], case: str) -> None:
    for rank, process in enumerate(processes):
        wrong = {what: error for what, error in process["errors"][case].items() if not error <= TOLERANCE}
        assert not wrong, f"process {rank}"


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_cut_is_refused_in_every_process(processes: list[Any], case: str) -> None:
    for process in processes:
        assert REFUSALS[case] in process["refusals"][case]


def backbone(core: Any, **options: Any) -> NDBackbone:
    return NDBackbone(1, 1, 2, depths=(1,), dims=(8,), mixer=lambda **late: NDMixer(core, **late), **options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: NDMixer(nn.Identity), r"NDMixer \(NDMixer\) has a core \(Identity\) that does not carry"),
        (lambda: NDMixer(Attention, d_model=8), "has a core .Attention. that does not carry its state on"),
        (lambda: NDMixer(lambda: Attention(8, causal=False)), "has a core that sees all cells at once"),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 3)),
            r"Sequential\.1 \(Conv1d\) may see more",
        ),
        (
            lambda: nn.Sequential(nn.BatchNorm2d(2)),
            r"Sequential\.0 \(BatchNorm2d\) may see more than one cell",
        ),
        (lambda: Mamba(8), r"Mamba \(Mamba\) is a core outside an NDMixer"),
        (lambda: backbone(Mamba, class_token=True, global_pool="token"), "has a class token"),
    ],
)
def test_models_that_cannot_be_cut_are_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sequence_parallel(model())


def test_slabs_need_processes() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        Slabs()
    with pytest.raises(RuntimeError, match="init_process_group"):
        sequence_parallel(backbone(Mamba))


@pytest.mark.parametrize(("planes", "count", "multiple"), [(7, 2, 1), (64, 3, 4), (30, 3, 4), (5, 5, 1)])
def test_slab_sizes_are_as_equal_as_can_be(planes: int, count: int, multiple: int) -> None:
    sizes = slab_sizes(planes, count, multiple)
    assert sum(sizes) == planes
    assert len(sizes) == count
    assert not any(size % multiple for size in sizes[:-1])
    assert max(sizes) - min(sizes) < 2 * multiple
    assert min(sizes) > 0


def test_too_many_slabs_are_refused() -> None:
    with pytest.raises(ValueError, match="a field of 7 planes"):
        slab_sizes(7, 3, 4)


def test_without_slabs_nothing_changes() -> None:
    """The whole model and its copy are the same, and hold no process group."""
    model = backbone(Mamba)
    assert all(module.slabs is None for module in model.modules() if hasattr(type(module), "slabs"))
    assert torch.isfinite(model(torch.randn(1, 1, 9))).all()
