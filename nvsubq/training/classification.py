"""ClassificationTask: one class for each image, sequence or volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import multiclass_accuracy

from nvsubq.training.task import Task, check_range

SHOWN = 32
"""Test images kept for the report, those whose own class got the lowest probability first."""


class ClassificationTask(Task):
    """Trains a classifier with cross-entropy.

    Logs `train/loss val/loss val/accuracy test/loss test/accuracy`. The other arguments are those of `Task`.

    Args:
        model: maps `[B, in_channels, *spatial]` to logits `[B, num_classes]`.
        label_smoothing: probability that training spreads over all classes; validation and test use none.

    Raises:
        ValueError: an argument out of its range, or logits of another shape.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> task = ClassificationTask(model, class_names=["cat", "dog"])
        >>> task.probabilities(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 2])
    """

    kind = "classification"
    monitor = "val/accuracy"
    scores = ("val/accuracy", "val/loss", "train/loss")

    def __init__(
        self,
        model: nn.Module,
        *,
        class_names: Sequence[str],
        label_smoothing: float = 0.0,
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
        self.label_smoothing = check_range("label_smoothing", label_smoothing, 0.0, 1.0)
        self.val_accuracy = MulticlassAccuracy(self.num_classes, average="micro")
        self._tested: list[tuple[Tensor, Tensor, Tensor]] = []
        self._shown: list[tuple[float, int, Tensor]] = []

    def checked(self, images: Tensor, targets: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of a batch."""
        logits = self(images)
        if logits.shape != (len(targets), self.num_classes):
            raise ValueError(
                f"The model's output (shape {tuple(logits.shape)}) must be "
                f"[{len(targets)}, {self.num_classes}]: one logit for each image and class."
            )
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch `(images, targets [B])`."""
        (images, targets), count, weight = self.shared(batch, batch_idx)
        logits = self.checked(images, targets).float()
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        self.log_epoch("train/loss", loss, count)
        return loss * weight

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Scores a batch of validation."""
        (images, targets), count, _ = self.shared(batch, batch_idx, "val")
        logits = self.checked(images, targets).float()
        if count:
            self.val_accuracy.update(logits, targets)
        self.log_epoch("val/loss", F.cross_entropy(logits, targets), count)
        self.log("val/accuracy", self.val_accuracy, on_step=False, on_epoch=True)

    def on_test_start(self) -> None:
        """Forgets what an earlier test predicted."""
        self._tested, self._shown = [], []

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Scores a batch of the test split and keeps what the report shows."""
        images, targets = batch
        logits = self.checked(images, targets).float()
        logits, targets = logits.cpu(), targets.cpu()
        indices = self.test_indices(sum(len(part) for part, _, _ in self._tested), len(targets))
        self._tested.append((indices, targets, logits))
        own = logits.softmax(1).gather(1, targets[:, None])[:, 0]
        rows = [(float(p), int(i), image.cpu()) for p, i, image in zip(own, indices, images, strict=True)]
        self._shown = sorted(self._shown + rows, key=lambda row: row[:2])[:SHOWN]

    def on_test_epoch_end(self) -> None:
        """Logs the scores of what all processes predicted, each item once."""
        size = self.test_size()
        self._tested = [
            tuple(part[rows[0] < size] for part in rows)  # type: ignore[misc]
            for rows in self.gathered(self._tested)
        ]
        kept = [row for row in self.gathered(self._shown) if row[1] < size]
        self._shown = sorted(kept, key=lambda row: row[:2])[:SHOWN]
        targets, logits = (torch.cat(part) for part in list(zip(*self._tested, strict=True))[1:])
        self.log_score("test/loss", F.cross_entropy(logits, targets))
        accuracy = multiclass_accuracy(logits, targets, self.num_classes, average="micro")
        self.log_score("test/accuracy", accuracy)

    def predictions(self) -> dict[str, Any]:
        """Arrays `indices labels probabilities shown images` of the last test run (see `run_folder`)."""
        indices, labels, logits = (torch.cat(part) for part in zip(*self._tested, strict=True))
        order = indices.argsort()
        return {
            "indices": indices[order].numpy(),
            "labels": labels[order].numpy(),
            "probabilities": logits[order].softmax(1).numpy(),
            "shown": torch.tensor([index for _, index, _ in self._shown]).numpy(),
            "images": torch.stack([image for _, _, image in self._shown]).float().numpy(),
        }
