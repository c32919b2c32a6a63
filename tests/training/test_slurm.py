"""`hydra/launcher=slurm`: what a job asks for, and a sweep on a cluster whose commands are small scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from nvsubq.cli.main import main
from nvsubq.cli.paths import config_dir

# `sbatch` lets a job run; `srun` in it starts its tasks, with what SLURM tells each of them.
SBATCH = """#!/bin/bash
cp "$1" {folder}/job.sh
tasks=$(sed -n 's/^#SBATCH --ntasks-per-node=//p' "$1")
export SLURM_JOB_ID=4242 SLURM_JOB_NAME=job SLURM_JOB_NUM_NODES=1 SLURM_NNODES=1 SLURM_NODEID=0
export SLURM_NTASKS=$tasks SLURM_NTASKS_PER_NODE=$tasks SLURM_NODELIST=127.0.0.1 SLURM_JOB_NODELIST=127.0.0.1
(timeout 100 bash "$1"; touch {folder}/ended) >{folder}/job.log 2>&1 &
echo "Submitted batch job 4242"
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do [ "$1" = --output ] || [ "$1" = --error ] && shift; shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
done
wait
"""
SACCT = """#!/bin/bash
[ -e {folder}/ended ] && state=COMPLETED || state=RUNNING
printf 'JobID|State|NodeList\\n4242|%s|127.0.0.1\\n' $state
"""


def test_a_job_follows_the_trainer() -> None:
    overrides = [
        "hydra/launcher=slurm",
        "trainer=ddp",
        "trainer.devices=4",
        "trainer.num_nodes=2",
        "name=wide",
    ]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        launcher = compose("train", overrides=overrides, return_hydra_config=True).hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node, launcher.name) == (
        2,
        4,
        4,
        "wide",
    )


def test_the_plugin_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        pass  # Hydra looks for plugins once, at first use
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "submitit_slurm.yaml")
    assert main(["train", "-m", "hydra/launcher=slurm", "seed=0,1"]) == 1
    assert capsys.readouterr().err == (
        "error: this launcher needs the package 'hydra-submitit-launcher': pip install 'nvsubq[slurm]'\n"
    )


def test_a_sweep_does_not_start_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    assert main(["train", "-m", *two, "data=digits", "seed=0,1"]) == 1
    assert "`trainer.devices` (=2): a job of a sweep is one process unless" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the cluster is made of shell scripts")
def test_a_sweep_of_two_processes(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        (cluster / name).write_text(script.replace("{folder}", str(cluster)))
        (cluster / name).chmod(0o755)
    command = [
        *(
            sys.executable,
            "-m",
            "nvsubq.cli.main",
            "train",
            "-m",
            "hydra/launcher=slurm",
            "core=choice(rglru)",
        ),
        *("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"),
        *("hydra.launcher.gpus_per_node=null", "hydra.launcher.partition=short", "name=swept", "data=digits"),
        *("epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "model.depths=[1]"),
        *("model.dims=[8]", "threads=1", "baselines=false", "report=false"),
    ]
    env = {k: v for k, v in os.environ.items() if k not in ("NVSUBQ_RUNS", "NVSUBQ_RUN", "MASTER_PORT")}
    env["PATH"] = f"{cluster}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120
    )
    logs = [path.read_text() for path in tmp_path.rglob("*_log.*")]
    assert done.returncode == 0, [done.stdout, done.stderr, (cluster / "job.log").read_text(), *logs]
    asked = (cluster / "job.sh").read_text()
    for line in ("--nodes=1", "--ntasks-per-node=2", "--partition=short", "--job-name=swept"):
        assert f"#SBATCH {line}\n" in asked
    (metrics,) = tmp_path.glob("runs/swept/sweep_*/core=rglru/metrics.json")
    assert json.loads(metrics.read_text())["processes"] == 2
    assert "test/accuracy" in done.stdout  # the table of the sweep
