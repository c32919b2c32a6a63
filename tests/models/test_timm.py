"""The 2-D presets in timm: what its own model tests ask. Skips where timm does not import, and says why."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        import timm
except Exception as error:  # torchvision, which timm imports, raises RuntimeError beside some builds of torch
    pytest.skip(f"timm does not import: {type(error).__name__}: {error}", allow_module_level=True)

from timm.optim import create_optimizer_v2, param_groups_layer_decay

import nvsubq.models.timm_models  # registers them
from nvsubq import NDBackbone

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
NAMES = ["nvsubq_base", "nvsubq_small", "nvsubq_tiny"]
SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20)}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def create(name: str = "nvsubq_tiny", **options) -> NDBackbone:
    return timm.create_model(name, **{**SMALL, **options})


def test_registered() -> None:
    assert sorted(timm.list_models("nvsubq_*")) == NAMES
    assert sorted(nvsubq.models.timm_models.__all__) == NAMES
    assert all(timm.is_model(name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward_of_the_real_size(name: str) -> None:
    model = timm.create_model(name, num_classes=42).train()
    y = model(torch.randn(2, 3, 64, 64))
    assert y.shape == (2, 42)
    y.mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    assert torch.isfinite(y).all()


def test_default_cfg() -> None:
    model = timm.create_model("nvsubq_tiny").eval()
    cfg, state = model.default_cfg, model.state_dict()
    assert model.pretrained_cfg is cfg
    assert model.num_classes == 1000
    x = torch.randn(1, *cfg["input_size"])
    with torch.inference_mode():
        assert model.output_fmt == "NHWC"
        assert model.forward_features(x).shape[1:3] == cfg["pool_size"]
        model.reset_classifier(0)
        assert model(x).shape == (1, model.num_features) == (1, model.head_hidden_size)
        model.reset_classifier(0, "")
        assert model(x).shape == (1, *cfg["pool_size"], model.num_features)
        assert model.forward_head(model.forward_features(x), pre_logits=True).dim() == 4
    assert cfg["classifier"] + ".weight" in state
    assert cfg["first_conv"] + ".weight" in state
    assert state[cfg["first_conv"] + ".weight"].shape[1] == 3


def test_arguments_by_their_names() -> None:
    model = create(num_classes=0, in_chans=1, global_pool="", drop_path_rate=0.3)
    assert model(torch.randn(2, 1, 64, 32)).shape == (2, 2, 1, 20)
    assert model.in_chans == 1
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model.blocks[-1].drop_path.rate == pytest.approx(0.3)
    with pytest.raises(TypeError, match="bananas"):
        create(bananas=3)
    with pytest.raises(ValueError, match=r"`pretrained` \(=True\) must be False: nvsubq_tiny has no weights"):
        create(pretrained=True)


def test_features_only() -> None:
    model = create(features_only=True)
    x = torch.randn(2, 3, 64, 96)
    assert model.feature_info.channels() == [8, 12, 16, 20]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    for y, channels, reduction in zip(model(x), (8, 12, 16, 20), (4, 8, 16, 32), strict=True):
        assert y.shape == (2, channels, 64 // reduction, 96 // reduction)
    some = create(features_only=True, out_indices=(1, -2))
    assert [y.shape[1] for y in some(x)] == [12, 16]
    assert len(some.model.blocks) == 3


def test_intermediates_and_their_layout() -> None:
    model, x = create().eval(), torch.randn(1, 3, 64, 64)
    final, features = model.forward_intermediates(x, indices=2, norm=True)
    torch.testing.assert_close(final, model.forward_features(x))
    assert [tuple(y.shape) for y in features] == [(1, 16, 4, 4), (1, 20, 2, 2)]
    torch.testing.assert_close(features[-1].movedim(1, -1), final)


def test_its_optimizers_leave_alone_what_must_be() -> None:
    model = create()
    exempt = model.no_weight_decay()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    named = dict(model.named_parameters())
    assert exempt
    assert not [name for name in exempt if id(named[name]) in decayed]
    groups = param_groups_layer_decay(model, 0.05, exempt, layer_decay=0.7)
    assert sum(len(g["params"]) for g in groups) == len(named)
    assert len({g["lr_scale"] for g in groups}) >= 4


def test_checkpointing_and_another_size() -> None:
    model = create()
    model.set_grad_checkpointing()
    model.set_input_size((96, 64))
    model.train()(torch.randn(1, 3, 96, 64)).sum().backward()


@pytest.mark.gpu
def test_on_the_gpu() -> None:
    model, x = create().eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():  # not inference mode: what is moved in it cannot be trained
        expected = model(x)
        torch.testing.assert_close(model.cuda()(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    model.train()(x.cuda()).mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
