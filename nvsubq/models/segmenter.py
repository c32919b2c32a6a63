"""NDSegmenter: the `NDUNet` of one stage under its earlier name and signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvsubq.models.shapes import check_positive
from nvsubq.models.unet import DenseHead, NDUNet

__all__ = ["DenseHead", "NDSegmenter"]


class NDSegmenter(NDUNet):
    """Isotropic `NDBackbone` with a dense head: logits at the size of the input, for any spatial size.

    It is `NDUNet` with the defaults of one stage of patches of 4, and `num_classes` for `out_channels`.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: channels of the input.
        num_classes: classes of a cell.
        img_size, patch_size, depths, dims, mixer, mlp_ratio, norm, pos_embed, stem, drop_rate,
        drop_path_rate, local_conv:
            as in `NDBackbone`.
        head_channels: width of the dense head at full resolution.
        head_depth: convolutions on the input before the tokens come in.

    Raises:
        ValueError: an argument, or in `forward` a shape, that does not fit.
        TypeError: `mixer` is a built module.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from nvsubq import NDMixer, NDSegmenter
        >>> from nvsubq.cores import Mamba
        >>> mixer = partial(NDMixer, Mamba, bidirectional=True)
        >>> model = NDSegmenter(3, 1, 4, depths=(1,), dims=(16,), mixer=mixer)
        >>> model(torch.randn(1, 1, 9, 8, 11)).shape
        torch.Size([1, 4, 9, 8, 11])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_classes: int,
        *,
        mixer: Any,
        img_size: int | Sequence[int] | None = None,
        patch_size: int | Sequence[int] = 4,
        depths: Sequence[int] = (4,),
        dims: Sequence[int] = (64,),
        mlp_ratio: float = 2.0,
        norm: str = "layernorm",
        pos_embed: str = "none",
        stem: str = "patch",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        local_conv: int = 0,
        head_channels: int = 16,
        head_depth: int = 2,
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            check_positive("num_classes", num_classes),
            mixer=mixer,
            img_size=img_size,
            patch_size=patch_size,
            depths=depths,
            dims=dims,
            mlp_ratio=mlp_ratio,
            norm=norm,
            pos_embed=pos_embed,
            stem=stem,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            local_conv=local_conv,
            head_channels=head_channels,
            head_depth=head_depth,
        )
        self.num_classes = num_classes
