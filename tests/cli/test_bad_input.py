"""Bad input of `nvsubq train`: one message, exit code 1, no traceback, and nothing left behind."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nvsubq.cli import errors
from nvsubq.cli.main import main
from nvsubq.lazy_config import targets

CASES = {
    "unknown core": (
        ["core=mambo"],
        "Could not find 'core/mambo'. Did you mean 'mamba'?\n"
        "  Available options in 'core': attention, mamba, mamba2, mamba_ssm_mamba, "
        "mamba_ssm_mamba2, rglru, s5",
    ),
    "misspelt option": (
        ["core.d_sate=3"],
        "no key 'd_sate' in 'core' (override core.d_sate=3). Did you mean 'd_state'?\n  Keys there: d_model,",
    ),
    "misspelt group": (
        ["exprimnt=mnist"],
        "no key 'exprimnt' in the config (override exprimnt=mnist). Did you mean 'experiment'?",
    ),
    "misspelt trainer option": (["trainer.max_epoch=2"], "no key 'max_epoch' in 'trainer'"),
    "option of another core": (
        ["core=s5", "core.dt_rank=3"],
        "no key 'dt_rank' in 'core' (override core.dt_rank=3). "
        "It belongs to core=mamba, core=mamba_ssm_mamba.",
    ),
    "forced option of another core": (
        ["core=s5", "+core.dt_rank=3"],
        "nvsubq.cores.S5\n  no argument 'dt_rank'.",
    ),
    "missing value": (["data.batch_size=???"], "argument 'batch_size' is ??? and needs a value."),
    "not an override": (["a b"], "cannot read the override 'a b': it must have the form key=value."),
    "target that is not allowed": (["core._target_=os.system"], "'os.system' is not on the allow-list"),
    "bad core value": (
        ["core.d_state=-1"],
        "`d_state` (=-1) must be at least 1.\n  while building nvsubq.cores.Mamba",
    ),
    "width and heads": (
        ["core=attention", "core.num_heads=3"],
        "`d_model` (=8) must be divisible by `num_heads` (=3).",
    ),
    "size below a patch": (
        ["model.patch_size=64"],
        "`x` has the spatial size (8, 8), which is smaller than the patch; `patch_size` (=(64, 64))",
    ),
    "channels that the data has not": (
        ["+model.in_channels=3"],
        "`model.in_channels` (=3) does not fit the data, which has in_channels 1.",
    ),
    "task of another data set": (
        ["task=segmentation"],
        "`task` is for segmentation, but the data (Digits) is for classification: use task=classification",
    ),
    "model of another task": (["model=segmenter"], "must be [64, 10]: one logit for each image and class."),
    "no such checkpoint": (
        ["ckpt_path=nowhere"],
        "`ckpt_path` (=nowhere) is neither a checkpoint nor a run folder with checkpoints/last.ckpt.",
    ),
    "negative rate": (["task.lr=-1"], "`lr` (=-1) must be a number above 0.0."),
    "unknown schedule": (["task.schedule=step"], "`schedule` (='step') must be one of cosine, constant."),
    "seed": (["seed=-1"], "`seed` (=-1) must be an integer from 0 to 2**32 - 1."),
    "threads": (["threads=0"], "`threads` (=0) must be null or an integer of at least 1."),
    "no batch": (["trainer.limit_train_batches=0"], "`trainer.limit_train_batches` (=0) must be null, an"),
    "no step": (["trainer.max_steps=0"], "`trainer.max_steps` (=0) must be an integer of at least 1, or -1"),
    "test_with": (["test_with=first"], "`test_with` (='first') must be best, last or null."),
    "patience": (
        ["early_stopping.patience=-2"],
        "`early_stopping.patience` (=-2) must be null or an integer",
    ),
    "monitor": (
        ["checkpoint.monitor=accuracy"],
        "`checkpoint.monitor` (='accuracy') must be one of val/accuracy, val/loss, train/loss.",
    ),
    "mode": (["checkpoint.mode=up"], "`checkpoint.mode` (='up') must be max, min or null."),
    "precision": (["trainer.precision=9"], "Precision 9 is invalid."),
    "divergence": (
        ["task.lr=1e30", "trainer.gradient_clip_val=null", "task.warmup=0", "callbacks=none"],
        "after epoch 1: training diverged. Lower `task.lr`",
    ),
    "empty folder": (["data=image_folder", "data.root=nothing"], "nothing"),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name, train, here, capsys):
    arguments, text = CASES[name]
    small = [] if any(a.startswith("data=") for a in arguments) else None
    assert (train(*arguments, small=False) if small == [] else train(*arguments)) == 1
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err + captured.out
    assert list(here.iterdir()) == []


def test_divergence_keeps_the_batch_that_it_came_with(train, here, capsys):
    arguments = CASES["divergence"][0][:-1]
    assert train(*arguments, "hydra.run.dir=runs/a") == 1
    error = capsys.readouterr().err
    assert "training diverged.\n  It came from " in error
    assert "Batch and weights are in runs/a/nan_batch.pt." in error
    assert (here / "runs/a/nan_batch.pt").is_file()


def test_traceback_when_asked_for(train, monkeypatch, capsys):
    monkeypatch.setenv("NVSUBQ_TRACEBACK", "1")
    assert train("task.lr=-1") == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.rstrip().splitlines()[-2].startswith("error: `lr` (=-1)")


def test_runs_folder_is_a_file(train, here, capsys):
    (here / "file").write_text("")
    assert train("paths.runs=file") == 1
    assert "Not a directory: " in capsys.readouterr().err
    assert [p.name for p in here.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EACCES, "Permission denied: runs/x"),
        (errno.EROFS, "Read-only file system: runs/x"),
        (errno.ENOSPC, "the disk is full: cannot write runs/x."),
    ],
)
def test_folder_that_cannot_be_written(number, text, train, here, monkeypatch, capsys):
    make = os.mkdir

    def refuse(path, *args, **kwargs):
        if "runs" in str(path):
            raise OSError(number, os.strerror(number), "runs/x")
        make(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", refuse)
    assert train() == 1
    advice = "Runs are written below paths.runs; choose another place with paths.runs=DIR."
    assert capsys.readouterr().err == f"error: {text}\n  {advice}\n"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "number", "advised"),
    [
        ("runs/a/x", errno.EACCES, True),
        ("", errno.EACCES, True),  # the folder in which `runs` cannot be made
        (None, errno.ENOSPC, True),
        (None, errno.EACCES, False),
        ("data/x.png", errno.EACCES, False),
        ("runs/a/x", errno.EIO, False),
    ],
)
def test_advice_to_write_elsewhere(file, number, advised, here):
    error = OSError(number, os.strerror(number), None if file is None else str(here / file))
    errors.advise_other_place(error, Path("runs"))
    assert ("paths.runs=DIR" in errors.message(error)) == advised


def test_other_commands_do_not_advise_where_runs_lie(here, monkeypatch, capsys):
    from nvsubq.cli import bench_cpu

    def refuse(args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "out")

    monkeypatch.setattr(bench_cpu, "run", refuse)
    assert main(["bench", "cpu", "--out", "out"]) == 1
    assert capsys.readouterr().err == "error: Permission denied: out\n"


def test_disk_full_at_the_first_checkpoint(train, here, monkeypatch, capsys):
    from lightning import Trainer

    def full(self, path, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    assert train() == 1
    assert "the disk is full: cannot write " in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_checkpoint_that_does_not_fit(train, here, capsys):
    assert train("hydra.run.dir=runs/a", "trainer.fast_dev_run=true") == 0
    before = sorted(here.rglob("*"))
    capsys.readouterr()
    assert train("ckpt_path=runs/a", "model.dims=[12]") == 1
    error = capsys.readouterr().err
    assert "last.ckpt) does not fit the model of this config:\n  of another shape: model." in error
    assert "in the checkpoint and [12" in error
    assert train("ckpt_path=runs/a", "model.depths=[2]") == 1
    assert "missing in the checkpoint: model.blocks.1." in capsys.readouterr().err
    assert train("ckpt_path=runs/a/config.yaml") == 1
    assert "config.yaml) cannot be read: it is cut off, or no checkpoint at all." in capsys.readouterr().err
    torch.save({"weights": torch.zeros(1)}, here / "other.ckpt")
    assert train("ckpt_path=other.ckpt") == 1
    assert "is no checkpoint of a training: it has no `state_dict`." in capsys.readouterr().err
    (here / "other.ckpt").unlink()
    assert train("ckpt_path=runs/a", "epochs=1") == 1
    assert "is at epoch 1, and `trainer.max_epochs` (=1) asks for no more." in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


def test_failure_later_keeps_the_run(train, here, monkeypatch, capsys):
    from nvsubq.data import Digits

    def broken(self):
        raise ValueError("no baseline today")

    monkeypatch.setattr(Digits, "baselines", broken)
    assert train("baselines=true", "hydra.run.dir=runs/a") == 1
    assert "no baseline today" in capsys.readouterr().err
    assert {"metrics.json", "metrics.csv", "checkpoints"} <= {p.name for p in (here / "runs/a").iterdir()}


def test_failing_report_keeps_the_run(train, here, monkeypatch, capsys):
    import nvsubq.training.report as report

    def broken(run):
        raise RuntimeError("no ink")

    monkeypatch.setattr(report, "write_report", broken)
    assert train("report=true", "hydra.run.dir=runs/a", "trainer.fast_dev_run=true") == 1
    captured = capsys.readouterr()
    assert (
        "the run in runs/a is complete, but its report could not be written: RuntimeError: no ink"
        in captured.err
    )
    assert (here / "runs/a/metrics.json").is_file()


@pytest.mark.parametrize("module", ["hydra", "lightning"])
def test_extra_that_is_not_installed(module, here):
    code = (
        "import sys\n"
        f"sys.modules[{module!r}] = None\n"
        "from nvsubq.cli.main import main\n"
        "sys.exit(main(['train', 'data=digits']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: this command needs the package of {module!r}, which is not installed: "
        "pip install 'nvsubq[train]'\n"
    )
    assert list(here.iterdir()) == []


def test_every_extra_names_what_it_installs():
    """The modules are known by hand, the extras are those of pyproject.toml."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    assert extras - {"test", "docs"} == set(errors.EXTRAS)
    for extra, modules in errors.EXTRAS.items():
        for name in modules:
            error = ModuleNotFoundError(name=f"{name}.part")
            assert f"pip install 'nvsubq[{extra}]'" in errors.message(error)
    assert "pip install" not in errors.message(ModuleNotFoundError("No module named 'x'", name="x"))


def test_interrupt(capsys):
    assert errors.report(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_error_that_nobody_foresaw(capsys):
    assert errors.report(ZeroDivisionError("division by zero")) == 1
    assert capsys.readouterr().err == (
        "error: ZeroDivisionError: division by zero (for a traceback: NVSUBQ_TRACEBACK=1)\n"
    )


def test_no_configs(monkeypatch, tmp_path):
    from nvsubq.cli import paths

    monkeypatch.setattr(paths, "__file__", str(tmp_path / "nvsubq" / "cli" / "paths.py"))
    with pytest.raises(
        FileNotFoundError, match=r"no configs: neither .*/nvsubq/configs nor .*/configs holds train.yaml"
    ):
        paths.config_dir()


def test_commands_import_nothing_heavy(monkeypatch, capsys):
    code = (
        "import sys\n"
        "from nvsubq.cli.main import main\n"
        "main(['train', '--help'])\n"
        "heavy = {'torch', 'lightning', 'sklearn', 'nilearn', 'matplotlib'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_help_lists_the_commands(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("train", "evaluate", "predict", "doctor"))


@pytest.mark.parametrize(("command", "needed"), [("evaluate", "RUN"), ("study", "NAME")])
def test_overrides_are_not_required(command, needed, capsys):
    assert main([command]) == 2
    assert capsys.readouterr().err.endswith(f"error: the following arguments are required: {needed}\n")


def test_wrong_entry_of_the_allow_list_is_said_once(train, here, monkeypatch, capsys):
    targets._from_environment.cache_clear()
    monkeypatch.setenv("NVSUBQ_ALLOW_TARGETS", "my_cores")
    assert train() == 1
    entry = "entry in NVSUBQ_ALLOW_TARGETS 'my_cores'"
    assert capsys.readouterr().err == f"error: allow-list {entry} must be 'pkg.*' or an exact dotted path.\n"


def test_unknown_command(capsys):
    assert main(["trian"]) == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


def test_saved_config_has_no_groups(train, here, capsys):
    assert train("hydra.run.dir=runs/a", "trainer.fast_dev_run=true") == 0
    saved = ["train", "--config-dir", "runs/a", "--config-name", "config"]
    assert main([*saved, "core=s5"]) == 1
    error = capsys.readouterr().err
    assert "'core' is no group of this config" in error
    assert main([*saved, "core.d_sate=5"]) == 1
    assert "Did you mean 'd_state'?" in capsys.readouterr().err
    assert Path("runs/a").is_dir()
    assert len(list(Path("runs").iterdir())) == 2  # the run and `latest`
