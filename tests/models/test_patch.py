"""Patch embeddings against torch's strided convolution, their grids at any size, and the way back."""

import math

import pytest
import torch
import torch.nn.functional as F

from nvsubq.models.patch import ConvNd, ConvStem, PatchEmbed, PatchExpand, PatchMerge

CASES = [
    ((4,), (28,)),
    ((4, 4), (28, 28)),
    ((2, 3), (8, 9)),
    ((1, 2, 4), (3, 6, 8)),
    ((7,), (7,)),
    ((1,), (5,)),
]
RAGGED = [
    ((4,), (29,)),
    ((4, 4), (30, 5)),
    ((3, 2), (13, 17)),
    ((2, 3, 4), (5, 4, 11)),
    ((4, 4, 4), (4, 5, 7)),
]
CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("patch", "size"), CASES + RAGGED, ids=str)
def test_is_the_strided_convolution_with_zeros_at_the_far_end(patch, size):
    embed = PatchEmbed(2, 6, patch_size=patch).double()
    x = torch.randn(3, 2, *size, dtype=torch.float64)
    padded = torch.zeros(
        3, 2, *(-(-n // p) * p for n, p in zip(size, patch, strict=True)), dtype=torch.float64
    )
    padded[(..., *(slice(0, n) for n in size))] = x
    expected = CONVS[len(patch)](padded, embed.proj.weight, embed.proj.bias, stride=patch).movedim(1, -1)
    torch.testing.assert_close(embed(x), expected)


@pytest.mark.parametrize(("patch", "size"), CASES + RAGGED, ids=str)
@pytest.mark.parametrize("stem", [PatchEmbed, ConvStem])
def test_grid_and_a_real_cell_in_every_token(stem, patch, size):
    embed = stem(1, 4, patch_size=patch).double()
    x = torch.randn(1, 1, *size, dtype=torch.float64, requires_grad=True)
    out = embed(x)
    assert out.shape == (1, *(-(-n // p) for n, p in zip(size, patch, strict=True)), 4)
    for token in out.reshape(-1, 4):
        (grad,) = torch.autograd.grad(token.sum(), x, retain_graph=True)
        assert grad.abs().sum() > 0


def test_padding_adds_nothing_to_the_real_cells():
    embed = PatchEmbed(1, 4, patch_size=(4, 4))
    x = torch.randn(1, 1, 9, 8)
    torch.testing.assert_close(embed(x)[:, :2], embed(x[:, :, :8]))


def test_non_contiguous_input():
    embed = PatchEmbed(3, 4, patch_size=(2, 2))
    x = torch.randn(2, 8, 6, 3).movedim(-1, 1)
    torch.testing.assert_close(embed(x), embed(x.contiguous()))


@pytest.mark.parametrize("patch", [1, 2, 3, 4, 6, 7, 8, 12])
def test_conv_stem_strides_multiply_to_the_patch(patch):
    stem = ConvStem(1, 32, patch_size=(patch, 1))
    strides = [conv.conv.stride for conv in stem.convs]
    assert math.prod(s[0] for s in strides) == patch
    assert all(s[1] == 1 for s in strides)
    assert stem.convs[-1].conv.out_channels == 32


@pytest.mark.parametrize(("patch", "size"), CASES + RAGGED, ids=str)
def test_expand_gives_every_cell_the_output_of_its_own_token(patch, size):
    grid = tuple(-(-n // p) for n, p in zip(size, patch, strict=True))
    expand = PatchExpand(4, 3, patch_size=patch)
    tokens = torch.randn(2, *grid, 4)
    out = expand(tokens, size)
    assert out.shape == (2, *size, 3)
    last = tuple(n - 1 for n in size)
    own, inside = (
        tuple(n // p for n, p in zip(last, patch, strict=True)),
        tuple(n % p for n, p in zip(last, patch, strict=True)),
    )
    expected = expand.proj(tokens[(slice(None), *own)]).reshape(2, *patch, 3)[(slice(None), *inside)]
    torch.testing.assert_close(out[(slice(None), *last)], expected)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_nd_is_torchs_convolution_in_channels_last(rank):
    conv = ConvNd(rank, 3, 5, kernel_size=(3,) * rank)
    x = torch.randn(2, *range(4, 4 + rank), 3)
    torch.testing.assert_close(conv(x), conv.conv(x.movedim(-1, 1).contiguous()).movedim(1, -1))
    assert conv(x).shape == (*x.shape[:-1], 5)


@pytest.mark.parametrize("grid", [(8,), (7,), (4, 6), (5, 3), (1, 1), (3, 4, 5)], ids=str)
def test_a_merge_is_a_convolution_of_two_cells_with_zeros_at_the_far_end(grid):
    merge = PatchMerge(len(grid), 3, 5).double()
    x = torch.randn(2, *grid, 3, dtype=torch.float64)
    padded = torch.zeros(2, *(n + n % 2 for n in grid), 3, dtype=torch.float64)
    padded[(slice(None), *(slice(0, n) for n in grid))] = x
    weight = merge.proj.weight.reshape(5, *[2] * len(grid), 3).movedim(-1, 1)
    expected = CONVS[len(grid)](padded.movedim(-1, 1), weight, merge.proj.bias, stride=2).movedim(1, -1)
    torch.testing.assert_close(merge(x), expected)
