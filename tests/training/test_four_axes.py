"""A model of four axes (x, y, z, t) from the command line to its report."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from nvsubq import NDBackbone, NDMixer, NDUNet
from nvsubq.cli.main import main
from nvsubq.cores import Mamba


def model(**options) -> NDBackbone:
    mixer = partial(NDMixer, partial(Mamba, d_state=2), bidirectional=True)
    return NDBackbone(4, 1, 3, depths=(1, 1), dims=(8, 12), mixer=mixer, patch_size=(2, 2, 3, 1), **options)


@pytest.mark.parametrize("pos_embed", ["sincos", "none"])
def test_any_size(pos_embed):
    torch.manual_seed(0)
    net = model(pos_embed=pos_embed)
    for size in ((4, 6, 3, 2), (5, 3, 7, 1)):
        net.zero_grad()
        net(torch.randn(2, 1, *size)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters() if p.numel() > 1)
    grids = [tuple(x.shape) for x in net.forward_stages(torch.randn(2, 1, 5, 3, 7, 1))]
    assert grids == [(2, 3, 2, 3, 1, 8), (2, 2, 1, 2, 1, 12)]


def test_a_patch_is_the_convolution_of_its_cells():
    """Along a last axis of one cell, four axes are three."""
    torch.manual_seed(0)
    embed = model().patch_embed
    x = torch.randn(2, 1, 4, 6, 6, 1)
    weight = embed.proj.weight.squeeze(-1)
    expected = torch.nn.functional.conv3d(x[..., 0], weight, embed.proj.bias, stride=(2, 2, 3)).movedim(1, -1)
    torch.testing.assert_close(embed(x)[..., 0, :], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "conv"}, r"`stem` \(='conv'\) must be 'patch' where `spatial_dims` is 4"),
        ({"local_conv": 3}, r"`local_conv` \(=3\) must be 0 where `spatial_dims` is 4"),
        (
            {"pos_embed": "learned", "img_size": 8},
            r"`pos_embed` \(='learned'\) must be 'sincos' or 'axes' or 'none' where",
        ),
    ],
)
def test_what_torch_has_only_up_to_three_axes(options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_a_unet_has_at_most_three():
    with pytest.raises(ValueError, match=r"`spatial_dims` \(=4\) must be 1, 2 or 3"):
        NDUNet(4, 1, 2, mixer=partial(NDMixer, Mamba))


@pytest.mark.parametrize("scan", ["row_major", "snake", "axes(3,0,1,2)"])
def test_through_the_command_line(scan, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ("data.crops_per_epoch=16", "data.crop_size=[8,16,4,2]", "data.batch_size=4", "epochs=1")
    assert main(["train", "experiment=epi", f"model.mixer.scan='{scan}'", *small]) == 0
    run = tmp_path / "runs" / "latest"
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["steps"] == 4
    assert figures["data"]["spatial_size"] == [8, 16, 4, 2]
    assert "Examples, worst first" in (run / "report.html").read_text()
    assert main(["evaluate", str(run)]) == 0
    assert "The stored numbers are the same." in capsys.readouterr().out
