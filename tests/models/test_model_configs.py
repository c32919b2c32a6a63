"""`configs/model/*.yaml` against the classes they name, built with a core as `nvsubq train` builds them."""

import inspect
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from nvsubq import NDBackbone, NDMixer, NDSegmenter, instantiate, validate

FOLDER = Path(__file__).parents[2] / "configs" / "model"
CLASSES = {"backbone": NDBackbone, "segmenter": NDSegmenter}
LATE = {"in_channels": 2, "num_classes": 3, "spatial_dims": 2}
CORE = {"_target_": "nvsubq.cores.Mamba", "_partial_": True, "d_model": "???", "d_state": 2}


def keywords(target: type) -> dict[str, object]:
    parameters = inspect.signature(target).parameters.values()
    return {p.name: p.default for p in parameters}


@pytest.mark.parametrize("name", CLASSES)
def test_every_argument_is_written_out(name):
    node = OmegaConf.load(FOLDER / f"{name}.yaml")
    given = {key for key in node if not key.startswith("_")}
    assert given == keywords(CLASSES[name]).keys() - LATE.keys()
    mixer = {key for key in node.mixer if not key.startswith("_")}
    assert mixer == keywords(NDMixer).keys() - {"d_model", "layer_idx"}  # those come from the backbone
    assert OmegaConf.to_container(node)["mixer"]["core"] == "${core}"


@pytest.mark.parametrize("name", CLASSES)
def test_builds_with_what_the_data_give(name):
    config = OmegaConf.create({"core": CORE, "model": OmegaConf.load(FOLDER / f"{name}.yaml")})
    config.model.update({"depths": [1], "dims": [8]})
    validate(config.model, late=list(LATE))
    model = instantiate(config.model, **LATE)
    expected = (1, 3) if name == "backbone" else (1, 3, 9, 8)
    assert model(torch.randn(1, 2, 9, 8)).shape == expected


def test_a_bound_width_names_both_and_the_place():
    config = OmegaConf.create(
        {"core": {**CORE, "d_model": 7}, "model": OmegaConf.load(FOLDER / "backbone.yaml")}
    )
    with pytest.raises(ValueError, match=r"`d_model` \(=64\) differs from the `d_model` \(=7\)"):
        instantiate(config.model, **LATE)
