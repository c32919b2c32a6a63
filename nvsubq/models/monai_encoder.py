"""The presets as encoders of MONAI's FlexibleUNet (the extra `monai`).

from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE, FlexibleUNet
from nvsubq.models.monai_encoder import NDEncoder

FLEXUNET_BACKBONE.register_class(NDEncoder)
model = FlexibleUNet(1, 4, "nvsubq-tiny", spatial_dims=3)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.blocks import BaseEncoder
from torch import Tensor, nn

from nvsubq.models.backbone import NDBackbone
from nvsubq.models.blocks import make_norm
from nvsubq.models.sizes import SIZES, preset_mixer

__all__ = ["NDEncoder"]

_PREFIX = "nvsubq-"


class NDEncoder(nn.Module, BaseEncoder):
    """The stages of an `NDBackbone` on patches of 2: maps at 1/2, 1/4, ... of the input, channels-first.

    Each map is half of the one before; of odd sizes the larger half. FlexibleUNet itself needs exact halves:
    sizes that are multiples of 16, for the presets.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        pretrained: False; there are no weights to fetch.
        depths: blocks of each stage.
        dims: width of each stage.
        drop_path_rate: stochastic depth of the last block.
        mixer: as in `NDBackbone`; None takes that of the presets, with Mamba.

    Raises:
        ValueError: `pretrained`, or an argument that does not fit.

    Example:
        >>> import torch
        >>> encoder = NDEncoder(2, 1, depths=(1, 1), dims=(8, 16))
        >>> [tuple(y.shape) for y in encoder(torch.randn(1, 1, 32, 16))]
        [(1, 8, 16, 8), (1, 16, 8, 4)]
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        pretrained: bool = False,
        *,
        depths: Sequence[int] = SIZES["tiny"].depths,
        dims: Sequence[int] = SIZES["tiny"].dims,
        drop_path_rate: float = 0.0,
        mixer: Any = None,
    ) -> None:
        super().__init__()
        if pretrained:
            raise ValueError(
                f"`pretrained` (={pretrained}) must be False: nvsubq has no weights to fetch; "
                "load your own into the model with load_state_dict."
            )
        self.backbone = NDBackbone(
            spatial_dims,
            in_channels,
            0,
            mixer=preset_mixer(spatial_dims) if mixer is None else mixer,
            patch_size=2,
            depths=depths,
            dims=dims,
            pos_embed="none",
            stem="conv",
            global_pool="none",
            drop_path_rate=drop_path_rate,
            local_conv=3,
        )
        self.norms = nn.ModuleList(make_norm("layernorm", dim) for dim in self.backbone.dims[:-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map `[B, in_channels, *spatial]` to the maps of the stages `[B, dims[s], *spatial / 2^(s + 1)]`."""
        stages = self.backbone.forward_stages(x)
        norms = [*self.norms, self.backbone.norm]
        return [norm(y).movedim(-1, 1) for norm, y in zip(norms, stages, strict=True)]

    @classmethod
    def get_encoder_names(cls) -> list[str]:
        """Names under which FlexibleUNet knows the presets."""
        return [f"{_PREFIX}{name}" for name in SIZES]

    @classmethod
    def get_encoder_parameters(cls) -> list[dict[str, Any]]:
        """The constructor's arguments for each name; FlexibleUNet puts its own into the first three."""
        return [
            {
                "spatial_dims": 2,
                "in_channels": 3,
                "pretrained": False,
                "depths": size.depths,
                "dims": size.dims,
                "drop_path_rate": size.drop_path_rate,
            }
            for size in SIZES.values()
        ]

    @classmethod
    def num_channels_per_output(cls) -> list[tuple[int, ...]]:
        """Channels of each map, for each name."""
        return [size.dims for size in SIZES.values()]

    @classmethod
    def num_outputs(cls) -> list[int]:
        """How many maps, for each name."""
        return [len(size.dims) for size in SIZES.values()]
