"""Our models inside MONAI: sliding windows, MetaTensor, FlexibleUNet, a bundle, a training step."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from model_helpers import Smear

import nvsubq.models
from nvsubq import NDUNet, from_yaml, instantiate
from nvsubq.models.sizes import SIZES

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # whatever MONAI's imports warn of
PRESET = Path(nvsubq.models.__file__).parent / "presets" / "unet_3d.yaml"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model() -> NDUNet:
    return instantiate(from_yaml(PRESET)).eval()


def test_sliding_windows_of_any_batch(model: NDUNet) -> None:
    from monai.inferers import SlidingWindowInferer, sliding_window_inference

    x = torch.randn(2, 1, 20, 17, 23)
    with torch.inference_mode():
        tiled = sliding_window_inference(x, (16, 16, 16), sw_batch_size=3, predictor=model, overlap=0.25)
        assert tiled.shape == (2, 4, 20, 17, 23)
        whole = SlidingWindowInferer((20, 17, 23), sw_batch_size=2)(x, model)
        torch.testing.assert_close(whole, model(x))
        alone = sliding_window_inference(x[1:], (16, 16, 16), sw_batch_size=1, predictor=model, overlap=0.25)
    torch.testing.assert_close(tiled[1:], alone, rtol=1e-4, atol=1e-4)


def test_meta_tensors_keep_what_they_know(model: NDUNet) -> None:
    from monai.data import MetaTensor

    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0]))
    x = MetaTensor(torch.randn(1, 1, 8, 9, 10), affine=affine, meta={"name": "scan"})
    with torch.inference_mode():
        y = model(x)
        assert isinstance(y, MetaTensor)
        assert torch.equal(y.affine, affine.double())
        assert y.meta["name"] == "scan"
        torch.testing.assert_close(y.as_tensor(), model(x.as_tensor()))


def test_a_training_step_with_their_loss(model: NDUNet) -> None:
    from monai.losses import DiceCELoss
    from monai.metrics import DiceMetric
    from monai.networks.utils import one_hot

    model.train()
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x = torch.randn(2, 1, 12, 12, 12)
    target = (x > 0).long() + 2 * (x > 1).long().clamp(max=1)
    losses = []
    for _ in range(8):
        loss = loss_of(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    metric = DiceMetric()
    metric(one_hot(model(x).argmax(1, keepdim=True), 4), one_hot(target, 4))
    assert 0 <= float(metric.aggregate()) <= 1


def test_a_bundle_builds_the_same_unet(model: NDUNet) -> None:
    from monai.bundle import ConfigParser

    parser = ConfigParser({"network_def": yaml.safe_load(PRESET.read_text())})
    theirs = parser.get_parsed_content("network_def")
    assert isinstance(theirs, NDUNet)
    theirs.load_state_dict(model.state_dict())
    x = torch.randn(1, 1, 9, 8, 11)
    assert torch.equal(theirs.eval()(x), model(x))


class TestFlexibleUNet:
    @pytest.fixture(autouse=True)
    def _registered(self) -> None:
        from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE

        from nvsubq.models.monai_encoder import NDEncoder

        FLEXUNET_BACKBONE.register_class(NDEncoder)
        self.encoder = NDEncoder

    def test_what_it_asks_an_encoder(self) -> None:
        names = [f"nvsubq-{name}" for name in SIZES]
        assert self.encoder.get_encoder_names() == names
        assert self.encoder.num_outputs() == [4, 4, 4]
        assert self.encoder.num_channels_per_output() == [size.dims for size in SIZES.values()]
        for parameters in self.encoder.get_encoder_parameters():
            assert {"spatial_dims", "in_channels", "pretrained"} < parameters.keys()
            assert parameters["pretrained"] is False

    @pytest.mark.parametrize("size", [(32, 48), (16, 32, 16)], ids=str)
    def test_each_map_is_half_of_the_last(self, size: tuple[int, ...]) -> None:
        encoder = self.encoder(len(size), 2, depths=(1, 1, 1, 1), dims=(4, 6, 8, 10), mixer=Smear)
        maps = encoder(torch.randn(1, 2, *size))
        assert [tuple(y.shape) for y in maps] == [
            (1, dim, *(n // 2 ** (level + 1) for n in size)) for level, dim in enumerate((4, 6, 8, 10))
        ]

    @pytest.mark.parametrize("size", [(32, 48), (16, 16, 32)], ids=str)
    def test_logits_at_the_size_of_the_input(self, size: tuple[int, ...]) -> None:
        from monai.networks.nets import FlexibleUNet

        model = FlexibleUNet(2, 3, "nvsubq-tiny", spatial_dims=len(size))
        y = model(torch.randn(2, 2, *size))
        assert y.shape == (2, 3, *size)
        y.square().mean().backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None and "encoder" in n]

    def test_nothing_is_fetched(self) -> None:
        from monai.networks.nets import FlexibleUNet

        with pytest.raises(ValueError, match=r"`pretrained` \(=True\) must be False: nvsubq has no weights"):
            FlexibleUNet(1, 3, "nvsubq-tiny", pretrained=True)

    def test_any_core(self) -> None:
        from nvsubq.cores import S5
        from nvsubq.models.sizes import preset_mixer

        encoder = self.encoder(
            2, 1, depths=(1, 1), dims=(8, 8), mixer=preset_mixer(2, partial(S5, d_state=8))
        )
        assert type(encoder.backbone.blocks[0].mixer.core_layer) is S5
