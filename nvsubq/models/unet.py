"""NDUNet: stages of mixer blocks, a convolutional decoder, and logits at the size of the input."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from nvsubq.models.backbone import NDBackbone, no_weight_decay
from nvsubq.models.blocks import make_norm
from nvsubq.models.patch import ConvNd, PatchExpand
from nvsubq.models.pretrained import Pretrained
from nvsubq.models.shapes import check_positive, check_spatial_dims

__all__ = ["DenseHead", "NDUNet", "UpBlock"]


class DenseHead(nn.Module):
    """Logits for every cell, from tokens (context) and from the input itself (detail).

    Tokens are projected and shuffled to full resolution; convolutions of kernel 3 run on the input; the sum
    goes through one more convolution and a linear classifier. Nothing here is normalised over space: a patch
    keeps its absolute intensity, and the answer for a cell does not depend on how large a crop it lies in.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: channels of the input.
        dim: channels of a token.
        num_classes: logits for each cell.
        patch_size: cells of a patch along each axis.
        channels: width at full resolution.
        depth: convolutions on the input, before the tokens come in.

    Example:
        >>> import torch
        >>> head = DenseHead(2, 1, 16, 3, patch_size=(4, 4))
        >>> head(torch.randn(2, 2, 2, 16), torch.randn(2, 1, 7, 8)).shape
        torch.Size([2, 3, 7, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        dim: int,
        num_classes: int,
        *,
        patch_size: Sequence[int],
        channels: int = 16,
        depth: int = 2,
    ) -> None:
        super().__init__()
        kernel = (3,) * spatial_dims
        widths = [in_channels] + [channels] * depth
        self.detail = nn.ModuleList(
            ConvNd(spatial_dims, a, b, kernel_size=kernel) for a, b in itertools.pairwise(widths)
        )
        self.expand = PatchExpand(dim, channels, patch_size=patch_size)
        self.join = ConvNd(spatial_dims, channels, channels, kernel_size=kernel)
        self.classify = nn.Linear(channels, num_classes)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Map tokens `[B, *grid, dim]` and `x` `[B, in_channels, *spatial]` to logits of every cell."""
        fine = x.movedim(1, -1)
        for i, conv in enumerate(self.detail):
            fine = conv(F.relu(fine) if i else fine)
        fine = F.relu(fine + self.expand(tokens, x.shape[2:]))
        return self.classify(F.relu(self.join(fine))).movedim(-1, 1)


class UpBlock(nn.Module):
    """One stage up: tokens are shuffled to the finer grid, joined with its own, convolved with a residual.

    Norms are over the channels of a cell, never over space (see `DenseHead`).

    Args:
        spatial_dims: rank of the grid.
        dim: channels of the coarse tokens.
        out_dim: channels of the finer ones.
        norm: "layernorm" or "rmsnorm".

    Example:
        >>> import torch
        >>> UpBlock(2, 16, 8)(torch.randn(2, 3, 4, 16), torch.randn(2, 5, 8, 8)).shape
        torch.Size([2, 5, 8, 8])
    """

    def __init__(self, spatial_dims: int, dim: int, out_dim: int, norm: str = "layernorm") -> None:
        super().__init__()
        kernel = (3,) * spatial_dims
        self.expand = PatchExpand(dim, out_dim, patch_size=(2,) * spatial_dims)
        self.skip_norm = make_norm(norm, out_dim)
        self.join = ConvNd(spatial_dims, 2 * out_dim, out_dim, kernel_size=kernel)
        self.norm = make_norm(norm, out_dim)
        self.conv = ConvNd(spatial_dims, out_dim, out_dim, kernel_size=kernel)
        self.out_norm = make_norm(norm, out_dim)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map `x` `[B, *coarse, dim]` and `skip` `[B, *grid, out_dim]` to `[B, *grid, out_dim]`."""
        x = self.expand(x, skip.shape[1:-1])
        x = self.join(torch.cat([x, self.skip_norm(skip)], -1))
        return self.out_norm(x + self.conv(F.relu(self.norm(x))))


class NDUNet(Pretrained):
    """The stages of an `NDBackbone` as encoder, a convolutional decoder, a dense head: logits for each cell.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: channels of the input.
        out_channels: logits of each cell.
        img_size, patch_size, depths, dims, mixer, mlp_ratio, norm, pos_embed, stem, drop_rate,
        drop_path_rate, local_conv:
            as in `NDBackbone`; one stage has no decoder, only the head.
        head_channels: width of the dense head at full resolution.
        head_depth: convolutions on the input before the tokens come in.

    Raises:
        ValueError: an argument, or in `forward` a shape, that does not fit.
        TypeError: `mixer` is a built module.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from nvsubq import NDMixer, NDUNet
        >>> from nvsubq.cores import Mamba
        >>> mixer = partial(NDMixer, Mamba, bidirectional=True)
        >>> model = NDUNet(3, 1, 4, patch_size=2, depths=(1, 1), dims=(8, 16), mixer=mixer)
        >>> model(torch.randn(1, 1, 9, 8, 11)).shape
        torch.Size([1, 4, 9, 8, 11])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        mixer: Any,
        img_size: int | Sequence[int] | None = None,
        patch_size: int | Sequence[int] = 2,
        depths: Sequence[int] = (2, 2, 2),
        dims: Sequence[int] = (32, 64, 128),
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
        super().__init__()
        check_spatial_dims(spatial_dims)  # of a decoder: it is made of convolutions
        self.out_channels = check_positive("out_channels", out_channels)
        check_positive("head_channels", head_channels)
        check_positive("head_depth", head_depth)
        self.backbone = NDBackbone(
            spatial_dims,
            in_channels,
            0,
            mixer=mixer,
            img_size=img_size,
            patch_size=patch_size,
            depths=depths,
            dims=dims,
            mlp_ratio=mlp_ratio,
            norm=norm,
            pos_embed=pos_embed,
            stem=stem,
            global_pool="none",
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            local_conv=local_conv,
        )
        self.spatial_dims, self.in_channels = self.backbone.spatial_dims, self.backbone.in_channels
        self.ups = nn.ModuleList(
            UpBlock(spatial_dims, coarse, fine, norm)
            for fine, coarse in reversed(list(itertools.pairwise(self.backbone.dims)))
        )
        self.head = DenseHead(
            spatial_dims,
            in_channels,
            self.backbone.dims[0],
            out_channels,
            patch_size=self.backbone.patch_size,
            channels=head_channels,
            depth=head_depth,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, *spatial]` to logits `[B, out_channels, *spatial]`."""
        *skips, deepest = self.backbone.forward_stages(x)
        tokens = self.backbone.norm(deepest)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            tokens = up(tokens, skip)
        return self.head(tokens, x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, *spatial]` to the deepest stage's normalised tokens `[B, *grid, C]`."""
        return self.backbone.forward_features(x)

    @property
    def config(self) -> DictConfig:
        """The node that builds this model anew, with other weights (see `Pretrained`)."""
        config, usual = super().config, self.backbone.config.img_size
        if usual is not None:  # `backbone.set_input_size` may have changed it
            config.img_size = usual
        return config

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Make learned positions for another usual size, by interpolation; any size runs without it, too."""
        self.backbone.set_input_size(img_size)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in backward instead of keeping its activations."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Full names of the parameters that weight decay must leave alone: positions, and the mixers' own."""
        return no_weight_decay(self)
