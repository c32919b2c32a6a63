"""Every experiment composes, is valid, and takes one step, with every core that has a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from nvsubq.cli.paths import config_dir
from nvsubq.cli.self_test import core_lacks
from nvsubq.nd import scan_order
from nvsubq.training import build, train
from nvsubq.training.build import check_config

EXPERIMENTS = sorted(file.stem for file in (config_dir() / "experiment").glob("*.yaml"))
CORES = sorted(file.stem for file in (config_dir() / "core").glob("*.yaml") if core_lacks(file) is None)
# One step of the whole recipe, but not of the whole test set.
ONE_STEP = ["trainer.fast_dev_run=true", "threads=1", "baselines=false", "report=false"]
LIGHT = {
    "mnist": ["data.batch_size=8", "data.eval_batch_size=8"],
    "mnist_orders": ["data.batch_size=8", "data.eval_batch_size=8"],
    "textures": ["data.batch_size=8", "data.eval_batch_size=8", "data.stride=64"],
    "mni152_unet": ["data.resolution=4", "data.batch_size=2", "data.crop_size=16", "task.overlap=0"],
    "mni152_models": ["data.resolution=4", "data.batch_size=2", "data.crop_size=16", "task.overlap=0"],
    "epi": ["data.batch_size=2", "data.eval_batch_size=4"],
    "ocean": ["data.crop=24", "data.batch_size=2"],
    "spatial_recall": ["data.batch_size=2", "data.eval_batch_size=4"],
    "mni152": ["data.resolution=4", "data.batch_size=2", "data.crop_size=16", "task.overlap=0"],
}


def composed(*overrides: str):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_valid_with_every_core(experiment, core):
    config = composed(f"experiment={experiment}", f"core={core}")
    check_config(config)
    assert config.name == experiment


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_sets_no_core_option(experiment):
    text = (config_dir() / "experiment" / f"{experiment}.yaml").read_text()
    assert "\ncore:" not in text


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_one_step(experiment, tmp_path):
    light = LIGHT.get(experiment, [])
    config = composed(f"experiment={experiment}", *ONE_STEP, *light, f"paths.runs={tmp_path}")
    figures = train(config, tmp_path / "run")
    assert figures["steps"] == 1
    assert any(name.startswith("test/") for name in figures["metrics"])
    written = json.loads((Path(figures["folder"]) / "metrics.json").read_text())
    assert written["task"] == figures["task"]


@pytest.mark.parametrize("group", ["task", "trainer", "logger"])
def test_every_option_of_a_group_composes(group, monkeypatch):
    monkeypatch.setattr(build, "LOGGERS", {})  # the packages of loggers need not be here
    for file in (config_dir() / group).glob("*.yaml"):
        model = {
            "segmentation": ["model=segmenter", "experiment=mni152"],
            "forecasting": ["experiment=ocean"],
        }.get(file.stem, [])
        check_config(composed(f"{group}={file.stem}", *model))


def test_the_sweep_over_orders_names_orders_and_seeds():
    """`nvsubq train -m experiment=mnist_orders` alone is the whole table."""
    text = (config_dir() / "experiment" / "mnist_orders.yaml").read_text()
    params = OmegaConf.create(text).hydra.sweeper.params
    jobs = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    values = {job.get_key_element(): list(job.sweep_iterator()) for job in jobs}
    assert values["seed"] == [0, 1, 2]
    orders = [getattr(order, "text", order) for order in values["model.mixer.scan"]]  # 'window(4)' is quoted
    assert len(orders) == 7
    for order in orders:
        assert sorted(scan_order(order, (7, 7)).tolist()) == list(range(49))
        config = composed("experiment=mnist_orders", f"model.mixer.scan='{order}'")
        check_config(config)
