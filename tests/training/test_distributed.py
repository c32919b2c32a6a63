"""Several processes train and score as one does, whoever starts them, and go on where they were killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="gloo, process groups")]

COMMON = (
    "data=digits",  # 1257 items to train on: in the last step of an epoch one process has one more
    "core=rglru",
    "model.dims=[8]",
    "model.depths=[1]",
    "epochs=2",
    "trainer.precision=64-true",  # nothing but the order of sums may differ
    "trainer.enable_progress_bar=false",
    "threads=1",
    "baselines=false",
    "report=false",
    "name=run",
)
ONE = ("trainer=cpu", "data.batch_size=64")
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=32")
HERE = "127.0.0.1"


def start(folder: Path, *arguments: str, launcher: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("NVSUBQ_RUNS", "NVSUBQ_RUN")}
    program = (*launcher, "-m", "nvsubq.cli.main") if launcher else (sys.executable, "-m", "nvsubq.cli.main")
    return subprocess.Popen(
        [*program, "train", *COMMON, *arguments],
        cwd=folder,
        env=clean | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(*processes: subprocess.Popen[str]) -> str:
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return "\n".join(said)


def only_run(folder: Path) -> Path:
    (run,) = (path for path in (folder / "runs" / "run").iterdir() if not path.is_symlink())
    return run


def result(folder: Path) -> dict[str, Any]:
    run = only_run(folder)
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    figures = json.loads((run / "metrics.json").read_text())
    times = ("epoch_s", "cells_per_s")
    with np.load(run / "predictions.npz") as predictions:
        probabilities, indices = predictions["probabilities"], predictions["indices"]
    return {
        "weights": state["state_dict"],
        "metrics": {k: v for k, v in figures["metrics"].items() if k not in times},
        "figures": {k: figures[k] for k in ("steps", "epochs", "best_epoch", "processes")},
        "probabilities": probabilities,
        "indices": indices,
    }


def check_equal(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert one["weights"].keys() == other["weights"].keys()
    for name, weight in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], weight, rtol=tolerance, atol=tolerance, msg=name)
    assert one["metrics"] == pytest.approx(other["metrics"], rel=max(tolerance, 1e-6), abs=0)
    assert one["indices"].tolist() == other["indices"].tolist()
    np.testing.assert_allclose(other["probabilities"], one["probabilities"], rtol=max(tolerance, 1e-6))


def free_port() -> str:
    with socket.socket() as sock:
        sock.bind((HERE, 0))
        return str(sock.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`trainer.num_nodes`: a process on each of two machines, which here are the same one."""
    folder = tmp_path_factory.mktemp("two")
    nodes = ("trainer.devices=1", "trainer.num_nodes=2")
    where = {"MASTER_ADDR": HERE, "MASTER_PORT": free_port()}
    finish(*(start(folder, *TWO, *nodes, **where, NODE_RANK=str(node)) for node in (1, 0)))
    return result(folder)


def test_two_processes_equal_one(two: dict[str, Any], tmp_path: Path) -> None:
    """On the same global batch: weights, metrics, and what the test predicted."""
    finish(start(tmp_path, *ONE))
    one = result(tmp_path)
    assert one["figures"] == two["figures"] | {"processes": 1}
    assert (one["figures"]["steps"], two["figures"]["processes"]) == (2 * 20, 2)
    check_equal(one, two, 1e-9)


def test_killed_processes_go_on(two: dict[str, Any], tmp_path: Path) -> None:
    """Processes that Lightning starts are killed within an epoch; under `torchrun` the same command goes on,
    and ends with the weights of a training that was never stopped, but for the last bit."""
    often = ("checkpoint.every_steps=3",)
    process = start(tmp_path, *TWO, *often)
    for _ in range(600):
        if list(tmp_path.glob("runs/run/*/checkpoints/previous.ckpt")):
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    step = torch.load(next(tmp_path.glob("runs/run/*/checkpoints/last.ckpt")), weights_only=True)[
        "global_step"
    ]
    assert 0 < step < 40
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    launcher = (torchrun, "--nproc-per-node=2", f"--master-port={free_port()}")
    said = finish(start(tmp_path, *TWO, *often, launcher=launcher))
    assert f"going on with runs/run/{only_run(tmp_path).name} from last.ckpt" in said
    again = result(tmp_path)
    assert again["figures"] == two["figures"]
    check_equal(two, again, 1e-13)
