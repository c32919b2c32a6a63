"""NDBackbone: patches, positions, stages of residual blocks with any mixer, a classifier; for every rank."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvsubq.cores.base import LTV_LRNN, check_bool
from nvsubq.models.blocks import Block, LocalConv, drop_path_rates, make_norm
from nvsubq.models.features import FeatureMethods
from nvsubq.models.patch import CONVOLUTIONS, ConvStem, PatchEmbed, PatchMerge
from nvsubq.models.position import PositionEmbedding
from nvsubq.models.shapes import (
    check_choice,
    check_field,
    check_positive,
    check_rate,
    check_spatial_dims,
    per_axis,
    plain_tensor,
)
from nvsubq.nd.building import made_like
from nvsubq.nd.factory import ModuleFactory
from nvsubq.nd.mixer import NDMixer
from nvsubq.ops.slabs import Slabs

__all__ = ["NDBackbone"]

POOLS = ("avg", "max", "token", "none")
STEMS = {"patch": PatchEmbed, "conv": ConvStem}


class NDBackbone(FeatureMethods):
    """Pre-norm residual blocks (norm, mixer, norm, MLP) on a grid of patches, in one stage or in several.

    With one stage the stack is isotropic; with several the grid is halved along every axis before each but
    the first (`PatchMerge`). Any spatial size works at run time: sizes that the patch does not divide are
    filled with zeros at the far end (every token has a real cell), and position embeddings are resized.

    Args:
        spatial_dims: 1, 2, 3 or 4; torch has neither convolutions nor interpolation of four axes, so `stem`,
            `local_conv` and `pos_embed` must do without.
        in_channels: channels of the input.
        num_classes: outputs of the classifier; 0 leaves it out, and `forward` returns the pooled features.
        img_size: the usual spatial size, one integer or one for each axis; only "axes" and "learned"
            positions need it.
        patch_size: cells of a patch, one integer or one for each axis.
        depths: blocks of each stage.
        dims: width of each stage.
        mixer: a factory or a lazy config of a module that maps `[B, *grid, C]` to the same shape, called as
            ``mixer(d_model=dims[s], layer_idx=i)`` with those of the two that it takes.
        mlp_ratio: hidden width of the MLPs over the block's; 0 leaves them out.
        norm: "layernorm" or "rmsnorm".
        pos_embed: "sincos", "axes", "learned" or "none" (see `PositionEmbedding`).
        stem: "patch", one convolution whose kernel is its stride, or "conv", small strided convolutions.
        global_pool: "avg", "max", "token" (the class token) or "none" (then `forward` classifies every token:
            `[B, *grid, num_classes]`; "" is the same).
        drop_rate: dropout after the positions, in the MLPs and before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 at the first.
        local_conv: odd kernel of a depthwise convolution at the start of each block; 0 leaves it out.
        class_token: a learned token beside the cells of one stage, visited in the middle of every walk; the
            mixer's `forward` must take `spatial`, as that of `NDMixer` does.

    Raises:
        ValueError: an argument, or in `forward` a shape, that does not fit; a core made with another dtype.
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
        >>> deep = NDBackbone(2, 1, 10, depths=(1, 1), dims=(16, 32), mixer=mixer, local_conv=3)
        >>> [tuple(x.shape) for x in deep.forward_stages(torch.randn(3, 1, 28, 31))]
        [(3, 7, 8, 16), (3, 4, 4, 32)]
    """

    slabs: Slabs | None = None
    """The processes that have a slab each of the input along its first axis (`nvsubq.parallel`)."""

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
        local_conv: int = 0,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        self.spatial_dims = check_spatial_dims(spatial_dims, most=4)
        self.in_channels = self.in_chans = check_positive("in_channels", in_channels)
        self.num_classes = check_positive("num_classes", num_classes, minimum=0)
        self.patch_size = per_axis("patch_size", patch_size, spatial_dims)
        self.depths, self.dims = _stages(depths, dims)
        self.num_features = self.dims[-1]
        check_choice("stem", stem, tuple(STEMS))
        check_positive("local_conv", local_conv, minimum=0)
        _check_without_convolutions(self.spatial_dims, stem, local_conv, pos_embed)
        _check_class_token(class_token, self.depths)
        self.has_class_token = class_token
        self.global_pool = self._checked_pool(global_pool)
        if isinstance(mlp_ratio, bool) or not isinstance(mlp_ratio, (int, float)) or mlp_ratio < 0:
            raise ValueError(f"`mlp_ratio` (={mlp_ratio!r}) must be a number of at least 0.")
        self.drop_rate = check_rate("drop_rate", drop_rate)
        rates = drop_path_rates(sum(self.depths), check_rate("drop_path_rate", drop_path_rate))

        self.patch_embed = STEMS[stem](in_channels, self.dims[0], patch_size=self.patch_size)
        self.pos_embed = PositionEmbedding(pos_embed, self.dims[0], self._usual_grid(img_size))
        self.class_token = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(self.dims[0]), std=0.02)) if class_token else None
        )
        build = ModuleFactory(mixer, "mixer")
        widths = [dim for depth, dim in zip(self.depths, self.dims, strict=True) for _ in range(depth)]
        self.blocks = nn.ModuleList(
            Block(
                dim,
                build(d_model=dim, layer_idx=i),
                mlp_ratio=mlp_ratio,
                norm=norm,
                drop_rate=drop_rate,
                drop_path_rate=rate,
                local_conv=LocalConv(spatial_dims, dim, local_conv) if local_conv else None,
            )
            for i, (dim, rate) in enumerate(zip(widths, rates, strict=True))
        )
        for block in self.blocks:
            _check_dtype(block)
        if class_token:
            _check_takes_token(self.blocks[0].mixer)  # type: ignore[arg-type]
        self.merges = nn.ModuleList(
            nn.Sequential(make_norm(norm, a), PatchMerge(spatial_dims, a, b))
            for a, b in itertools.pairwise(self.dims)
        )
        self.norm = make_norm(norm, self.num_features)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, *spatial]` to logits `[B, num_classes]`."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, *spatial]` to normalised tokens `[B, *grid, C]`, the last stage's.

        With a class token: `[B, L + 1, C]`, the class token last.
        """
        return self.norm(self.forward_stages(x)[-1])

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The tokens after each stage, `[B, *grid, dims[s]]`; only `forward_features` normalises the last."""
        ends = set(itertools.accumulate(self.depths))
        return [y for number, y in enumerate(self.forward_blocks(x), 1) if number in ends]

    def forward_blocks(self, x: Tensor) -> Iterator[Tensor]:
        """The tokens after each block, `[B, *grid, C]`, one after another."""
        whole = self.slabs is None or x.dim() != self.spatial_dims + 2
        least = self.patch_size if whole else (1, *self.patch_size[1:])  # the last slab may end in a patch
        check_field(x, self.spatial_dims, self.in_channels, least)
        x = plain_tensor(x)
        x = F.dropout(self.pos_embed(self.patch_embed(x)), self.drop_rate, self.training)
        spatial = None
        if self.class_token is not None:
            spatial = x.shape[1:-1]
            x = torch.cat([x.flatten(1, -2), self.class_token.to(x.dtype).expand(len(x), 1, -1)], 1)
        blocks = iter(self.blocks)
        for stage, depth in enumerate(self.depths):
            if stage:
                x = self.merges[stage - 1](x)
            for block in itertools.islice(blocks, depth):
                if self.grad_checkpointing and self.training:
                    x = checkpoint(block, x, spatial, use_reentrant=False)
                else:
                    x = block(x, spatial)
                yield x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens `[B, *grid, C]` and classify them; `pre_logits` stops before the classifier."""
        if self.global_pool == "token":
            x = x[:, -1]
        elif self.global_pool != "none":
            tokens = x.flatten(1, -2) if self.class_token is None else x[:, :-1]
            if self.slabs is not None:
                x = self._pooled(tokens, self.slabs)
            else:
                x = tokens.mean(1) if self.global_pool == "avg" else tokens.amax(1)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def _pooled(self, tokens: Tensor, slabs: Slabs) -> Tensor:
        """Pool `[B, L, C]` over the tokens of all slabs; every process has the result."""
        if self.global_pool == "max":
            return slabs.gathered(tokens.amax(1)).amax(0)
        total = sum(slabs.layout(tokens.shape))
        return slabs.gathered(tokens.sum(1)).sum(0) / total

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Make learned positions for another usual size, by interpolation; any size runs without it, too."""
        self.pos_embed.resize(self._usual_grid(img_size))
        self._remember(img_size=img_size if isinstance(img_size, int) else list(img_size))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in backward instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Full names of the parameters that weight decay must leave alone: positions, and the mixers' own."""
        return no_weight_decay(self)

    def _checked_pool(self, global_pool: str) -> str:
        pool = check_choice("global_pool", global_pool or "none", POOLS)
        if pool == "token" and not self.has_class_token:
            raise ValueError(f"`global_pool` (={pool!r}) needs `class_token`.")
        if pool == "none" and self.has_class_token:
            raise ValueError(f"`class_token` (=True) needs a `global_pool`, not {pool!r}.")
        return pool

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
        for kind, name in ((NDMixer, "direction"), (NDBackbone, "class_token")):
            if isinstance(module, kind) and getattr(module, name) is not None:
                marked.add(f"{prefix}.{name}" if prefix else name)
    return marked


MOST_BLOCKS = 10_000


def _stages(depths: Sequence[int], dims: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    for name, values in (("depths", depths), ("dims", dims)):
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise ValueError(f"`{name}` (={values!r}) must be a list with one integer for each stage.")
    if len(depths) != len(dims):
        raise ValueError(
            f"`depths` (={list(depths)}) and `dims` (={list(dims)}) must have one entry for each stage."
        )
    blocks = tuple(check_positive("depths", depth) for depth in depths)
    if sum(blocks) > MOST_BLOCKS:
        raise ValueError(f"`depths` (={list(depths)}) must be {MOST_BLOCKS} blocks at most.")
    return blocks, tuple(check_positive("dims", dim) for dim in dims)


def _check_without_convolutions(spatial_dims: int, stem: str, local_conv: int, pos_embed: str) -> None:
    if spatial_dims in CONVOLUTIONS:
        return
    for name, value, allowed in (
        ("stem", stem, ("patch",)),
        ("local_conv", local_conv, (0,)),
        ("pos_embed", pos_embed, ("sincos", "axes", "none")),
    ):
        if value not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise ValueError(
                f"`{name}` (={value!r}) must be {choices} where `spatial_dims` is {spatial_dims}."
            )


def _check_class_token(class_token: bool, depths: Sequence[int]) -> None:
    check_bool(class_token=class_token)
    if class_token and len(depths) > 1:
        raise ValueError(
            f"`class_token` (={class_token}) needs one stage; "
            f"`depths` (={list(depths)}) asks for {len(depths)}."
        )


def _check_dtype(block: Any) -> None:
    """Other modules than our cores may cast what they get, and give back what they got."""
    own = block.norm1.weight.dtype
    cores = block.mixer.children() if isinstance(block.mixer, NDMixer) else ()
    for core in cores:
        if isinstance(core, LTV_LRNN) and (dtype := made_like(core).get("dtype", own)) != own:
            name = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"`core.dtype` (={name!r}) must be that of the rest of the model, "
                f"{str(own).removeprefix('torch.')!r}: leave it out, and cast all of it when it is built, by "
                f"model.to(torch.{name})."
            )


def _check_takes_token(mixer: nn.Module) -> None:
    if "spatial" not in inspect.signature(mixer.forward).parameters:
        raise ValueError(
            f"`class_token` needs a `mixer` whose forward takes `spatial`, as that of NDMixer does; "
            f"{type(mixer).__name__} does not."
        )
