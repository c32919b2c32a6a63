"""`configs/model/*.yaml` against the classes they name, built with a core as `nvsubq train` builds them."""

import inspect
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from nvsubq import NDBackbone, NDMixer, NDSegmenter, NDUNet, instantiate, validate

FOLDER = Path(__file__).parents[2] / "configs" / "model"
PRESETS = [f"{size}_{rank}d" for size in ("tiny", "small", "base") for rank in (1, 2, 3)]
CLASSES = {
    "backbone": NDBackbone,
    "segmenter": NDSegmenter,
    "unet": NDUNet,
    **dict.fromkeys(PRESETS, NDBackbone),
}
LATE = {"in_channels": 2, "num_classes": 3, "spatial_dims": 2}
CORE = {"_target_": "nvsubq.cores.Mamba", "_partial_": True, "d_model": "???", "d_state": 2}


def keywords(target: type) -> dict[str, object]:
    parameters = inspect.signature(target).parameters.values()
    return {p.name: p.default for p in parameters}


@pytest.mark.parametrize("name", CLASSES)
def test_every_argument_is_written_out(name):
    node = OmegaConf.load(FOLDER / f"{name}.yaml")
    given = {key for key in node if not key.startswith("_")}
    assert given - {"spatial_dims", "out_channels"} == keywords(CLASSES[name]).keys() - {
        *LATE,
        "out_channels",
    }
    mixer = {key for key in node.mixer if not key.startswith("_")}
    assert mixer == keywords(NDMixer).keys() - {"d_model", "layer_idx"}  # those come from the backbone
    assert OmegaConf.to_container(node)["mixer"]["core"] == "${core}"


@pytest.mark.parametrize("name", ["backbone", "segmenter", "unet"])
def test_builds_with_what_the_data_give(name):
    config = OmegaConf.create({"core": CORE, "model": OmegaConf.load(FOLDER / f"{name}.yaml")})
    config.model.update({"depths": [1], "dims": [8]})
    late = dict(LATE)
    if name == "unet":
        late["out_channels"] = late.pop("num_classes")
    validate(config.model, late=list(late))
    model = instantiate(config.model, **late)
    expected = (1, 3) if name == "backbone" else (1, 3, 9, 8)
    assert model(torch.randn(1, 2, 9, 8)).shape == expected


def test_a_bound_width_names_both_and_the_place():
    config = OmegaConf.create(
        {"core": {**CORE, "d_model": 7}, "model": OmegaConf.load(FOLDER / "backbone.yaml")}
    )
    with pytest.raises(ValueError, match=r"`d_model` \(=64\) differs from the `d_model` \(=7\)"):
        instantiate(config.model, **LATE)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_run(name):
    """Millions of parameters with Mamba at its own defaults, one channel and ten classes; a small forward."""
    size, rank = name.split("_")[0], int(name[-2])
    core = OmegaConf.load(FOLDER.parent / "core" / "mamba.yaml")
    config = OmegaConf.create({"core": core, "model": OmegaConf.load(FOLDER / f"{name}.yaml")})
    model = instantiate(config.model, in_channels=1, num_classes=10).eval()
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx({"tiny": 3.9, "small": 9.9, "base": 20.7}[size], rel=0.06)
    with torch.inference_mode():
        assert model(torch.randn(1, 1, *(32, 35, 33)[:rank])).shape == (1, 10)


def test_sizes_of_the_presets_do_not_depend_on_the_rank():
    for size in ("tiny", "small", "base"):
        nodes = [OmegaConf.load(FOLDER / f"{size}_{rank}d.yaml") for rank in (1, 2, 3)]
        for node in nodes:
            del node.spatial_dims, node.mixer.scan
        assert nodes[0] == nodes[1] == nodes[2]
