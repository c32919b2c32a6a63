"""`nvsubq train -m`: all jobs are checked before the first runs, and a table ends a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nvsubq.cli import job_name
from nvsubq.cli.sweep import params_of


def test_sweep(train, here, capsys):
    assert train("-m", "core=mamba,s5", "seed=0,1", "trainer.fast_dev_run=true") == 0
    sweeps = [p for p in (here / "runs" / "mnist").iterdir() if p.name.startswith("sweep_")]
    assert len(sweeps) == 1
    runs = sorted(p.name for p in sweeps[0].iterdir() if p.is_dir())
    assert runs == ["core=mamba,seed=0", "core=mamba,seed=1", "core=s5,seed=0", "core=s5,seed=1"]
    table = capsys.readouterr().out.splitlines()[-6:]
    assert "core" in table[1]
    assert "mamba" in table[3]
    assert "±" in table[3]
    assert "s5" in table[4]


def test_sweep_goes_on_after_a_failed_job(train, here, capsys):
    assert train("-m", "task.lr=-1,1e-3", "trainer.fast_dev_run=true") == 1
    error = capsys.readouterr().err
    assert "error (job #0): `lr` (=-1) must be a number above 0.0." in error
    assert "1 of 2 jobs failed: #0" in error
    assert len(list((here / "runs").rglob("metrics.json"))) >= 1


def test_sweep_with_a_bad_job_does_not_begin(train, here, capsys):
    assert train("-m", "+task.lrr=1,2") == 1
    error = capsys.readouterr().err
    assert "no argument 'lrr'. Did you mean 'lr'?" in error
    assert "in the job" in error
    assert list(here.iterdir()) == []


def sweeping_config(here: Path, **params: object) -> tuple[str, ...]:
    """A saved config that says itself what to sweep over; the arguments that name it."""
    experiment = here / "mine" / "experiment"
    experiment.mkdir(parents=True)
    node = {"defaults": ["mnist"], "hydra": {"sweeper": {"params": params}}}
    (experiment / "mine.yaml").write_text("# @package _global_\n" + OmegaConf.to_yaml(OmegaConf.create(node)))
    return "-m", "--config-dir", "mine", "experiment=mine"


def test_sweep_of_a_config_with_a_bad_job_does_not_begin(train, here, capsys):
    arguments = sweeping_config(here, **{"model.mixer.scan": "snake,hilbert", "epochs": "1,-5"})
    assert train(*arguments, small=False) == 1
    error = capsys.readouterr().err
    assert "`trainer.max_epochs` (=-5)" in error
    assert "in the job model.mixer.scan=snake epochs=-5" in error
    assert [p.name for p in here.iterdir()] == ["mine"]


def test_command_line_wins_over_what_a_config_sweeps_over(train, here, capsys):
    arguments = sweeping_config(here, seed="0,-1", **{"+task.lrr": "1,2"})
    assert train(*arguments, "seed=0", small=False) == 1
    error = capsys.readouterr().err
    assert "no argument 'lrr'. Did you mean 'lr'?" in error
    assert "in the job seed=0 +task.lrr=1 experiment=mine" in error


def test_params_of_another_sweeper_are_its_own():
    own = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": {"seed": "0,1"}}
    assert params_of(OmegaConf.create(own)) == ["seed=0,1"]
    assert params_of(OmegaConf.create({**own, "params": None})) == []
    assert params_of(OmegaConf.create({"_target_": "other.Sweeper", "params": {"x": {"type": "int"}}})) == []


def test_sweep_with_a_key_that_one_core_lacks(train, here, capsys):
    assert train("-m", "core=mamba,rglru", "core.d_state=4") == 1
    error = capsys.readouterr().err
    assert "no key 'd_state' in 'core' (override core.d_state=4). It belongs to core=" in error
    keys = error.partition("Keys there: ")[2]
    assert "d_conv" in keys  # those of rglru
    assert "d_state" not in keys
    assert list(here.iterdir()) == []


def named(*overrides: str, **params: str) -> str:
    """What the names of a sweep's jobs leave out."""
    hydra = {"overrides": {"task": list(overrides), "hydra": []}, "sweeper": {"params": params}}
    config = OmegaConf.create({"hydra": hydra})
    job_name.leave_out_constants(config)
    return " ".join(config.hydra.overrides.hydra)


def test_names_of_jobs_leave_out_what_is_not_swept():
    key = "hydra.job.config.override_dirname.exclude_keys"
    assert named("core=mamba,s5", "data=digits", "+a.b=1", "seed=range(3)") == f"{key}=['data','a.b']"
    assert named("experiment=mine", "core=s5", core="mamba,s5") == f"{key}=['experiment']"
    assert named("core=s5", "seed=0") == ""  # one job, named by all of them


def test_names_of_jobs_are_short_and_differ():
    same = ",".join(f"model.key{number}=0" for number in range(40))
    names = {job_name.folder(f"{same},seed={seed}") for seed in range(3)}
    assert len(names) == 3
    assert {len(name) for name in names} == {job_name.LIMIT}
    assert len(job_name.folder("name=" + 99 * "ø").encode()) <= job_name.LIMIT
    assert job_name.folder("data.root=/a/b,seed=0") == "data.root=_a_b,seed=0"
    assert job_name.folder("") == "job"


@pytest.mark.parametrize("swept", [False, True])
def test_a_sweep_with_long_overrides(train, here, swept):
    note = ",".join(f"{'x' * 300}{number}" for number in range(1 + swept))
    assert train("-m", f"+note={note}", "seed=0,1", "trainer.fast_dev_run=true") == 0
    jobs = sorted(path.parent.name for path in here.glob("runs/mnist/sweep_*/*/metrics.json"))
    if not swept:
        assert jobs == ["seed=0", "seed=1"]
    assert len(jobs) == 2 + 2 * swept
    assert all(len(name) <= job_name.LIMIT for name in jobs)
