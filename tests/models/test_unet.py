"""NDUNet: logits at the size of the input by stages and a decoder, for every rank and size."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_helpers import Smear

from nvsubq import LazyConfig, NDMixer, NDUNet, instantiate
from nvsubq.cores import Mamba


def small(spatial_dims: int = 2, **kwargs) -> NDUNet:
    kwargs = {"mixer": Smear, "depths": (1, 1, 1), "dims": (8, 12, 16), "head_channels": 4} | kwargs
    return NDUNet(spatial_dims, 1, 3, **kwargs)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [(16,), (13,), (2,), (8, 12), (5, 7), (9, 5, 6), (2, 2, 2)], ids=str)
def test_logits_at_the_size_of_the_input(size):
    model = small(len(size), local_conv=3)
    logits = model(torch.randn(2, 1, *size))
    assert logits.shape == (2, 3, *size)
    F.cross_entropy(logits, torch.zeros(2, *size, dtype=torch.long)).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_every_part_is_used():
    """Stages, skips and the detail path: what each is given reaches the logits."""
    model = small().double()
    x = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    model(x).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if not p.grad.abs().sum()]
    base = model(x)
    for part in (*model.backbone.blocks, *model.ups, model.head.detail[0]):
        handle = part.register_forward_hook(lambda module, args, out: out * 0)
        assert not torch.allclose(model(x), base)
        handle.remove()


def test_a_sample_does_not_depend_on_its_batch():
    model = small().eval()
    x = torch.randn(3, 1, 9, 10)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


def test_nothing_is_normalised_over_space():
    """Without a mixer that looks far, whole patches do not know how large a crop they lie in."""
    model = small(mixer=torch.nn.Identity).double()
    x = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(model(x)[..., :8, :8], model(x[..., :48, :40])[..., :8, :8])
    dark, bright = torch.full((1, 1, 16, 16), 0.2).double(), torch.full((1, 1, 16, 16), 0.7).double()
    assert (model(dark) - model(bright)).abs().max() > 1e-2


def test_from_a_config():
    mixer = LazyConfig(NDMixer, partial=True)(
        core=LazyConfig(Mamba, partial=True)(d_state=2), scan={"alternate": ["row_major", "column_major"]}
    )
    node = LazyConfig(NDUNet)(mixer=mixer, depths=[1, 1], dims=[8, 8])
    model = instantiate(node, spatial_dims=3, in_channels=2, out_channels=4)
    assert model(torch.randn(1, 2, 5, 6, 7)).shape == (1, 4, 5, 6, 7)
    assert "backbone.blocks.0.mixer.core_layer.A_log" in model.no_weight_decay()


def test_checkpointing_and_features():
    model = small(mixer=partial(NDMixer, partial(Mamba, d_state=2)))
    model.set_grad_checkpointing()
    x = torch.randn(1, 1, 9, 8)
    assert model.forward_features(x).shape == (1, 2, 1, 16)
    model(x).sum().backward()


def test_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(small()(torch.randn(1, 1, 9, 8))).all()


def test_errors():
    with pytest.raises(ValueError, match=r"`out_channels` \(=0\) must be an integer of at least 1"):
        NDUNet(2, 1, 0, mixer=Smear)
    with pytest.raises(ValueError, match=r"shape \(1, 2, 8, 8\), so 2 channels; `in_channels` is 1"):
        small()(torch.zeros(1, 2, 8, 8))
    with pytest.raises(TypeError, match="num_classes"):
        small(num_classes=3)
