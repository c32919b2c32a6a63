"""The comparison on MNI152: MONAI's networks by one word, of one size, and a budget of time."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nvsubq.cli.main import main
from nvsubq.cli.paths import config_dir
from nvsubq.lazy_config import ConfigError, instantiate
from nvsubq.models.cost import cost
from nvsubq.training.build import PEERS, build_datamodule, build_task, check_config

pytest.importorskip("monai")

MODELS = ("unet", "monai_unet", "monai_segresnet")
LIGHT = (
    "data.resolution=4", "data.crop_size=8", "data.crops_per_epoch=4", "data.batch_size=2",
    "data.test_volumes=1",
    "data.val_volumes=1", "task.overlap=0", "task.tile=[32,32,32]", "threads=1", "baselines=false",
    "report=false",
)  # fmt: skip


def composed(*overrides: str):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", overrides=["experiment=mni152_models", *overrides])


def test_one_word_apart_and_of_one_size():
    sizes, others = [], []
    for model in MODELS:
        config = composed(f"model={model}")
        check_config(config)
        task = build_task(config, build_datamodule(config))
        sizes.append(cost(task.model, (1, 1, 32, 32, 32)).parameters)
        others.append({key: value for key, value in config.items() if key != "model"})
    assert others[0] == others[1] == others[2]
    assert max(sizes) <= 1.15 * min(sizes), sizes


def test_the_networks_of_monai_have_their_defaults_written_out():
    import inspect

    import monai.networks.nets as nets

    for name, cls in (("monai_unet", nets.UNet), ("monai_segresnet", nets.SegResNet)):
        node = OmegaConf.load(config_dir() / "model" / f"{name}.yaml")
        given = {key for key in node if not key.startswith("_")} | {"spatial_dims", "in_channels"}
        known = inspect.signature(cls).parameters.keys() - {"norm_name", "num_groups"}  # both are in `norm`
        assert given == known
        assert node._target_ in PEERS


def test_nothing_else_of_monai_is_allowed():
    with pytest.raises(ConfigError, match="is not on the allow-list"):
        instantiate({"_target_": "monai.networks.nets.VNet"})


@pytest.mark.parametrize("model", MODELS)
def test_trains_until_the_time_is_over(model, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin = time.perf_counter()
    arguments = ("experiment=mni152_models", f"model={model}", "trainer.max_time=00:00:00:02", *LIGHT)
    assert main(["train", *arguments]) == 0
    assert time.perf_counter() - begin < 60
    with (tmp_path / "runs" / "latest" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["lr"]) for row in rows]
    assert len(rows) > 1
    assert rates[-1] < 0.05 * composed().task.lr, rates  # the cosine ended with the time
    assert float(rows[-1]["val/dice"]) >= 0


def test_a_budget_in_steps(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["train", "experiment=mni152_models", "trainer.max_time=null", "trainer.max_steps=3", *LIGHT])
        == 0
    )
    with (tmp_path / "runs" / "latest" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["step"]) == 3
    assert float(rows[-1]["lr"]) < 0.05 * composed().task.lr
