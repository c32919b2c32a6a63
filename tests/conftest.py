"""Torch in a known state for each test, and two tiny finished runs for all tests that read a run folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

SMALL = ("model.dims=[8]", "model.depths=[1]", "model.patch_size=4", "threads=1")
# Turned and sheared axes: what comes back must be put back.
AFFINE = np.array([[0.0, 0.0, 3.0, -10.0], [-2.0, 0.0, 0.0, 5.0], [0.0, 1.5, 0.0, 7.0], [0, 0, 0, 1]])


@contextmanager
def _torch_settings() -> Iterator[None]:
    """A training sets these for the whole process."""
    threads, fill = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _plain_torch(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread, which small tensors are fastest with (figures take all); settings are put back."""
    with _torch_settings():
        if request.node.get_closest_marker("figure") is None:
            torch.set_num_threads(1)
        yield


def _train(*arguments: str) -> None:
    from nvsubq.cli.main import main

    with _torch_settings():
        assert main(["train", *SMALL, *arguments]) == 0


def _only_run(runs: Path, name: str) -> Path:
    (run,) = (path for path in (runs / name).iterdir() if not path.is_symlink())
    return run


@pytest.fixture(scope="session")
def finished_digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the digits: read only."""
    runs = tmp_path_factory.mktemp("digits") / "runs"
    _train("data=digits", "name=tiny", "epochs=2", "trainer.limit_train_batches=3", f"paths.runs={runs}")
    return _only_run(runs, "tiny")


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NiftiFolder of five volumes: a bright box, and a brighter one inside it, in noise."""
    import nibabel

    root = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    for i in range(5):
        label = np.zeros((10, 12, 14), dtype=np.uint8)
        label[2:8, 3:10, 2 + i % 3 : 11] = 1
        label[4:6, 5:8, 5:9] = 2
        image = (label + 0.2 * rng.standard_normal(label.shape)).astype(np.float32)
        for kind, data in (("images", image), ("labels", label)):
            nibabel.save(nibabel.Nifti1Image(data, AFFINE), root / kind / f"case {i}.nii.gz")
    return root


@pytest.fixture(scope="session")
def finished_volume_run(tmp_path_factory: pytest.TempPathFactory, volumes: Path) -> Path:
    """A run on `volumes`: read only."""
    runs = tmp_path_factory.mktemp("segmentation") / "runs"
    _train(
        "experiment=mni152",
        "data=nifti_folder",
        f"data.root={volumes}",
        "data.crop_size=8",
        "data.crops_per_epoch=4",
        "name=boxes",
        "epochs=1",
        f"paths.runs={runs}",
    )
    return _only_run(runs, "boxes")


@pytest.fixture
def digits_run(finished_digits_run: Path, tmp_path: Path) -> Path:
    """A copy of the run on the digits, to be changed."""
    return Path(shutil.copytree(finished_digits_run, tmp_path / "2026-01-02_03-04-05"))


@pytest.fixture
def volume_run(finished_volume_run: Path, tmp_path: Path) -> Path:
    """A copy of the run on volumes, to be changed."""
    return Path(shutil.copytree(finished_volume_run, tmp_path / "2026-01-02_03-04-06"))
