"""Parameters and operations of a model against counts by hand."""

from functools import partial

import pytest
import torch
from torch import nn

from nvsubq import NDBackbone, NDMixer
from nvsubq.cores import RGLRU, S5, Attention, Mamba, Mamba2
from nvsubq.models import cost
from nvsubq.ops import selective_scan

_CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


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
        (partial(Mamba, d_state=8, a_init="s4d_lin"), "nvsubq.selective_scan", 2 * 12 * 32 * (17 * 8 + 4)),
        (Attention, _CPU_ATTENTION, 2 * 2 * 12 * 12 * (16 + 16)),
        (partial(Attention, num_heads=4, causal=False), _CPU_ATTENTION, 2 * 2 * 12 * 12 * (16 + 16)),
    ],
    ids=["complex pairs", "heads", "gates", "complex A", "causal attention", "attention of 4 heads"],
)
def test_recurrences_of_the_other_cores(core, op, flops):
    mixer = NDMixer(core, d_model=16)
    assert cost(mixer, (2, 3, 4, 16)).by_op[op] == flops


def test_all_of_attention_is_counted():
    projections = 2 * 1024 * 64 * (3 * 64 + 64)
    assert cost(Attention(64), (1, 1024, 64)).flops == projections + 4 * 1024 * 1024 * 64


def test_complex_inputs_of_the_scan():
    class Scan(nn.Module):
        def forward(self, u):
            A, B = torch.zeros(4, 3, dtype=torch.cfloat), torch.zeros(2, 5, 3, dtype=torch.cfloat)
            return selective_scan(u, u, A, B, B)

    assert cost(Scan(), (2, 5, 4)).flops == 2 * 5 * 4 * (21 * 3 + 4)


@pytest.mark.parametrize("pos_embed", ["sincos", "axes", "learned"])
def test_the_model_runs_and_trains_after(pos_embed):
    mixer = partial(NDMixer, Mamba, scan="snake")
    model = NDBackbone(2, 1, 3, depths=(1,), dims=(8,), mixer=mixer, pos_embed=pos_embed, img_size=16)
    counted = cost(model, (1, 1, 16, 16))
    model(torch.randn(1, 1, 16, 16)).sum().backward()
    assert cost(model, (1, 1, 16, 16)) == counted


def test_a_frozen_part_stays_frozen():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())).train()
    model[1].eval()
    cost(model, (3, 2))
    assert [module.training for module in model.modules()] == [True, True, False, False, False]


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
