"""BlockLinear against dense linear layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nvsubq.cores.block_linear import BlockLinear


@pytest.mark.parametrize("blocks", [1, 2, 6])
@pytest.mark.parametrize("shape", [(6,), (0, 6), (2, 3, 6)])
def test_is_a_linear_layer_of_a_block_diagonal_matrix(blocks: int, shape: tuple[int, ...]) -> None:
    layer = BlockLinear(6, blocks, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    want = F.linear(x, torch.block_diag(*layer.weight), layer.bias)
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-12)


def test_starts_as_small_linear_layers() -> None:
    layer = BlockLinear(800, 8)
    bound = 100**-0.5
    for parameter in layer.parameters():
        assert 0.95 * bound < parameter.abs().max() <= bound


@pytest.mark.parametrize("blocks", [0, 4])
def test_blocks_that_do_not_fit(blocks: int) -> None:
    with pytest.raises(ValueError, match=rf"`blocks` \(={blocks}\) must divide `width` \(=6\)"):
        BlockLinear(6, blocks)
