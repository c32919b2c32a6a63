"""The methods that timm's callers use, natively and for every rank."""

from __future__ import annotations

import copy
import re
from functools import partial

import pytest
import torch
from model_helpers import Smear
from torch import nn

from nvsubq import ConfigError, NDBackbone, NDMixer
from nvsubq.cores import Mamba

SIZES = {1: (29,), 2: (32, 20), 3: (16, 8, 9), 4: (8, 7, 8, 9)}
LAYOUTS = {1: ("NCL", "NLC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC"), 4: ("NCTDHW", "NTDHWC")}


def small(rank: int = 2, **kwargs) -> NDBackbone:
    kwargs = {"mixer": Smear, "depths": (1, 2, 1), "dims": (8, 12, 16), "patch_size": 2} | kwargs
    return NDBackbone(rank, 2, 5, **kwargs).eval()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_attributes(rank):
    model = small(rank)
    assert (model.num_classes, model.num_features, model.head_hidden_size, model.in_chans) == (5, 16, 16, 2)
    assert model.output_fmt == LAYOUTS[rank][1]
    assert model.feature_info == [
        {"num_chs": 8, "reduction": 2, "module": "blocks.0"},
        {"num_chs": 12, "reduction": 4, "module": "blocks.2"},
        {"num_chs": 16, "reduction": 8, "module": "blocks.3"},
    ]
    for info in model.feature_info:
        assert model.get_submodule(info["module"])
    assert small(2, patch_size=(1, 2)).feature_info[1]["reduction"] == (2, 4)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_intermediates_are_the_stages(rank):
    model, x = small(rank), torch.randn(2, 2, *SIZES[rank])
    stages = model.forward_stages(x)
    first, last = LAYOUTS[rank]
    final, features = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    for y, stage in zip(features, stages, strict=True):
        torch.testing.assert_close(y, stage.movedim(-1, 1))
    normed = model.forward_intermediates(x, [0, -1], norm=True, output_fmt=last, intermediates_only=True)
    torch.testing.assert_close(normed[0], stages[0])
    torch.testing.assert_close(normed[1], model.norm(stages[-1]))
    assert len(model.forward_intermediates(x, 2, output_fmt=first, intermediates_only=True)) == 2


def test_stops_early():
    model, x = small(), torch.randn(1, 2, 16, 16)
    ran = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    stages = model.forward_stages(x)
    ran.clear()
    y, features = model.forward_intermediates(x, [0], stop_early=True)
    assert ran == [0]
    torch.testing.assert_close(y, stages[0])
    assert len(features) == 1


def test_one_stage_gives_its_blocks_without_the_class_token():
    mixer = partial(NDMixer, partial(Mamba, d_state=2), bidirectional=True)
    model = small(mixer=mixer, depths=(3,), dims=(8,), class_token=True, global_pool="token")
    assert [info["module"] for info in model.feature_info] == ["blocks.0", "blocks.1", "blocks.2"]
    x = torch.randn(2, 2, 7, 6)
    features = model.forward_intermediates(x, norm=True, intermediates_only=True)
    assert [tuple(y.shape) for y in features] == [(2, 8, 4, 3)] * 3
    torch.testing.assert_close(features[-1].flatten(2).mT, model.forward_features(x)[:, :-1])


def test_pruned():
    model, x = small(), torch.randn(1, 2, 16, 16)
    wanted = model.forward_intermediates(x, [0, 1], intermediates_only=True)
    assert model.prune_intermediate_layers([0, -2]) == [0, 1]
    assert (len(model.blocks), len(model.merges), model.dims, model.depths) == (3, 1, (8, 12), (1, 2))
    assert isinstance(model.norm, nn.Identity)
    assert model(x).shape == (1, 4, 4, 12)
    for got, want in zip(
        model.forward_intermediates(x, [0, 1], intermediates_only=True), wanted, strict=True
    ):
        torch.testing.assert_close(got, want)
    with pytest.raises(ConfigError, match="has no config: its layers were pruned"):
        model.config  # noqa: B018
    assert (model.num_features, model.head_hidden_size, model.num_classes) == (12, 12, 0)
    model.reset_classifier(3, "avg")
    assert model(x).shape == (1, 3)
    whole = small()
    whole.prune_intermediate_layers(1, prune_head=False)
    assert whole(x).shape == (1, 5)
    one = small(depths=(3,), dims=(8,))
    assert one.prune_intermediate_layers([1]) == [1]
    assert len(one.blocks) == 2


def test_a_classifier_that_no_longer_fits():
    model, x = small(), torch.randn(1, 2, 16, 16)
    before = model(x)
    with pytest.raises(
        ValueError,
        match=r"`prune_head` \(=False\) must be True where `indices` \(=\[0\]\) leaves 8 channels: ",
    ):
        model.prune_intermediate_layers([0], prune_head=False)
    torch.testing.assert_close(model(x), before)
    alike = small(depths=(3,), dims=(8,))
    alike.prune_intermediate_layers([1], prune_head=False)
    assert alike(x).shape == (1, 5)
    headless = small()
    headless.reset_classifier(0)
    headless.prune_intermediate_layers([0], prune_head=False)
    assert headless(x).shape == (1, 8)


def test_a_class_token_stays_the_pool_without_a_classifier():
    mixer = partial(NDMixer, partial(Mamba, d_state=2))
    options = {"mixer": mixer, "depths": (2,), "dims": (8,), "class_token": True, "global_pool": "token"}
    x = torch.randn(2, 2, 6, 6)
    pruned, headless = small(**options), small(**options)
    assert pruned.prune_intermediate_layers([0]) == [0]
    assert (len(pruned.blocks), pruned.global_pool, tuple(pruned(x).shape)) == (1, "token", (2, 8))
    headless.reset_classifier(0, "")
    torch.testing.assert_close(headless(x), headless.forward_features(x)[:, -1])
    with pytest.raises(ValueError, match=r"`class_token` \(=True\) needs a `global_pool`, not 'none'"):
        headless.reset_classifier(3, "")
    assert headless.num_classes == 0


def test_another_classifier(tmp_path):
    mixer = partial(NDMixer, partial(Mamba, d_state=2))
    model, x = small(mixer=mixer).double(), torch.randn(2, 2, 16, 16).double()
    assert model.get_classifier() is model.head
    model.reset_classifier(7, "max")
    assert model(x).shape == (2, 7)
    torch.testing.assert_close(
        model.forward_head(model.forward_features(x), pre_logits=True),
        model.forward_features(x).flatten(1, 2).amax(1),
    )
    model.save_pretrained(tmp_path)
    twin = NDBackbone.from_pretrained(tmp_path)
    torch.testing.assert_close(twin(x), model(x))
    model.reset_classifier(0)
    assert model(x).shape == (2, 16)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 2, 2, 16)
    with pytest.raises(ValueError, match=r"`global_pool` \(='token'\) needs `class_token`"):
        model.reset_classifier(3, "token")


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("depths", [(3,), (1, 2, 1)], ids=str)
def test_every_parameter_has_a_group(depths, coarse):
    model = small(depths=depths, dims=(8, 12, 16)[: len(depths)])
    groups = model.group_matcher(coarse)
    patterns = [pattern for pattern, _ in groups["blocks"]]
    for name, _ in model.named_parameters():
        if not name.startswith("head"):
            assert sum(bool(re.match(p, name)) for p in [groups["stem"], *patterns]) == 1, name


@pytest.mark.parametrize("pos_embed", ["sincos", "axes", "learned"])
def test_another_input_size(pos_embed):
    model = small(pos_embed=pos_embed, img_size=16)
    x = torch.randn(1, 2, 24, 20)
    twin = copy.deepcopy(model)
    twin.set_input_size((24, 20))
    torch.testing.assert_close(twin(x), model(x))
    if pos_embed == "learned":
        assert twin.pos_embed.table.shape == (12, 10, 8)
    with pytest.raises(ValueError, match=r"`img_size` \(=\(1, 1\)\) must be at least"):
        twin.set_input_size(1)


def test_errors():
    x = torch.randn(1, 2, 16, 16)
    with pytest.raises(ValueError, match=r"`output_fmt` \(='NCL'\) must be 'NCHW' or 'NHWC'"):
        small().forward_intermediates(x, output_fmt="NCL")
    for indices in ([3], [-4], 0, 4):
        with pytest.raises(ValueError, match=r"must name some of 3 features"):
            small().forward_intermediates(x, indices)
