"""The run folder: claiming, linking, removing, and loading it again."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from nvsubq.cli.paths import config_dir
from nvsubq.lazy_config import ConfigError
from nvsubq.training import CheckpointError, ClassificationTask, load_run, train
from nvsubq.training.run_folder import RunFolder, command_again, remove_empty

SMALL = [
    "data=digits",
    "model.dims=[8]",
    "model.depths=[1]",
    "model.patch_size=4",
    "trainer.fast_dev_run=true",
    "threads=1",
    "baselines=false",
    "report=false",
]


def composed(*overrides: str):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def test_a_folder_has_one_owner(tmp_path):
    first, second, third = (RunFolder(tmp_path / "runs" / "a", tmp_path / "runs") for _ in range(3))
    assert [run.path.name for run in (first, second, third)] == ["a", "a_2", "a_3"]


def test_remove_takes_what_the_run_wrote_and_nothing_else(tmp_path):
    root = tmp_path / "runs"
    run = RunFolder(root / "x" / "a", root)
    run.write_config("a: 1\n", "a: 1\n")
    run.checkpoints.mkdir()
    (run.checkpoints / "best.ckpt").write_text("")
    run.remove()
    assert list(tmp_path.iterdir()) == []
    run = RunFolder(root / "x" / "a", root)
    (run.path / "notes.txt").write_text("mine")
    run.write_metrics({})
    run.remove()
    assert [p.name for p in (root / "x" / "a").iterdir()] == ["notes.txt"]


def test_remove_empty_stays_below_the_root(tmp_path):
    outside = tmp_path / "elsewhere" / "run"
    outside.mkdir(parents=True)
    remove_empty(outside, tmp_path / "runs")
    assert (tmp_path / "elsewhere").is_dir()


@pytest.mark.parametrize(
    "folder",
    [
        "runs/mnist/2026-01-01_00-00-00",
        "runs/x/baselines=False,data=digits,model.depths=[1]",
        "my runs/it's {a: 1}",
        'runs/a "b"',
    ],
)
def test_the_command_to_go_on_can_be_pasted(folder):
    words = shlex.split(command_again(Path(folder), resume=True))
    assert words[:4] == ["nvsubq", "train", "--config-dir", folder]
    (override,) = OverridesParser.create().parse_overrides(words[-1:])
    assert override.key_or_group == "ckpt_path"
    assert override.value() == folder


def test_metrics_hold_null_for_what_is_not_finite(tmp_path):
    run = RunFolder(tmp_path / "a", tmp_path)
    run.write_metrics({"x": float("nan"), "y": [np.float32(1.5), float("inf")], "z": {"w": np.int64(3)}})
    assert json.loads((run.path / "metrics.json").read_text()) == {"x": None, "y": [1.5, None], "z": {"w": 3}}


def test_latest_names_the_newest_run(tmp_path):
    root = tmp_path / "runs"
    for name in ("a", "b"):
        RunFolder(root / "mnist" / name, root).link_latest()
    RunFolder(root / "mnist" / "sweep" / "core=s5", root).link_latest()
    assert (root / "latest").resolve() == root / "mnist" / "sweep" / "core=s5"
    assert os.readlink(root / "mnist" / "latest") == os.path.join("sweep", "core=s5")
    RunFolder(tmp_path / "elsewhere", root).link_latest()
    assert (root / "latest").resolve().name == "core=s5"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("run")
    from nvsubq.training.quiet import quiet_lightning

    quiet_lightning()
    figures = train(composed(*SMALL, f"paths.runs={root}", "core=s5", "core.d_state=8"), root / "mnist" / "a")
    return Path(figures["folder"])


def test_load_run(run):
    loaded = load_run(run)
    assert isinstance(loaded.task, ClassificationTask)
    assert not loaded.task.training
    assert loaded.datamodule.num_classes == 10
    assert loaded.checkpoint == run / "checkpoints" / "best.ckpt"
    arrays = np.load(run / "predictions.npz")
    images = torch.from_numpy(arrays["images"])
    expected = arrays["probabilities"][arrays["shown"]]
    np.testing.assert_allclose(loaded.task.probabilities(images).numpy(), expected, rtol=1e-5, atol=1e-7)


def test_load_run_with_overrides(run):
    loaded = load_run(run, checkpoint="last", overrides=["data.batch_size=7", "seed=3"])
    assert loaded.datamodule.batch_size == 7
    assert loaded.datamodule.seed == 3
    with pytest.raises(ConfigError, match=r"override 'data\.rooot=x' names no key of the run's config\."):
        load_run(run, overrides=["data.rooot=x"])
    with pytest.raises(ConfigError, match="override 'data' must have the form key=value"):
        load_run(run, overrides=["data"])
    with pytest.raises(ConfigError, match=r"`core` \(=mamba\) cannot be exchanged as a whole"):
        load_run(run, overrides=["core=mamba"])


def test_load_run_refusals(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"is no run folder: it has no config\.yaml\."):
        load_run(tmp_path)
    with pytest.raises(CheckpointError, match=r"`checkpoint` \(='first'\) must be one of best, last\."):
        load_run(run, checkpoint="first")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(
        CheckpointError, match=r"has no checkpoint best\.ckpt: its training did not finish an epoch\."
    ):
        load_run(tmp_path)
    with pytest.raises(CheckpointError, match=r"core\.B_re|does not fit the model of this config"):
        load_run(run, overrides=["core.d_state=16"])


def test_train_leaves_the_config_alone(tmp_path):
    config = composed(*SMALL, f"paths.runs={tmp_path}", "task.lr=-1")
    before = config.copy()
    with pytest.raises(ValueError, match=r"`lr` \(=-1\)"):
        train(config, tmp_path / "b")
    assert config == before
    assert list(tmp_path.parent.glob(f"{tmp_path.name}/*")) == []
