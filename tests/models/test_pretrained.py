"""Models as folders: what is written, that it builds the same model, and what a folder may not do."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from model_helpers import Smear, Through
from torch import nn

from nvsubq import ConfigError, LazyConfig, NDBackbone, NDMixer, NDSegmenter, NDUNet, as_factory, instantiate
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
    "a node that is no partial": LazyConfig(NDMixer)(core=LazyConfig(Mamba, partial=True)(d_state=2)),
    "a dict": {"_target_": "nvsubq.NDMixer", "core": {"_target_": "nvsubq.cores.RGLRU", "_partial_": True}},
    "a node inside a partial": partial(NDMixer, core=LazyConfig(Mamba)(d_state=4)),
    "a dict inside a partial": partial(NDMixer, {"_target_": "nvsubq.cores.Mamba", "d_state": 4}),
    "nodes in a list": partial(NDMixer, [LazyConfig(RGLRU)(), Mamba], bidirectional=True),
    "a factory": as_factory(LazyConfig(NDMixer)(core=LazyConfig(Mamba, partial=True)(d_state=2))),
    "a factory with more arguments": partial(
        as_factory(LazyConfig(NDMixer)(core={"_target_": "nvsubq.cores.Mamba", "_partial_": True})),
        bidirectional=True,
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


def test_what_a_node_builds_for_each_module_is_not_shared(tmp_path: Path) -> None:
    """`as_factory` builds the nodes inside a node anew in each call, and so must a loaded model."""
    node = LazyConfig(Through)(inner=LazyConfig(nn.Linear)(in_features=8, out_features=8))
    x = torch.randn(2, 1, 8, 8)
    for mixer in (node, as_factory(node), partial(NDMixer, core=node, bidirectional=True)):
        model = NDBackbone(2, 1, 3, mixer=mixer, depths=(2,), dims=(8,)).eval()
        model.save_pretrained(tmp_path)
        twin = from_pretrained(tmp_path)
        assert torch.equal(twin(x), model(x))
        assert len(list(twin.parameters())) == len(list(model.parameters()))
        assert twin.config == model.config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_a_shared_core_and_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    mixer = partial(NDMixer, Mamba, bidirectional=True, share="all+direction")
    model = NDBackbone(1, 1, 3, mixer=mixer, depths=(1,), dims=(8,)).to(dtype).eval()
    model.save_pretrained(tmp_path)
    twin, x = NDBackbone.from_pretrained(tmp_path), torch.randn(1, 1, 16, dtype=dtype)
    assert {p.dtype for p in twin.parameters()} == {dtype}
    assert torch.equal(twin(x), model(x))


def test_parameters_keep_a_dtype_of_their_own(tmp_path: Path) -> None:
    model = NDBackbone(1, 1, 3, mixer=partial(NDMixer, Mamba), depths=(1,), dims=(8,)).bfloat16()
    core = model.blocks[0].mixer.core_layer
    core.A_log.data, core.D.data = core.A_log.data.float(), core.D.data.double()
    model.save_pretrained(tmp_path)
    twin = from_pretrained(tmp_path)
    assert {n: p.dtype for n, p in twin.named_parameters()} == {
        n: p.dtype for n, p in model.named_parameters()
    }
    assert twin.blocks[0].mixer.core_layer.A_log._no_weight_decay


@pytest.mark.parametrize("pos_embed", ["sincos", "axes", "learned"])
@pytest.mark.parametrize("size", [32, (32, 24)], ids=str)
def test_another_input_size(pos_embed: str, size: int | tuple[int, int], tmp_path: Path) -> None:
    options = {"mixer": partial(NDMixer, Mamba), "depths": (1,), "dims": (8,), "pos_embed": pos_embed}
    x = torch.randn(1, 1, 32, 24)
    for kind in (NDBackbone, NDUNet):
        model = kind(2, 1, 3, img_size=16, **options).eval()
        model.set_input_size(size)
        model.save_pretrained(tmp_path)
        assert torch.equal(from_pretrained(tmp_path)(x), model(x))


class TestErrors:
    def test_arguments_that_no_config_names(self, tmp_path: Path) -> None:
        model = NDBackbone(1, 1, 3, mixer=lambda d_model: Smear(d_model), depths=(1,), dims=(8,))
        with pytest.raises(ConfigError, match="This NDBackbone has no config: a lambda cannot be a target"):
            model.save_pretrained(tmp_path / "never")
        assert not (tmp_path / "never").exists()

    def test_a_node_that_builds_beside_a_class(self) -> None:
        node = LazyConfig(Through)(inner=LazyConfig(nn.Linear)(in_features=8, out_features=8))
        mixer = partial(NDMixer, [node, Mamba], bidirectional=True)
        model = NDBackbone(1, 1, 3, mixer=mixer, depths=(1,), dims=(8,))
        with pytest.raises(ConfigError, match=r"nvsubq\.NDMixer is a node with a node inside that builds"):
            model.config  # noqa: B018

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
