"""Trainings on two GPUs, each with half of every batch: those of one GPU with all of it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nvsubq.training.load import read_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

SETTINGS = (
    "data=digits", "data.augment=false", "model.dims=[16]", "model.depths=[2]", "model.patch_size=2",
    "epochs=2", "task.schedule=constant", "baselines=false", "trainer=gpu", "trainer.precision=32-true",
    "trainer.limit_train_batches=4", "trainer.enable_progress_bar=false", "checkpoint.every_s=null",
)  # fmt: skip
STEPS, RATE = 8, 2e-3


def trained(runs: Path, name: str, *arguments: str) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of a training's epochs and its last weights."""
    command = [sys.executable, "-m", "nvsubq.cli.main", "train", *SETTINGS, *arguments]
    done = subprocess.run(
        [*command, f"name={name}", f"paths.runs={runs}"],
        capture_output=True, text=True, check=False, timeout=200, env={**os.environ, "NVSUBQ_TRACEBACK": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    folder = runs / name / "latest"
    assert (folder / "report.html").is_file()
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    return losses, read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, Tensor]]:
    return trained(tmp_path_factory.mktemp("one"), "one", "data.batch_size=64")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_train_as_one(
    strategy: str, one: tuple[list[float], dict[str, Tensor]], tmp_path: Path
) -> None:
    halves = "data.batch_size=32", "trainer.devices=2", f"trainer.strategy={strategy}"
    losses, weights = trained(tmp_path, strategy, *halves)
    assert losses == pytest.approx(one[0], rel=1e-5)
    assert weights.keys() == one[1].keys()
    for name, weight in weights.items():
        assert weight.shape == one[1][name].shape
        # Adam's first steps are of the size of the rate whatever the gradient's: a gradient of nearly 0 goes
        # either way, all others the same.
        apart = (weight.cpu() - one[1][name].cpu()).abs()
        assert float(apart.max()) <= 2 * STEPS * RATE, name
        assert float(apart.mean()) <= 1e-2 * STEPS * RATE, name
