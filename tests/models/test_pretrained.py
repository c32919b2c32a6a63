"""Models as folders: what is written, that it builds the same model, and what a folder may not do."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from model_helpers import Smear

from nvsubq import ConfigError, LazyConfig, NDBackbone, NDMixer, NDSegmenter, NDUNet, instantiate
from nvsubq.cores import RGLRU, S5, Mamba
from nvsubq.models import from_pretrained
from nvsubq.models.pretrained import CONFIG, WEIGHTS

MIXERS = {
    "partial": partial(NDMixer, partial(Mamba, d_state=2), bidirectional=True, scan=["snake", "morton"]),
    "positional": partial(NDMixer, RGLRU),
    "node": LazyConfig(NDMixer, partial=True)(
        core=LazyConfig(Mamba, partial=True)(d_state=2), scan="hilbert"
    ),
    "built from a node": instantiate(
        LazyConfig(NDMixer, partial=True)(
            core=LazyConfig(Mamba, partial=True)(d_state=2), scan={"split_channels": ["row_major", "snake"]}
        )
    ),
    "a list of cores": partial(NDMixer, [Mamba, partial(S5, d_state=8)], bidirectional=True, share="none"),
}


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_the_same_model_comes_back(mixer, tmp_path: Path) -> None:
    x = torch.randn(2, 1, 9, 8)
    for model in (
        NDBackbone(2, 1, 3, mixer=mixer, depths=(1, 1), dims=[8, 16], local_conv=3),
        NDUNet(2, 1, 3, mixer=mixer, depths=(1, 1), dims=(8, 16)),
        NDSegmenter(2, in_channels=1, num_classes=3, mixer=mixer, depths=(1,), dims=(8,)),
    ):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        assert {file.name for file in folder.iterdir()} == {CONFIG, WEIGHTS}
        twin = type(model).from_pretrained(folder)
        assert type(twin) is type(model)
        assert not twin.training
        assert torch.equal(twin(x), model.eval()(x))
        assert twin.config == model.config
        twin.save_pretrained(folder)
        assert torch.equal(from_pretrained(folder)(x), model(x))


def test_copies_remember(tmp_path: Path) -> None:
    model = NDBackbone(1, 1, 3, mixer=MIXERS["partial"], depths=(1,), dims=(8,))
    torch.save(model, tmp_path / "model.pt")
    for twin in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert twin.config == model.config
    assert model.config.mixer.core == {"_target_": "nvsubq.cores.Mamba", "_partial_": True, "d_state": 2}


def test_a_shared_core_and_half_precision(tmp_path: Path) -> None:
    mixer = partial(NDMixer, Mamba, bidirectional=True, share="all+direction")
    model = NDBackbone(1, 1, 3, mixer=mixer, depths=(1,), dims=(8,))
    model.save_pretrained(tmp_path)
    x = torch.randn(1, 1, 16)
    assert torch.equal(NDBackbone.from_pretrained(tmp_path)(x), model.eval()(x))


class TestErrors:
    def test_arguments_that_no_config_names(self, tmp_path: Path) -> None:
        model = NDBackbone(1, 1, 3, mixer=lambda d_model: Smear(d_model), depths=(1,), dims=(8,))
        with pytest.raises(ConfigError, match="This NDBackbone has no config: a lambda cannot be a target"):
            model.save_pretrained(tmp_path / "never")
        assert not (tmp_path / "never").exists()

    def test_another_kind(self, tmp_path: Path) -> None:
        NDBackbone(1, 1, 3, mixer=partial(NDMixer, Mamba), depths=(1,), dims=(8,)).save_pretrained(tmp_path)
        with pytest.raises(TypeError, match="holds a NDBackbone, not a NDUNet"):
            NDUNet.from_pretrained(tmp_path)

    def test_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(
            FileNotFoundError, match=r"has no config.yaml: `save_pretrained` writes config.yaml and"
        ):
            from_pretrained(tmp_path)

    def test_what_is_not_allowed_does_not_run(self, tmp_path: Path) -> None:
        """A user's module is named by the config, but runs only where the user allows it."""
        model = NDBackbone(1, 1, 3, mixer=Smear, depths=(1,), dims=(8,))
        model.save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=r"allow_targets\('model_helpers"):
            from_pretrained(tmp_path)
        (tmp_path / CONFIG).write_text("_target_: os.system\ncommand: 'touch hacked'\n")
        with pytest.raises(ConfigError, match=r"os\.system"):
            from_pretrained(tmp_path)

    def test_what_is_no_model(self, tmp_path: Path) -> None:
        NDBackbone(1, 1, 3, mixer=partial(NDMixer, Mamba), depths=(1,), dims=(8,)).save_pretrained(tmp_path)
        (tmp_path / CONFIG).write_text("a: 1\n")
        with pytest.raises(ConfigError, match="builds a dict, not a module"):
            from_pretrained(tmp_path)
        (tmp_path / CONFIG).write_text("_target_: torch.nn.Identity\n")
        with pytest.raises(RuntimeError, match="Unexpected key"):
            from_pretrained(tmp_path)
