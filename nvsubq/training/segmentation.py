"""SegmentationTask: one class for each cell of an image or a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from nvsubq.training.task import Task, check_range
from nvsubq.training.tiled import monai_windows, tiled

WINDOWS = ("nvsubq", "monai")
SHOWN = 3
"""Test volumes kept for the report, those with the lowest Dice first."""


def soft_dice_loss(logits: Tensor, targets: Tensor, smooth: float = 1.0) -> Tensor:
    """One minus the Dice of probabilities, over the cells of the whole batch, averaged over classes.

    Args:
        logits: `[B, K, *spatial]`.
        targets: `[B, *spatial]`, int64 in [0, K).
        smooth: cells added to numerator and denominator, so that an absent class counts as found.

    Milletari et al. 2016, "V-Net" (arXiv:1606.04797), eq. in section 3, without the squares.

    Example:
        >>> targets = torch.tensor([[0, 1, 1]])
        >>> perfect = 100.0 * F.one_hot(targets, 2).movedim(-1, 1)
        >>> float(soft_dice_loss(perfect, targets)) < 1e-6
        True
    """
    probabilities = logits.float().softmax(1)
    truth = torch.zeros_like(probabilities).scatter_(1, targets[:, None], 1.0)
    cells = (0, *range(2, logits.ndim))
    shared = (probabilities * truth).sum(cells)
    total = probabilities.sum(cells) + truth.sum(cells)
    return 1.0 - ((2.0 * shared + smooth) / (total + smooth)).mean()


def dice_of(confusion: Tensor) -> Tensor:
    """Dice `[K]` of each class from counts `[K, K]` (true, predicted); NaN where a class is in neither.

    Example:
        >>> dice_of(torch.tensor([[2, 0], [2, 4]])).tolist()
        [0.6666666666666666, 0.8]
    """
    counts = confusion.double()
    return 2.0 * counts.diagonal() / (counts.sum(0) + counts.sum(1))


class SegmentationTask(Task):
    """Trains a dense classifier with cross-entropy and soft Dice.

    Logs `train/loss val/loss val/dice test/loss test/dice` and, for each scored class, `test/dice_NAME`. Dice
    is that of all cells of a split together; `dice` is the mean over the scored classes. Images larger than
    the training crop are evaluated by overlapping tiles. The other arguments are those of `Task`.

    Args:
        model: maps `[B, in_channels, *spatial]` to logits `[B, num_classes, *spatial]`.
        scored_classes: class numbers that `dice` averages over; without it all but class 0.
        tile: spatial size of a tile; None evaluates whole images at once.
        overlap: fraction of a tile that neighbours share.
        tile_batch: tiles that go through the model at once.
        windows: who tiles, "nvsubq" (`tiled`) or "monai" (its `sliding_window_inference`).
        dice_weight: of soft Dice beside cross-entropy; 0 leaves it out.

    Raises:
        ValueError: an argument out of its range, or logits of another shape.

    Example:
        >>> task = SegmentationTask(nn.Conv2d(1, 2, 1), class_names=["sky", "land"], tile=(8, 8))
        >>> task.probabilities(torch.zeros(1, 1, 20, 13)).shape
        torch.Size([1, 2, 20, 13])
    """

    kind = "segmentation"
    monitor = "val/dice"
    scores = ("val/dice", "val/loss", "train/loss")

    def __init__(
        self,
        model: nn.Module,
        *,
        class_names: Sequence[str],
        scored_classes: Sequence[int] | None = None,
        tile: Sequence[int] | None = None,
        overlap: float = 0.25,
        tile_batch: int = 4,
        windows: str = "nvsubq",
        dice_weight: float = 1.0,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        betas: Sequence[float] = (0.9, 0.999),
        schedule: str = "cosine",
        warmup: float = 0.1,
        final_lr: float = 0.01,
    ) -> None:
        super().__init__(
            model,
            class_names=class_names,
            lr=lr,
            weight_decay=weight_decay,
            betas=betas,
            schedule=schedule,
            warmup=warmup,
            final_lr=final_lr,
        )
        scored = list(range(1, self.num_classes)) if scored_classes is None else list(scored_classes)
        if not scored or any(not 0 <= c < self.num_classes for c in scored):
            raise ValueError(f"`scored_classes` (={scored}) must be class numbers below {self.num_classes}.")
        if isinstance(tile_batch, bool) or not isinstance(tile_batch, int) or tile_batch < 1:
            raise ValueError(f"`tile_batch` (={tile_batch!r}) must be an integer of at least 1.")
        self.scored_classes = scored
        self.tile = None if tile is None else tuple(int(t) for t in tile)
        self.overlap = check_range("overlap", overlap, 0.0, 0.95)
        if windows not in WINDOWS:
            raise ValueError(f"`windows` (={windows!r}) must be one of {', '.join(map(repr, WINDOWS))}.")
        self.tile_batch = tile_batch
        self.windows = windows
        self.dice_weight = check_range("dice_weight", dice_weight, 0.0)
        self.val_confusion = MulticlassConfusionMatrix(self.num_classes)
        self._tested: list[tuple[int, Tensor, float]] = []
        self._shown: list[tuple[float, int, Tensor, Tensor, Tensor]] = []

    def logits(self, images: Tensor) -> Tensor:
        """Logits `[B, K, *spatial]` of images of any size, by tiles."""
        if self.tile is None:
            return self(images)
        if self.windows == "monai":
            return monai_windows(self, images, self.tile, overlap=self.overlap, batch_size=self.tile_batch)
        return tiled(self, images, self.tile, overlap=self.overlap, batch_size=self.tile_batch)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy plus `dice_weight` times soft Dice."""
        wanted = (len(targets), self.num_classes, *targets.shape[1:])
        if logits.shape != wanted:
            raise ValueError(
                f"The model's output (shape {tuple(logits.shape)}) must be {list(wanted)}: one logit "
                "for each class and cell."
            )
        loss = F.cross_entropy(logits.float(), targets)
        return loss + self.dice_weight * soft_dice_loss(logits, targets) if self.dice_weight else loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch `(images, targets [B, *spatial])`."""
        (images, targets), count, weight = self.shared(batch, batch_idx)
        loss = self.loss(self(images), targets)
        self.log_epoch("train/loss", loss, count)
        return loss * weight

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Scores a batch of validation."""
        (images, targets), count, _ = self.shared(batch, batch_idx, "val")
        logits = self.logits(images)
        if count:
            self.val_confusion.update(logits.argmax(1), targets)
        self.log_epoch("val/loss", self.loss(logits, targets), count)

    def on_validation_epoch_end(self) -> None:
        """Logs the mean Dice of the scored classes over all of validation."""
        dice = dice_of(self.val_confusion.compute())
        self.val_confusion.reset()
        self.log_score("val/dice", dice[self.scored_classes].nanmean().float())

    def on_test_start(self) -> None:
        """Forgets what an earlier test predicted."""
        self._tested, self._shown = [], []

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Scores a batch of the test split and keeps what the report shows."""
        images, targets = batch
        logits = self.logits(images)
        predicted = logits.argmax(1)
        losses = [float(self.loss(logits[i : i + 1], targets[i : i + 1])) for i in range(len(targets))]
        for image, target, labels, loss in zip(
            images.cpu(), targets.cpu(), predicted.cpu(), losses, strict=True
        ):
            counts = torch.bincount(
                (target * self.num_classes + labels).flatten(), minlength=self.num_classes**2
            )
            counts = counts.reshape(self.num_classes, self.num_classes)
            index = int(self.test_indices(len(self._tested), 1))
            self._tested.append((index, counts, loss))
            mean = float(dice_of(counts)[self.scored_classes].nanmean())
            rows = [*self._shown, (mean, index, image, target, labels)]
            self._shown = sorted(rows, key=lambda row: row[:2])[:SHOWN]

    def on_test_epoch_end(self) -> None:
        """Logs Dice over the whole test split, the mean and each scored class."""
        size = self.test_size()
        self._tested = sorted(
            (row for row in self.gathered(self._tested) if row[0] < size), key=lambda row: row[0]
        )
        kept = [row for row in self.gathered(self._shown) if row[1] < size]
        self._shown = sorted(kept, key=lambda row: row[:2])[:SHOWN]
        dice = dice_of(torch.stack([counts for _, counts, _ in self._tested]).sum(0))
        losses = [loss for *_, loss in self._tested]
        self.log_score("test/loss", torch.tensor(sum(losses) / len(losses)))
        self.log_score("test/dice", dice[self.scored_classes].nanmean().float())
        for number in self.scored_classes:
            name = self.class_names[number].replace(" ", "_").replace("/", "_")
            self.log_score(f"test/dice_{name}", dice[number].float())

    def predictions(self) -> dict[str, Any]:
        """Arrays `indices confusion shown image_i label_i prediction_i` of the last test (`run_folder`)."""
        small = torch.uint8 if self.num_classes <= 256 else torch.int32
        arrays = {
            "indices": torch.tensor([index for index, _, _ in self._tested]).numpy(),
            "confusion": torch.stack([counts for _, counts, _ in self._tested]).numpy(),
            "shown": torch.tensor([index for _, index, *_ in self._shown]).numpy(),
        }
        for row, (_, _, image, target, labels) in enumerate(self._shown):
            arrays[f"image_{row}"] = image.half().numpy()
            arrays[f"label_{row}"] = target.to(small).numpy()
            arrays[f"prediction_{row}"] = labels.to(small).numpy()
        return arrays
