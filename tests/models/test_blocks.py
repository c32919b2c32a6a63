"""The residual block, stochastic depth, and the sizes of the MLP."""

import pytest
import torch
from model_helpers import Smear
from torch import nn

from nvsubq.models.blocks import MLP, Block, DropPath, LocalConv, drop_path_rates, make_norm


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_block_is_its_formula(norm):
    torch.manual_seed(0)
    block = Block(6, Smear(6), norm=norm)
    x = torch.randn(2, 3, 4, 6)
    y = x + block.mixer(block.norm1(x))
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))


@pytest.mark.parametrize("grid", [(5,), (3, 4), (3, 1, 4)], ids=str)
def test_a_local_convolution_comes_first_and_keeps_channels_apart(grid):
    local = LocalConv(len(grid), 6, 3).double()
    block = Block(6, nn.Identity(), mlp_ratio=0, local_conv=local).double()
    x = torch.randn(2, *grid, 6, dtype=torch.float64, requires_grad=True)
    near = torch.stack([local.conv(x.movedim(-1, 1))[:, c] for c in range(6)], -1)  # channels-last by hand
    torch.testing.assert_close(block(x), x + near + block.norm1(x + near))
    (reach,) = torch.autograd.grad(local(x)[..., 2].sum(), x)
    assert (reach[..., 2] != 0).all()
    assert not reach[..., [0, 1, 3, 4, 5]].any()


def test_no_mlp():
    block = Block(6, nn.Identity(), mlp_ratio=0)
    assert not any("mlp" in name or "norm2" in name for name in block.state_dict())
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(block(x), x + block.norm1(x))


def test_mlp_width():
    assert Block(6, nn.Identity(), mlp_ratio=2.5).mlp.fc1.out_features == 15
    assert MLP(4, 8)(torch.zeros(2, 3, 4)).shape == (2, 3, 4)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    out = drop(torch.ones(4000, 2, 3))
    per_sample = out.flatten(1)
    assert ((per_sample == per_sample[:, :1]).all(1)).all()
    assert sorted(per_sample[:, 0].unique().tolist()) == pytest.approx([0.0, 1 / 0.75])
    assert abs(out.mean().item() - 1) < 0.05
    x = torch.ones(3, 2)
    assert drop.eval()(x) is x


def test_rates_rise_linearly():
    assert drop_path_rates(3, 0.5) == [0.0, 0.25, 0.5]
    assert drop_path_rates(1, 0.5) == [0.5]


def test_unknown_norm():
    with pytest.raises(ValueError, match=r"`norm` \(='batchnorm'\) must be one of 'layernorm', 'rmsnorm'"):
        make_norm("batchnorm", 4)
