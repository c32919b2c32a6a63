"""The presets in Python and those in `configs/model` are the same."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nvsubq.models.sizes import SIZES, preset_mixer

FOLDER = Path(__file__).parents[2] / "configs" / "model"


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name", SIZES)
def test_as_in_the_configs(name: str, rank: int) -> None:
    node = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}_{rank}d.yaml"))
    size = SIZES[name]
    assert node["spatial_dims"] == rank
    assert (tuple(node["depths"]), tuple(node["dims"]), node["drop_path_rate"]) == size
    mixer = {key: value for key, value in node["mixer"].items() if not key.startswith("_") and key != "core"}
    given = preset_mixer(rank).keywords
    assert mixer == {key: value for key, value in given.items() if key != "core"}
