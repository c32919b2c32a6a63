"""Every `configs/core/*.yaml` holds the full signature of its class: names, order and defaults."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import nvsubq.cores

CONFIGS = Path(__file__).parents[2] / "configs" / "core"
CLASSES = {
    "mamba": "Mamba",
    "mamba2": "Mamba2",
    "s5": "S5",
    "s7": "S7",
    "rglru": "RGLRU",
    "attention": "Attention",
}
# Where the file says something else than the signature: a required argument, and a mixer that sees both ways.
CHOSEN = {("s5", "d_state"): 64, ("s7", "d_state"): 16, ("attention", "causal"): False}


def test_one_file_per_core():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_file_is_the_signature(name):
    config = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    assert config.pop("_target_") == f"nvsubq.cores.{CLASSES[name]}"
    assert config.pop("_partial_") is True

    parameters = inspect.signature(getattr(nvsubq.cores, CLASSES[name])).parameters
    assert list(config) == list(parameters)
    for key, parameter in parameters.items():
        default = "???" if key == "d_model" else CHOSEN.get((name, key), parameter.default)
        default = list(default) if isinstance(default, tuple) else default
        assert config[key] == default, key
        assert type(config[key]) is type(default), key


@pytest.mark.parametrize("name", CLASSES)
def test_file_builds_its_core(name):
    config = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    options = {key: value for key, value in config.items() if not key.startswith("_") and value != "???"}
    core = getattr(nvsubq.cores, CLASSES[name])(64, **options)
    assert core.d_model == 64
