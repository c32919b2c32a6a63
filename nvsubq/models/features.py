"""What callers ask of a backbone beside its forward, by timm's names and for every rank."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from nvsubq.models.pretrained import Pretrained
from nvsubq.models.shapes import check_positive

__all__ = ["FeatureMethods"]

_LAST = {1: "NLC", 2: "NHWC", 3: "NDHWC", 4: "NTDHWC"}  # timm has no name for rank 4
_FIRST = {1: "NCL", 2: "NCHW", 3: "NCDHW", 4: "NCTDHW"}


class FeatureMethods(Pretrained):
    """Methods of an `NDBackbone`. Features are those of its stages, or, of one stage, of its blocks."""

    spatial_dims: int
    num_classes: int
    num_features: int
    patch_size: tuple[int, ...]
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    blocks: nn.ModuleList
    merges: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    class_token: nn.Parameter | None
    global_pool: str
    has_class_token: bool

    def forward_blocks(self, x: Tensor) -> Iterator[Tensor]:
        """The tokens after each block, one after another."""
        raise NotImplementedError

    @property
    def head_hidden_size(self) -> int:
        """Width of what the classifier sees."""
        return self.num_features

    @property
    def output_fmt(self) -> str:
        """Layout of `forward_features`, as timm names it: channels-last."""
        return _LAST[self.spatial_dims]

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """For each feature its channels `num_chs`, its `reduction` and the name of its module.

        The reduction is how many cells of the input it has along an axis: one integer, or, where patches are
        not cubes, one for each axis.
        """
        found = []
        for number, stage in zip(self._ends(), self._stage_of_features(), strict=True):
            cells = [patch * 2**stage for patch in self.patch_size]
            reduction = cells[0] if len(set(cells)) == 1 else tuple(cells)
            module = f"blocks.{number - 1}"
            found.append({"num_chs": self.dims[stage], "reduction": reduction, "module": module})
        return found

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str | None = None,
        intermediates_only: bool = False,
    ) -> Any:
        """The features of chosen stages (of one stage: blocks), without class tokens.

        Args:
            x: `[B, in_channels, *spatial]`.
            indices: an integer takes the last so many, a list those (from the end where negative), None all.
            norm: normalise the last feature; the final norm is of its width alone.
            stop_early: run no further than the last one asked for.
            output_fmt: by rank "NCL", "NCHW", "NCDHW" or "NCTDHW", the default, or "NLC", "NHWC", "NDHWC" or
                "NTDHWC".
            intermediates_only: return the features alone, not `(forward_features(x), features)`.

        Raises:
            ValueError: another `output_fmt`, or an index that is not there.
        """
        layout = (
            _FIRST[self.spatial_dims] if output_fmt is None else str(getattr(output_fmt, "value", output_fmt))
        )
        if layout not in (_FIRST[self.spatial_dims], _LAST[self.spatial_dims]):
            raise ValueError(
                f"`output_fmt` (={layout!r}) must be {_FIRST[self.spatial_dims]!r} or "
                f"{_LAST[self.spatial_dims]!r}."
            )
        taken = self._take(indices)
        ends = self._ends()
        wanted = {ends[i]: i for i in taken}
        spatial = x.shape[2:]
        features: list[Tensor] = []
        y = x
        stopped = False
        for number, y in enumerate(self.forward_blocks(x), 1):
            if number in wanted:
                is_last = wanted[number] == len(ends) - 1
                feature = self._cells(self.norm(y) if norm and is_last else y, spatial)
                features.append(feature if layout == _LAST[self.spatial_dims] else feature.movedim(-1, 1))
            if (stop_early or intermediates_only) and number == max(wanted, default=0):
                stopped = number < len(self.blocks)
                break
        if intermediates_only:
            return features
        return (y if stopped else self.norm(y)), features

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what lies behind the last of the features `indices`; gives their numbers from the front.

        Without its last block the final norm has no place, so it goes too.

        Raises:
            ValueError: an index that is not there, or a classifier that is to stay and reads another width.
        """
        taken = self._take(indices)
        end = self._ends()[max(taken)]
        stages = 1 + next(s for s, total in enumerate(itertools.accumulate(self.depths)) if total >= end)
        width = self.dims[stages - 1]
        if self.num_classes and not prune_head and width != self.num_features:
            raise ValueError(
                f"`prune_head` (={prune_head}) must be True where `indices` (={indices!r}) leaves {width} "
                f"channels: the classifier reads {self.num_features}."
            )
        kept = end - sum(self.depths[: stages - 1])
        if end < len(self.blocks) or prune_norm:
            self.norm = nn.Identity()
        self.depths = (*self.depths[: stages - 1], kept)
        self.dims = self.dims[:stages]
        self.num_features = width
        self.blocks = self.blocks[:end]
        self.merges = self.merges[: stages - 1]
        if prune_head:
            self.reset_classifier(0, "")
        self._built_from = "its layers were pruned."
        return taken

    def get_classifier(self) -> nn.Module:
        """The linear classifier; nn.Identity where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier of `num_classes`, 0 for none; `global_pool` as in the constructor.

        A model with a class token keeps its pool where the classifier goes and no pool is asked for.
        """
        check_positive("num_classes", num_classes, minimum=0)
        unpooled = global_pool in ("", "none")
        if global_pool is not None and not (self.has_class_token and not num_classes and unpooled):
            self.global_pool = self._checked_pool(global_pool)
        self.num_classes = num_classes
        like = next(self.parameters())
        width = self.dims[-1]
        self.head = nn.Linear(width, num_classes).to(like) if num_classes else nn.Identity()
        self._remember(num_classes=num_classes, global_pool=self.global_pool)

    def _checked_pool(self, global_pool: str) -> str:
        raise NotImplementedError

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters by depth, for layer-wise rates: stem, blocks (or stages), norm."""
        firsts = [0, *itertools.accumulate(self.depths)][:-1]
        merges = [(rf"^merges\.{i}\.", (first,)) for i, first in enumerate(firsts[1:])]
        if not coarse or len(self.depths) == 1:
            return {
                "stem": r"^patch_embed|^pos_embed|^class_token",
                "blocks": [(r"^blocks\.(\d+)", None), *merges, (r"^norm", (99999,))],
            }
        stages = []
        for stage, (first, depth) in enumerate(zip(firsts, self.depths, strict=True)):
            numbers = "|".join(str(first + i) for i in range(depth))
            stages.append((rf"^blocks\.(?:{numbers})\.", (stage,)))
            if stage:
                stages.append((rf"^merges\.{stage - 1}\.", (stage,)))
        return {"stem": r"^patch_embed|^pos_embed|^class_token", "blocks": [*stages, (r"^norm", (99999,))]}

    def _ends(self) -> list[int]:
        """For each feature, how many blocks lie before it."""
        if len(self.depths) == 1:
            return list(range(1, self.depths[0] + 1))
        return list(itertools.accumulate(self.depths))

    def _stage_of_features(self) -> list[int]:
        return [0] * self.depths[0] if len(self.depths) == 1 else list(range(len(self.depths)))

    def _take(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self._ends())
        if indices is None:
            return list(range(count))
        chosen = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
        numbers = [i + count if i < 0 else i for i in chosen]
        if not numbers or any(not 0 <= i < count for i in numbers):
            raise ValueError(f"`indices` (={indices!r}) must name some of {count} features.")
        return sorted(set(numbers))

    def _cells(self, y: Tensor, spatial: Sequence[int]) -> Tensor:
        if self.class_token is None:
            return y
        return y[:, :-1].unflatten(
            1, [-(-n // patch) for n, patch in zip(spatial, self.patch_size, strict=True)]
        )
