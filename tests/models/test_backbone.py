"""NDBackbone: every rank and size by one path, what it builds, and what it refuses."""

import copy
from functools import partial

import pytest
import torch
from model_helpers import Smear
from torch import nn

from nvsubq import LazyConfig, NDBackbone, NDMixer, NDUNet, instantiate
from nvsubq.cores import Mamba

SIZES = {1: [(784,), (4,), (13,)], 2: [(28, 28), (4, 4), (5, 31)], 3: [(8, 8, 8), (4, 5, 4), (7, 9, 11)]}


def small(spatial_dims: int = 2, **kwargs) -> NDBackbone:
    kwargs = {"mixer": Smear, "depths": (2,), "dims": (12,)} | kwargs
    return NDBackbone(spatial_dims, 1, 5, **kwargs)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_any_rank_and_size(rank, stem):
    model = small(rank, stem=stem)
    for size in SIZES[rank]:
        x = torch.randn(2, 1, *size)
        grid = tuple(-(-n // 4) for n in size)
        assert model(x).shape == (2, 5)
        assert model.forward_features(x).shape == (2, *grid, 12)


@pytest.mark.parametrize("pos_embed", ["sincos", "axes", "learned", "none"])
def test_positions_at_other_sizes(pos_embed):
    model = small(img_size=(28, 20), pos_embed=pos_embed)
    keys = set(model.state_dict())
    for size in ((28, 20), (28, 21), (64, 4)):
        model(torch.randn(2, 1, *size)).sum().backward()
    assert set(model.state_dict()) == keys


def test_every_parameter_gets_a_gradient():
    model = small(stem="conv")
    model(torch.randn(2, 1, 9, 10)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]


def test_a_sample_does_not_depend_on_its_batch():
    model = small().eval()
    x = torch.randn(3, 1, 9, 10)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


def test_mixers_get_width_and_index():
    model = small(depths=[3])
    assert [block.mixer.layer_idx for block in model.blocks] == [0, 1, 2]
    assert {block.mixer.d_model for block in model.blocks} == {12}
    nested = small(mixer=partial(NDMixer, partial(Mamba, d_state=2), bidirectional=True))
    assert [block.mixer.core_layer_rev.layer_idx for block in nested.blocks] == [0, 1]


def test_a_mixer_that_needs_neither():
    assert small(mixer=nn.Identity)(torch.randn(1, 1, 8, 8)).shape == (1, 5)


def test_from_a_config():
    core = LazyConfig(Mamba, partial=True)(d_state=2)
    mixer = LazyConfig(NDMixer, partial=True)(core=core, bidirectional=True)
    node = LazyConfig(NDBackbone)(mixer=mixer, depths=[1], dims=[8])
    model = instantiate(node, spatial_dims=1, in_channels=2, num_classes=3)
    assert model(torch.randn(2, 2, 17)).shape == (2, 3)


def test_no_classifier_and_no_pool():
    x = torch.randn(2, 1, 8, 12)
    model = small(global_pool="none")
    assert model(x).shape == (2, 2, 3, 5)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 2, 3, 12)
    features = NDBackbone(2, 1, 0, mixer=Smear, dims=(12,), global_pool="max").eval()
    tokens = features.forward_features(x)
    torch.testing.assert_close(features(x), tokens.flatten(1, 2).amax(1))
    assert not any(name.startswith("head") for name in features.state_dict())
    average = small().eval()
    expected = average.head(average.forward_features(x).flatten(1, 2).mean(1))
    torch.testing.assert_close(average(x), expected)


def test_no_weight_decay_gives_full_names():
    names = small().no_weight_decay()
    assert names == {"pos_embed.gain", "blocks.0.mixer.decay", "blocks.1.mixer.decay"}
    axes = small(pos_embed="axes", img_size=8)
    assert {"pos_embed.tables.0", "pos_embed.tables.1"} < axes.no_weight_decay()
    assert names <= dict(small().named_parameters()).keys()
    mamba = small(mixer=partial(NDMixer, Mamba))
    assert {"blocks.1.mixer.core_layer.A_log", "blocks.1.mixer.core_layer.D"} < mamba.no_weight_decay()


def test_dropout_and_stochastic_depth_act_in_training_alone():
    model = small(drop_rate=0.5, drop_path_rate=0.5)
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.5]
    x = torch.randn(2, 1, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_checkpointing_changes_nothing_but_memory():
    model, x = small(drop_path_rate=0.5), torch.randn(2, 1, 8, 8)
    grads = []
    for enable in (False, True):
        twin = copy.deepcopy(model)
        twin.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        twin(x).square().sum().backward()
        grads.append([p.grad for p in twin.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_autocast_and_double():
    x = torch.randn(2, 1, 9, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        small()(x).float().sum().backward()
    assert small().double()(x.double()).dtype == torch.float64


class TestStages:
    @pytest.mark.parametrize("rank", [1, 2, 3])
    def test_each_halves_the_grid(self, rank):
        model = small(rank, depths=(1, 2, 1), dims=(8, 12, 16), patch_size=2, local_conv=3)
        for size in SIZES[rank]:
            stages = model.forward_stages(torch.randn(2, 1, *size))
            for level, (x, dim) in enumerate(zip(stages, (8, 12, 16), strict=True)):
                assert x.shape == (2, *(-(-n // 2 ** (level + 1)) for n in size), dim)
            assert model(torch.randn(2, 1, *size)).shape == (2, 5)

    def test_layers_are_numbered_through(self):
        model = small(depths=(1, 2), dims=(8, 12), drop_path_rate=0.5)
        assert [block.mixer.layer_idx for block in model.blocks] == [0, 1, 2]
        assert [block.mixer.d_model for block in model.blocks] == [8, 12, 12]
        assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.25, 0.5]

    def test_every_parameter_gets_a_gradient(self):
        model = small(depths=(1, 1), dims=(8, 12), stem="conv", local_conv=3)
        model(torch.randn(2, 1, 9, 10)).square().sum().backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]

    def test_one_stage_is_named_as_it_was(self):
        """A checkpoint from before there were stages loads."""
        assert set(small(depths=(1,)).state_dict()) == {
            *(f"{name}.{p}" for name in ("patch_embed.proj", "norm", "head") for p in ("weight", "bias")),
            *(f"blocks.0.{name}.{p}" for name in ("norm1", "norm2") for p in ("weight", "bias")),
            *(f"blocks.0.{name}.{p}" for name in ("mlp.fc1", "mlp.fc2") for p in ("weight", "bias")),
            *(f"blocks.0.mixer.{name}" for name in ("proj.weight", "proj.bias", "decay")),
            "pos_embed.gain",
        }

    def test_checkpointing_changes_nothing_but_memory(self):
        model, x = small(depths=(1, 1), dims=(8, 12), local_conv=3), torch.randn(2, 1, 9, 8)
        grads = []
        for enable in (False, True):
            twin = copy.deepcopy(model)
            twin.set_grad_checkpointing(enable)
            twin(x).square().sum().backward()
            grads.append([p.grad for p in twin.parameters()])
        for plain, recomputed in zip(*grads, strict=True):
            torch.testing.assert_close(plain, recomputed)


class TestClassToken:
    mixer = staticmethod(partial(NDMixer, partial(Mamba, d_state=2), bidirectional=True, scan="snake"))

    @pytest.mark.parametrize("rank", [1, 2, 3])
    def test_beside_the_cells(self, rank):
        model = small(rank, mixer=self.mixer, class_token=True, global_pool="token", local_conv=3).double()
        for size in SIZES[rank]:
            x = torch.randn(2, 1, *size, dtype=torch.float64, requires_grad=True)
            tokens = model.forward_features(x)
            cells = 1
            for n in size:
                cells *= -(-n // 4)
            assert tokens.shape == (2, cells + 1, 12)
            torch.testing.assert_close(model(x), model.head(tokens[:, -1]))
            (reach,) = torch.autograd.grad(model(x)[0].sum(), x)
            assert (reach[0] != 0).all()
            assert not reach[1].any()

    def test_pools_over_cells_without_it(self):
        model = small(mixer=self.mixer, class_token=True).eval()
        tokens = model.forward_features(torch.randn(2, 1, 8, 8))
        torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens[:, :-1].mean(1))
        assert "class_token" in model.no_weight_decay()

    def test_checkpointing(self):
        model = small(mixer=self.mixer, class_token=True)
        model.set_grad_checkpointing()
        model(torch.randn(2, 1, 8, 8)).sum().backward()
        assert model.class_token.grad is not None


class TestErrors:
    def test_rank(self):
        with pytest.raises(
            ValueError, match=r"shape \(2, 1, 8\).*rank 3; `spatial_dims` \(=2\) needs \[B, C, S1, S2\]"
        ):
            small()(torch.zeros(2, 1, 8))

    def test_channels(self):
        with pytest.raises(ValueError, match=r"shape \(2, 3, 8, 8\), so 3 channels; `in_channels` is 1"):
            small()(torch.zeros(2, 3, 8, 8))

    @pytest.mark.parametrize("stem", ["patch", "conv"])
    def test_smaller_than_a_patch(self, stem):
        with pytest.raises(
            ValueError, match=r"size \(8, 3\), which is smaller than the patch; `patch_size` \(=\(4, 4\)\)"
        ):
            small(stem=stem)(torch.zeros(2, 1, 8, 3))

    @pytest.mark.parametrize(
        ("kwargs", "text"),
        [
            (
                {"depths": (2, 2), "dims": (8, 16), "class_token": True},
                r"`class_token` \(=True\) needs one stage; `depths` \(=\[2, 2\]\) asks for 2",
            ),
            ({"class_token": 1}, r"`class_token` \(=1\) must be True or False"),
            (
                {"class_token": True},
                r"`class_token` needs a `mixer` whose forward takes `spatial`.*Smear does not",
            ),
            (
                {"class_token": True, "global_pool": "none"},
                r"`class_token` \(=True\) needs a `global_pool`, not 'none'",
            ),
            ({"global_pool": "token"}, r"`global_pool` \(='token'\) needs `class_token`"),
            ({"local_conv": 4}, r"`local_conv` \(=4\) must be odd"),
            ({"local_conv": -1}, r"`local_conv` \(=-1\) must be an integer of at least 0"),
            (
                {"depths": (), "dims": ()},
                r"`depths` \(=\(\)\) must be a list with one integer for each stage",
            ),
            (
                {"depths": (2, 2)},
                r"`depths` \(=\[2, 2\]\) and `dims` \(=\[12\]\) must have one entry for each stage",
            ),
            ({"depths": 2}, r"`depths` \(=2\) must be a list with one integer for each stage"),
            ({"dims": (0,)}, r"`dims` \(=0\) must be an integer of at least 1"),
            ({"patch_size": 0}, r"`patch_size` \(=0\) must be an integer of at least 1"),
            ({"patch_size": (4, 4, 4)}, r"`patch_size` \(=\(4, 4, 4\)\) must be one integer, or 2"),
            ({"img_size": 3}, r"`img_size` \(=\(3, 3\)\) must be at least `patch_size` \(=\(4, 4\)\)"),
            ({"pos_embed": "learned"}, r"`pos_embed` \(='learned'\) needs `img_size`"),
            (
                {"pos_embed": "rope"},
                r"`pos_embed` \(='rope'\) must be one of 'sincos', 'axes', 'learned', 'none'",
            ),
            ({"norm": "batchnorm"}, r"`norm` \(='batchnorm'\) must be one of 'layernorm', 'rmsnorm'"),
            ({"stem": "hard"}, r"`stem` \(='hard'\) must be one of 'patch', 'conv'"),
            (
                {"global_pool": "sum"},
                r"`global_pool` \(='sum'\) must be one of 'avg', 'max', 'token', 'none'",
            ),
            ({"drop_rate": 1.0}, r"`drop_rate` \(=1.0\) must be a number from 0 up to, but not including, 1"),
            ({"drop_path_rate": -0.1}, r"`drop_path_rate` \(=-0.1\) must be a number from 0"),
            ({"mlp_ratio": -1}, r"`mlp_ratio` \(=-1\) must be a number of at least 0"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_arguments(self, kwargs, text):
        with pytest.raises(ValueError, match=text):
            small(**kwargs)

    @pytest.mark.parametrize(
        ("args", "text"),
        [
            ((5, 1, 5), r"`spatial_dims` \(=5\) must be 1, 2, 3 or 4\."),
            ((2, 0, 5), r"`in_channels` \(=0\) must be an integer of at least 1"),
            ((2, 1, -1), r"`num_classes` \(=-1\) must be an integer of at least 0"),
        ],
    )
    def test_first_arguments(self, args, text):
        with pytest.raises(ValueError, match=text):
            NDBackbone(*args, mixer=Smear)

    def test_misspelt_keyword(self):
        with pytest.raises(TypeError, match="patchsize"):
            small(patchsize=4)

    def test_built_mixer(self):
        with pytest.raises(TypeError, match=r"`mixer` is a built Smear.*add `_partial_: true`"):
            small(mixer=Smear(12))

    def test_width_of_the_core_conflicts(self):
        with pytest.raises(ValueError, match=r"`d_model` \(=12\) differs from the `d_model` \(=8\)"):
            small(mixer=partial(NDMixer, partial(Mamba, d_model=8)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_core_of_another_dtype(dtype):
    core = partial(Mamba, dtype=dtype)
    for kind in (NDBackbone, NDUNet):
        message = (
            rf"`core\.dtype` \(='{dtype}'\) must be .* 'float32': leave it out.* model\.to\(torch\.{dtype}\)"
        )
        with pytest.raises(ValueError, match=message):
            kind(2, 1, 3, depths=(1,), dims=(8,), mixer=partial(NDMixer, core, bidirectional=True))
    model = NDBackbone(
        2, 1, 3, depths=(1,), dims=(8,), mixer=partial(NDMixer, partial(Mamba, dtype="float32"))
    )
    cast = model.to(getattr(torch, dtype))
    assert cast(torch.randn(1, 1, 8, 8, dtype=cast.head.weight.dtype)).dtype == cast.head.weight.dtype
