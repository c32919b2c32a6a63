"""NDSegmenter: logits at the size of the input, from context and detail; and that it learns."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_helpers import Smear

from nvsubq import LazyConfig, NDMixer, NDSegmenter, NDUNet, instantiate
from nvsubq.cores import Mamba


def small(spatial_dims: int = 2, **kwargs) -> NDSegmenter:
    kwargs = {"mixer": Smear, "depths": (1,), "dims": (12,), "head_channels": 4} | kwargs
    return NDSegmenter(spatial_dims, 1, 3, **kwargs)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "size", [(8,), (13,), (4,), (8, 12), (5, 7), (4, 4, 4), (9, 5, 6), (11, 8, 7)], ids=str
)
def test_logits_at_the_size_of_the_input(size):
    model = small(len(size))
    x = torch.randn(2, 1, *size)
    logits = model(x)
    assert logits.shape == (2, 3, *size)
    F.cross_entropy(logits, torch.zeros(2, *size, dtype=torch.long)).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_padding_does_not_reach_the_logits_of_whole_patches():
    """What lies beyond the input is zero for the patches and for the convolutions alike."""
    model = small(mixer=torch.nn.Identity)
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(model(x)[..., :8, :8], model(x[..., :12, :12])[..., :8, :8])


def test_every_cell_sees_the_whole_field():
    model = small().double()
    x = torch.randn(1, 1, 12, 13, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x)[0, 1, 0, 0], x)
    assert (grad != 0).float().mean() > 0.95


def test_absolute_intensity_is_kept():
    """Two constant fields differ in their logits: a norm over space would make them the same."""
    model = small()
    dark, bright = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.7)
    assert (model(dark) - model(bright)).abs().max() > 1e-2


def test_from_a_config():
    core = LazyConfig(Mamba, partial=True)(d_state=2)
    mixer = LazyConfig(NDMixer, partial=True)(core=core, bidirectional=True)
    node = LazyConfig(NDSegmenter)(mixer=mixer, depths=[1], dims=[8])
    model = instantiate(node, spatial_dims=3, in_channels=1, num_classes=4)
    assert model(torch.randn(1, 1, 5, 6, 7)).shape == (1, 4, 5, 6, 7)


def test_no_weight_decay_gives_full_names():
    assert small(pos_embed="sincos").no_weight_decay() == {
        "backbone.pos_embed.gain",
        "backbone.blocks.0.mixer.decay",
    }


def test_is_the_unet_of_one_stage_named_as_it_was():
    """A checkpoint from before there was `NDUNet` loads."""
    model = small()
    assert {name.split(".")[0] for name in model.state_dict()} == {"backbone", "head"}
    twin = NDUNet(2, 1, 3, mixer=Smear, patch_size=4, depths=(1,), dims=(12,), head_channels=4)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(1, 1, 9, 8)
    assert torch.equal(model(x), twin(x))


def test_checkpointing_and_features():
    model = small()
    model.set_grad_checkpointing()
    x = torch.randn(1, 1, 9, 8)
    assert model.forward_features(x).shape == (1, 3, 2, 12)
    model(x).sum().backward()


@pytest.mark.slow
def test_learns_noisy_blobs():
    """Grey or white by mean intensity, noise far above the difference of single cells' intensities."""
    model = small(3, mixer=partial(NDMixer, Smear), head_channels=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        coarse = torch.rand(4, 1, 2, 2, 2, generator=generator)
        target = (F.interpolate(coarse, size=(16, 16, 16), mode="trilinear") > 0.5).long()[:, 0]
        image = 0.5 + 0.2 * target[:, None] + 0.2 * torch.randn(4, 1, 16, 16, 16, generator=generator)
        return image, target

    for _ in range(100):
        image, target = batch()
        loss = F.cross_entropy(model(image)[:, :2], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image, target = batch()
    accuracy = (model(image)[:, :2].argmax(1) == target).float().mean().item()
    threshold = ((image[:, 0] > 0.6).long() == target).float().mean().item()
    assert accuracy > 0.85 > 0.75 > threshold


class TestErrors:
    @pytest.mark.parametrize(
        ("shape", "text"),
        [
            ((1, 1, 8), r"shape \(1, 1, 8\).*rank 3; `spatial_dims` \(=2\)"),
            ((1, 2, 8, 8), r"shape \(1, 2, 8, 8\), so 2 channels; `in_channels` is 1"),
            ((1, 1, 3, 8), r"size \(3, 8\), which is smaller than the patch; `patch_size` \(=\(4, 4\)\)"),
        ],
        ids=str,
    )
    def test_shapes(self, shape, text):
        with pytest.raises(ValueError, match=text):
            small()(torch.zeros(shape))

    def test_arguments(self):
        with pytest.raises(ValueError, match=r"`num_classes` \(=0\) must be an integer of at least 1"):
            NDSegmenter(2, 1, 0, mixer=Smear)
        with pytest.raises(ValueError, match=r"`head_channels` \(=0\) must be an integer of at least 1"):
            small(head_channels=0)
        with pytest.raises(ValueError, match=r"`head_depth` \(=0\) must be an integer of at least 1"):
            small(head_depth=0)
        with pytest.raises(TypeError, match="globalpool"):
            small(globalpool="avg")
