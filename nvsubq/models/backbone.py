"""NDBackbone: patches, positions, residual blocks with any mixer, a classifier; one path for every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvsubq.models.blocks import Block, drop_path_rates, make_norm
from nvsubq.models.patch import ConvStem, PatchEmbed
from nvsubq.models.position import PositionEmbedding
from nvsubq.models.shapes import (
    check_choice,
    check_field,
    check_positive,
    check_rate,
    check_spatial_dims,
    per_axis,
)
from nvsubq.nd.factory import ModuleFactory
from nvsubq.nd.mixer import NDMixer

__all__ = ["NDBackbone"]

POOLS = ("avg", "max", "none")
STEMS = {"patch": PatchEmbed, "conv": ConvStem}


class NDBackbone(nn.Module):
    """An isotropic stack of pre-norm residual blocks (norm, mixer, norm, MLP) on a grid of patches.

    Any spatial size works at run time: sizes that the patch does not divide are filled with zeros at the far
    end (every token has a real cell), and position embeddings are resized.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: channels of the input.
        num_classes: outputs of the classifier; 0 leaves it out, and `forward` returns the pooled features.
        img_size: the usual spatial size, one integer or one for each axis; only "axes" and "learned"
            positions need it.
        patch_size: cells of a patch, one integer or one for each axis.
        depths: blocks of each stage; one stage.
        dims: width of each stage.
        mixer: a factory or a lazy config of a module that maps `[B, *grid, C]` to the same shape, called as
            ``mixer(d_model=dims[s], layer_idx=i)`` with those of the two that it takes.
        mlp_ratio: hidden width of the MLPs over the block's; 0 leaves them out.
        norm: "layernorm" or "rmsnorm".
        pos_embed: "sincos", "axes", "learned" or "none" (see `PositionEmbedding`).
        stem: "patch", one convolution whose kernel is its stride, or "conv", small strided convolutions.
        global_pool: "avg", "max" or "none" (then `forward` classifies every token: `[B, *grid,
            num_classes]`).
        drop_rate: dropout after the positions, in the MLPs and before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 at the first.

    Raises:
        ValueError: an argument, or in `forward` a shape, that does not fit.
        TypeError: `mixer` is a built module.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from nvsubq import NDBackbone, NDMixer
        >>> from nvsubq.cores import Mamba
        >>> mixer = partial(NDMixer, Mamba, bidirectional=True)
        >>> model = NDBackbone(2, 1, 10, depths=(2,), dims=(16,), mixer=mixer)
        >>> model(torch.randn(3, 1, 28, 31)).shape
        torch.Size([3, 10])
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
        pos_embed: str = "sincos",
        stem: str = "patch",
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.spatial_dims = check_spatial_dims(spatial_dims)
        self.in_channels = check_positive("in_channels", in_channels)
        self.num_classes = check_positive("num_classes", num_classes, minimum=0)
        self.patch_size = per_axis("patch_size", patch_size, spatial_dims)
        depth, dim = _single_stage(depths, dims)
        self.num_features = dim
        self.global_pool = check_choice("global_pool", global_pool, POOLS)
        check_choice("stem", stem, tuple(STEMS))
        if isinstance(mlp_ratio, bool) or not isinstance(mlp_ratio, (int, float)) or mlp_ratio < 0:
            raise ValueError(f"`mlp_ratio` (={mlp_ratio!r}) must be a number of at least 0.")
        self.drop_rate = check_rate("drop_rate", drop_rate)
        rates = drop_path_rates(depth, check_rate("drop_path_rate", drop_path_rate))

        self.patch_embed = STEMS[stem](in_channels, dim, patch_size=self.patch_size)
        self.pos_embed = PositionEmbedding(pos_embed, dim, self._usual_grid(img_size))
        build = ModuleFactory(mixer, "mixer")
        self.blocks = nn.ModuleList(
            Block(
                dim,
                build(d_model=dim, layer_idx=i),
                mlp_ratio=mlp_ratio,
                norm=norm,
                drop_rate=drop_rate,
                drop_path_rate=rate,
            )
            for i, rate in enumerate(rates)
        )
        self.norm = make_norm(norm, dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, *spatial]` to logits `[B, num_classes]`."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, *spatial]` to normalised tokens `[B, *grid, C]`."""
        check_field(x, self.spatial_dims, self.in_channels, self.patch_size)
        x = F.dropout(self.pos_embed(self.patch_embed(x)), self.drop_rate, self.training)
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens `[B, *grid, C]` and classify them; `pre_logits` stops before the classifier."""
        if self.global_pool != "none":
            tokens = x.flatten(1, -2)
            x = tokens.mean(1) if self.global_pool == "avg" else tokens.amax(1)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in backward instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Full names of the parameters that weight decay must leave alone: positions, and the mixers' own."""
        return no_weight_decay(self)

    def _usual_grid(self, img_size: int | Sequence[int] | None) -> tuple[int, ...] | None:
        if img_size is None:
            return None
        sizes = per_axis("img_size", img_size, self.spatial_dims)
        if any(size < patch for size, patch in zip(sizes, self.patch_size, strict=True)):
            raise ValueError(
                f"`img_size` (={sizes}) must be at least `patch_size` (={self.patch_size}) on every axis."
            )
        return tuple(-(-size // patch) for size, patch in zip(sizes, self.patch_size, strict=True))


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of `model`'s parameters that carry `_no_weight_decay` or say where or which way a cell is."""
    marked = {
        name for name, parameter in model.named_parameters() if getattr(parameter, "_no_weight_decay", False)
    }
    for prefix, module in model.named_modules():
        if isinstance(module, PositionEmbedding):
            marked.update(f"{prefix}.{name}" if prefix else name for name, _ in module.named_parameters())
        if isinstance(module, NDMixer) and module.direction is not None:
            marked.add(f"{prefix}.direction" if prefix else "direction")
    return marked


def _single_stage(depths: Sequence[int], dims: Sequence[int]) -> tuple[int, int]:
    for name, values in (("depths", depths), ("dims", dims)):
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise ValueError(f"`{name}` (={values!r}) must be a list with one integer for each stage.")
    if len(depths) != len(dims):
        raise ValueError(
            f"`depths` (={list(depths)}) and `dims` (={list(dims)}) must have one entry for each stage."
        )
    if len(depths) != 1:
        raise ValueError(
            f"`depths` (={list(depths)}) asks for {len(depths)} stages; "
            f"only one is available: the backbone is isotropic."
        )
    return check_positive("depths", depths[0]), check_positive("dims", dims[0])
