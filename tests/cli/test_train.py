"""`nvsubq train`: the commands that must work on the first day, and what they leave behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import SMALL, metrics_of, rows_of
from omegaconf import OmegaConf

from nvsubq.cli.main import main


def only_run(here: Path) -> Path:
    runs = [p for p in (here / "runs" / "mnist").iterdir() if not p.is_symlink()]
    assert len(runs) == 1
    return runs[0]


def test_run_folder(train, here, capsys):
    assert train() == 0
    run = only_run(here)
    files = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert files == {
        "config.yaml",
        "resolved.yaml",
        "metrics.csv",
        "metrics.json",
        "predictions.npz",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
    }
    for link in (here / "runs" / "latest", here / "runs" / "mnist" / "latest"):
        assert link.is_symlink()
        assert link.resolve() == run.resolve()
        assert not os.path.isabs(os.readlink(link))

    config, resolved = OmegaConf.load(run / "config.yaml"), OmegaConf.load(run / "resolved.yaml")
    assert OmegaConf.to_container(config, resolve=False)["model"]["mixer"]["core"] == "${core}"
    assert resolved.model.mixer.core._target_ == "nvsubq.cores.Mamba"
    assert (config.model.in_channels, config.model.num_classes, config.model.spatial_dims) == (1, 10, 2)

    rows = rows_of(run)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"train/loss", "val/loss", "val/accuracy", "lr", "epoch_s", "cells_per_s"} <= rows[0].keys()
    figures = json.loads((run / "metrics.json").read_text())
    assert {"test/accuracy", "test/loss", "val/accuracy"} <= figures["metrics"].keys()
    assert figures["core"] == "nvsubq.cores.Mamba"
    assert figures["parameters"] > 0
    assert figures["peak_memory_bytes"] > 2**20
    assert figures["data"]["sizes"]["train"] > 1000
    assert figures["command"] == list(SMALL)
    out = capsys.readouterr().out
    assert "epoch 2/2   train/loss" in out
    assert "test, best checkpoint" in out

    arrays = np.load(run / "predictions.npz", allow_pickle=False)
    labels, shown = arrays["labels"], arrays["shown"]
    assert arrays["probabilities"].shape == (len(labels), 10)
    assert np.mean(arrays["probabilities"].argmax(1) == labels) == pytest.approx(
        figures["metrics"]["test/accuracy"]
    )
    own = arrays["probabilities"][np.arange(len(labels)), labels]
    assert list(own[shown]) == sorted(own)[: len(shown)]
    assert arrays["images"].shape == (len(shown), 1, 8, 8)

    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert str(here) not in str({k: v for k, v in checkpoint.items() if k != "state_dict"})


def test_same_seed_same_bits_and_saved_config_runs_again(train, here):
    assert train("hydra.run.dir=runs/mnist/a") == 0
    assert train("hydra.run.dir=runs/mnist/b") == 0
    assert train("hydra.run.dir=runs/mnist/c", "seed=1") == 0
    saved = ["--config-dir", "runs/mnist/a", "--config-name", "config"]
    assert main(["train", *saved, "hydra.run.dir=runs/mnist/d"]) == 0
    runs = {name: here / "runs" / "mnist" / name for name in "abcd"}
    weights = {
        name: torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name, run in runs.items()
    }
    for other in "bd":
        assert metrics_of(runs["a"]) == metrics_of(runs[other])
        assert all(torch.equal(weights["a"][key], weights[other][key]) for key in weights["a"])
    assert metrics_of(runs["a"]) != metrics_of(runs["c"])
    assert (runs["a"] / "resolved.yaml").read_text() == (runs["d"] / "resolved.yaml").read_text()
    # Interpolations are kept, so that an override of the saved config acts through them.
    assert main(["train", *saved, "hydra.run.dir=runs/mnist/e", "core.d_state=4"]) == 0
    assert OmegaConf.load(here / "runs/mnist/e/resolved.yaml").model.mixer.core.d_state == 4
    assert (here / "runs/mnist/latest").resolve().name == "e"


def test_resume_equals_one_training(train, here):
    whole = here / "runs" / "mnist" / "whole"
    assert train("hydra.run.dir=runs/mnist/whole", "epochs=3", "task.schedule=constant") == 0
    assert (
        train("hydra.run.dir=runs/mnist/half", "epochs=2", "task.schedule=constant", "task.warmup=0.15") == 0
    )
    ckpt = "ckpt_path=runs/mnist/half"
    assert train("hydra.run.dir=runs/mnist/rest", "epochs=3", "task.schedule=constant", ckpt) == 0
    rest = here / "runs" / "mnist" / "rest"
    assert metrics_of(rest) == metrics_of(whole)
    assert [row["epoch"] for row in rows_of(rest)] == ["0", "1", "2"]
    assert (rest / "checkpoints" / "best.ckpt").is_file()


def test_resume_takes_over_the_best_checkpoint(train, here):
    first = ["hydra.run.dir=runs/mnist/first", "task.lr=1e-9", "checkpoint.monitor=val/loss"]
    assert train(*first) == 0
    # A rate that ruins the model: the best stays that of the first run.
    resume = ["hydra.run.dir=runs/mnist/second", "task.lr=1e-9", "checkpoint.monitor=val/loss", "epochs=3"]
    edited = here / "edited.ckpt"
    content = torch.load(here / "runs/mnist/first/checkpoints/last.ckpt", weights_only=True)
    content["callbacks"]["Checkpoints"].update(score=-1.0, epoch=0)
    torch.save(content, edited.parent / "runs/mnist/first/checkpoints/edited.ckpt")
    assert train(*resume, "ckpt_path=runs/mnist/first/checkpoints/edited.ckpt") == 0
    figures = json.loads((here / "runs/mnist/second/metrics.json").read_text())
    assert figures["best_epoch"] == 0
    old, new = (here / f"runs/mnist/{name}/checkpoints/best.ckpt" for name in ("first", "second"))
    assert old.read_bytes() == new.read_bytes()


def test_fast_dev_run_needs_no_plus_and_leaves_a_whole_run(train, here):
    assert train("trainer.fast_dev_run=true", "baselines=true") == 0
    run = only_run(here)
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert (run / "metrics.csv").is_file()
    assert json.loads((run / "metrics.json").read_text())["baselines"] == {}


def test_debug_trainer(train, here):
    assert train("trainer=debug") == 0
    figures = json.loads((only_run(here) / "metrics.json").read_text())
    assert (figures["epochs"], figures["steps"]) == (2, 6)


def test_debug_wins_over_the_experiments_epochs(capsys):
    assert main(["train", "trainer=debug", "--cfg", "job", "--resolve", "--package", "trainer"]) == 0
    assert "max_epochs: 2" in capsys.readouterr().out


@pytest.mark.parametrize("experiment", ["mnist", "mni152"])
def test_show_config(experiment, capsys):
    assert (
        main(["train", f"experiment={experiment}", "core=s5", "core.d_state=48", "--cfg", "job", "--resolve"])
        == 0
    )
    config = OmegaConf.create(capsys.readouterr().out)
    assert config.name == experiment
    assert config.model.mixer.core._target_ == "nvsubq.cores.S5"
    assert config.model.mixer.core.d_state == 48


@pytest.mark.parametrize("core", ["mamba", "mamba2", "s5", "rglru", "attention"])
def test_every_core_trains(core, train, here):
    assert train(f"core={core}", "model.dims=[64]", "trainer.fast_dev_run=true") == 0
    assert core in json.loads((only_run(here) / "metrics.json").read_text())["core"].lower()


def test_early_stopping_and_test_with_last(train, here):
    # A rate that changes nothing: accuracy never improves.
    assert train("early_stopping.patience=0", "task.lr=1e-12", "test_with=last", "epochs=9") == 0
    figures = json.loads((only_run(here) / "metrics.json").read_text())
    assert figures["stopped_early"]
    assert figures["epochs"] < 9
    assert figures["tested_with"] == "last"


def test_without_test(train, here):
    assert train("test_with=null", "trainer.fast_dev_run=true") == 0
    run = only_run(here)
    assert not (run / "predictions.npz").exists()
    assert not any(k.startswith("test/") for k in json.loads((run / "metrics.json").read_text())["metrics"])


def test_without_logger(train, here):
    assert train("logger=none", "trainer.fast_dev_run=true") == 0
    assert not (only_run(here) / "metrics.csv").exists()


def test_without_validation(train, here):
    assert train("trainer.limit_val_batches=0", "trainer.limit_train_batches=1") == 0
    assert json.loads((only_run(here) / "metrics.json").read_text())["best_epoch"] == 0


@pytest.mark.filterwarnings(
    "ignore:You requested to overfit:UserWarning"
)  # Lightning says that it does not shuffle
def test_the_same_batches_in_every_epoch(train, here):
    assert train("trainer.overfit_batches=2", "trainer.limit_train_batches=null", "epochs=2") == 0
    assert json.loads((only_run(here) / "metrics.json").read_text())["steps"] == 4


def test_two_runs_in_one_second(train, here):
    assert train("hydra.run.dir=runs/mnist/same", "trainer.fast_dev_run=true") == 0
    assert train("hydra.run.dir=runs/mnist/same", "trainer.fast_dev_run=true") == 0
    assert (here / "runs/mnist/same_2/metrics.json").is_file()


def test_precision(train, here):
    assert train("trainer.precision=bf16-mixed", "trainer.fast_dev_run=true") == 0
    assert json.loads((only_run(here) / "metrics.json").read_text())["precision"] == "bf16-mixed"


def test_help_names_the_commands(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "nvsubq train core=s5 core.d_state=32" in out
    assert "core: attention, mamba, mamba2, mamba_ssm_mamba, mamba_ssm_mamba2, rglru, s5, s7" in out


def test_interrupt_keeps_the_last_epoch_and_says_how_to_go_on(train, here, monkeypatch, capsys):
    from nvsubq.training.callbacks import EpochFigures

    def interrupt(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(EpochFigures, "on_train_epoch_start", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert train('hydra.run.dir="runs/a,depths=[1]"') == 130  # as a sweep names the folder of a job
    finally:
        signal.signal(signal.SIGINT, handler)
    captured = capsys.readouterr()
    assert captured.err == "stopped\n"
    command = shlex.split(captured.out.rpartition("to go on from the last epoch: nvsubq ")[2])
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert main([*command, "hydra.run.dir=runs/b"]) == 0
    assert [row["epoch"] for row in rows_of(here / "runs/b")] == ["0", "1"]


def test_profiles_are_in_the_run_folder(train, here):
    assert train("trainer.profiler=simple", "epochs=1", "hydra.run.dir=runs/a") == 0
    for stage in ("fit", "test"):
        assert (
            "run_t" in (here / f"runs/a/{stage}-profile.txt").read_text()
        )  # run_training_epoch, run_test_...


def test_report_is_written_at_the_end(train, here, capsys):
    assert train("report=true", "trainer.fast_dev_run=true", "hydra.run.dir=runs/a") == 0
    assert "report: runs/a/report.html" in capsys.readouterr().out
    assert (here / "runs/a/report.html").stat().st_size > 10_000


def test_report_without_metrics_csv(train, here):
    assert train("report=true", "logger=none", "trainer.fast_dev_run=true", "hydra.run.dir=runs/a") == 0


def test_flags_may_stand_anywhere(train, here):
    assert train("seed=0,1", "-m", "trainer.fast_dev_run=true", "test_with=null") == 0
    assert len(list((here / "runs").rglob("resolved.yaml"))) >= 2
