"""Parameters and operations of a model against counts by hand."""

from functools import partial

import pytest
import torch
from torch import nn

from nvsubq import NDBackbone, NDMixer
from nvsubq.cores import RGLRU, S5, Mamba, Mamba2
from nvsubq.models import cost


def test_a_backbone_by_hand():
    B, side, C, N, K, out = 2, 8, 16, 4, 4, 10
    mixer = partial(NDMixer, partial(Mamba, d_state=N, d_conv=K), bidirectional=True, fuse="mean")
    model = NDBackbone(2, 3, out, mixer=mixer, patch_size=2, depths=(1, 1), dims=(C, 2 * C), local_conv=3)

    def block(dim: int, cells: int) -> tuple[int, int]:
        D = 2 * dim
        products = 2 * dim * D + D * (R_of(dim) + 2 * N) + R_of(dim) * D + D * dim  # in, x, dt, out
        core = products + D * (K + 1) + D + D * N + D  # conv and its bias, dt's bias, A_log, D
        walk = 2 * products + 2 * D * K + D * (7 * N + 3)
        mlp = 2 * dim * 2 * dim
        local = 9 * dim
        parameters = 2 * core + mlp + 3 * dim + local + dim + 4 * dim  # biases of the MLP, local, two norms
        return parameters, B * cells * (2 * walk + 2 * mlp + 2 * local)

    def R_of(dim: int) -> int:
        return -(-dim // 16)

    cells = (side // 2) ** 2
    first, second = block(C, cells), block(2 * C, cells // 4)
    patch = 3 * 4 * C
    merge = 4 * C * 2 * C
    parameters = patch + C + C + first[0] + 2 * C + merge + 2 * C + second[0] + 4 * C + 2 * C * out + out
    flops = 2 * B * (cells * patch + cells // 4 * merge + 2 * C * out) + first[1] + second[1]
    found = cost(model, (B, 3, side, side))
    assert found.parameters == parameters
    assert found.flops == flops
    assert sum(found.by_op.values()) == flops


@pytest.mark.parametrize(
    ("core", "op", "flops"),
    [
        (partial(S5, d_state=8), "nvsubq.linear_scan", 2 * 12 * 8 * 8),
        (partial(Mamba2, d_state=8, headdim=8), "nvsubq.ssd_scan", 2 * 12 * 32 * (5 * 8 + 2)),
        (RGLRU, "nvsubq.rglru_scan", 2 * 12 * 16 * 10),
    ],
    ids=["complex pairs", "heads", "gates"],
)
def test_recurrences_of_the_other_cores(core, op, flops):
    mixer = NDMixer(core, d_model=16)
    assert cost(mixer, (2, 3, 4, 16)).by_op[op] == flops


def test_nothing_is_computed_or_changed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).train()
    found = cost(model, (1, 3, 4096, 4096))
    assert found.flops == 2 * 4096**2 * 8 * 27
    assert found.parameters == 8 * 27 + 8 + 16
    assert model.training
    assert int(model[1].num_batches_tracked) == 0
    assert not any(p.grad is not None for p in model.parameters())
    assert cost(nn.Identity(), (1, 2)).flops == 0
    assert cost(nn.Linear(4, 3).double(), (1, 4)).flops == 24
    assert isinstance(model(torch.zeros(1, 3, 8, 8)), torch.Tensor)
