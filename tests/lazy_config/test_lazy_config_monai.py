"""One preset, built by this package and by a MONAI bundle: the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import nvsubq.models
from nvsubq import NDBackbone, from_yaml, instantiate

PRESET = Path(nvsubq.models.__file__).parent / "presets" / "mamba_3d.yaml"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # whatever MONAI's own imports warn of
def test_a_bundle_builds_the_same_model() -> None:
    from monai.bundle import ConfigParser

    torch.manual_seed(0)
    ours = instantiate(from_yaml(PRESET))
    torch.manual_seed(0)
    parser = ConfigParser({"network_def": yaml.safe_load(PRESET.read_text())})
    theirs = parser.get_parsed_content("network_def")
    assert isinstance(theirs, NDBackbone)
    x = torch.randn(2, 1, 9, 8, 11)
    assert len(ours.blocks) == 2
    assert torch.equal(ours(x), theirs(x))
