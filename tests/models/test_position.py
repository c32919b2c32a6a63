"""Position embeddings: on their own grid, on others, after inference_mode, and outside state_dict."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from nvsubq.models.position import POSITIONS, PositionEmbedding, sincos_table

GRIDS = [(7,), (1,), (7, 7), (5, 3), (4, 1, 6)]


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_any_grid(kind, grid):
    embedding = PositionEmbedding(kind, 12, grid)
    for size in (grid, tuple(2 * n + 1 for n in grid), (1,) * len(grid)):
        x = torch.randn(2, *size, 12)
        out = embedding(x)
        assert out.shape == x.shape
        assert torch.equal(out, x) == (kind == "none")


@pytest.mark.parametrize("kind", ["sincos", "axes", "learned"])
def test_tells_every_cell_apart(kind):
    torch.manual_seed(0)
    codes = PositionEmbedding(kind, 12, (5, 7))(torch.zeros(1, 5, 7, 12)).reshape(35, 12)
    distance = torch.cdist(codes, codes) + torch.eye(35)
    assert distance.min() > 1e-3


@pytest.mark.parametrize("kind", ["sincos", "axes", "learned"])
def test_gradients_reach_the_parameters(kind):
    embedding = PositionEmbedding(kind, 12, (4, 4))
    for size in ((4, 4), (5, 3)):
        embedding.zero_grad()
        embedding(torch.zeros(1, *size, 12)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in embedding.parameters())


def test_learned_is_resized_by_interpolation():
    embedding = PositionEmbedding("learned", 3, (4, 4))
    out = embedding(torch.zeros(1, 8, 6, 3))
    table = embedding.table.permute(2, 0, 1)[None]
    expected = F.interpolate(table, size=(8, 6), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(out, expected)


def test_sincos_is_the_same_function_of_the_place_on_every_grid():
    torch.testing.assert_close(sincos_table((9, 5), 16)[:4, :3], sincos_table((4, 3), 16))


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 6, 7, 64])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_sincos_fits_any_width(dim, rank):
    assert sincos_table((3,) * rank, dim).isfinite().all()


def test_trains_after_validation_under_inference_mode():
    embedding = PositionEmbedding("sincos", 8)
    with torch.inference_mode():
        embedding(torch.zeros(1, 4, 4, 8))
    embedding(torch.zeros(1, 4, 4, 8)).sum().backward()
    assert embedding.gain.grad is not None


def test_tables_are_no_state():
    embedding = PositionEmbedding("sincos", 8)
    for n in range(1, 30):
        embedding(torch.zeros(1, n, 4, 8))
    assert set(embedding.state_dict()) == {"gain"}
    assert len(embedding._cache) <= 8
    assert not pickle.loads(pickle.dumps(embedding))._cache
    assert not copy.deepcopy(embedding)._cache


def test_keeps_the_dtype():
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.zeros(1, 4, 4, 8, dtype=dtype)
        for kind in POSITIONS:
            assert PositionEmbedding(kind, 8, (4, 4))(x).dtype == dtype


def test_errors():
    with pytest.raises(
        ValueError, match=r"`pos_embed` \(='rope'\) must be one of 'sincos', 'axes', 'learned', 'none'"
    ):
        PositionEmbedding("rope", 8)
    with pytest.raises(
        ValueError, match=r"`pos_embed` \(='learned'\) needs `img_size`; 'sincos' and 'none' do without"
    ):
        PositionEmbedding("learned", 8)
