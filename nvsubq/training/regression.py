"""RegressionTask: numbers for the cells of one region of the field."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nvsubq.training.task import Task

SHOWN = 4
"""Test items whose inputs, targets and answers are kept for pictures."""


class RegressionTask(Task):
    """Trains a dense model with the mean squared error inside a readout region.

    Logs `train/loss val/loss val/mse test/loss test/mse`; the loss is the mean squared error itself, over
    items, channels and the cells of the region. The other arguments are those of `Task`.

    Args:
        model: maps `[B, in_channels, *canvas]` to `[B, num_classes, *canvas]`.
        class_names: of the channels of an answer.
        readout: first cell and end of the region along each axis of the canvas; None takes all of it.

    Raises:
        ValueError: an argument out of its range, or an output or targets of another shape.

    Example:
        >>> task = RegressionTask(nn.Identity(), class_names=["grey"], readout=[[2, 4]])
        >>> task.read(torch.arange(4.0)[None, None])
        tensor([[[2., 3.]]])
    """

    kind = "regression"
    monitor = "val/mse"
    scores = ("val/mse", "val/loss", "train/loss")
    least_classes = 1

    def __init__(
        self,
        model: nn.Module,
        *,
        class_names: Sequence[str],
        readout: Sequence[Sequence[int]] | None = None,
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
        self.readout = None if readout is None else _region(readout)
        self._validated: list[tuple[int, float]] = []
        self._tested: list[tuple[int, float]] = []
        self._shown: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def read(self, output: Tensor) -> Tensor:
        """The readout region of a field `[B, K, *canvas]`, in fp32."""
        if self.readout is None:
            return output.float()
        canvas = tuple(output.shape[2:])
        if len(canvas) != len(self.readout) or any(
            part.stop > n for part, n in zip(self.readout, canvas, strict=True)
        ):
            shown = [[part.start, part.stop] for part in self.readout]
            raise ValueError(f"`readout` (={shown}) must lie within the canvas {list(canvas)}.")
        return output[(slice(None), slice(None), *self.readout)].float()

    def checked(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The model's answer `[B, K, *readout]`, held against the shapes of the canvas and of the targets."""
        output = self(inputs)
        expected = [len(inputs), self.num_classes, *inputs.shape[2:]]
        if list(output.shape) != expected:
            raise ValueError(
                f"The model's output (shape {tuple(output.shape)}) must be {expected}: "
                f"{self.num_classes} number{'s' if self.num_classes > 1 else ''} for each cell of the canvas."
            )
        answers = self.read(output)
        if answers.shape != targets.shape:
            raise ValueError(
                f"The targets (shape {tuple(targets.shape)}) must be {list(answers.shape)}, as the readout."
            )
        return answers

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch `(inputs, targets)`."""
        (inputs, targets), count, share = self.shared(batch, batch_idx)
        loss = (self.checked(inputs, targets) - targets).square().mean()
        self.log_epoch("train/loss", loss, count)
        return loss * share

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Scores a batch of validation."""
        inputs, targets = batch
        self._validated += self._scored(self.checked(inputs, targets), targets, len(self._validated))

    def on_validation_epoch_end(self) -> None:
        """Logs the error over all of validation."""
        self._log("val", self._validated, self._size(self.trainer.val_dataloaders))
        self._validated = []

    def on_test_start(self) -> None:
        """Forgets what an earlier test found."""
        self._tested, self._shown = [], []

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Scores a batch of the test split."""
        inputs, targets = batch
        answers = self.checked(inputs, targets)
        rows = self._scored(answers, targets, len(self._tested))
        self._tested += rows
        room = SHOWN - len(self._shown)
        kept = zip(rows[:room], inputs.cpu(), targets.cpu(), answers.cpu(), strict=False)
        self._shown += [(index, *(part.clone() for part in parts)) for (index, _), *parts in kept]

    def on_test_epoch_end(self) -> None:
        """Logs the error over the whole test split."""
        self._tested = self._log("test", self._tested, self.test_size())

    def _scored(self, answers: Tensor, targets: Tensor, before: int) -> list[tuple[int, float]]:
        """Number and mean squared error of each item."""
        errors = (answers.double() - targets.double()).square().flatten(1).mean(1)
        indices = self.test_indices(before, len(targets)).tolist()
        return list(zip(indices, errors.tolist(), strict=True))

    def _log(self, split: str, rows: list[tuple[int, float]], size: int) -> list[tuple[int, float]]:
        """Logs the mean over all processes' items, each once, and returns them in their order."""
        found = dict(self.gathered(rows))
        kept = [(index, found[index]) for index in sorted(found) if index < size]
        mean = torch.tensor([error for _, error in kept], dtype=torch.float64).mean()
        for name in ("loss", "mse"):
            self.log_score(f"{split}/{name}", mean)
        return kept

    @staticmethod
    def _size(loaders: Any) -> int:
        return len((loaders[0] if isinstance(loaders, (list, tuple)) else loaders).dataset)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The answers to the inputs of a batch."""
        return self.read(self(batch[0] if isinstance(batch, (tuple, list)) else batch))

    def predictions(self) -> dict[str, Any]:
        """Arrays `indices squares shown inputs targets answers` of the last test run (see `run_folder`)."""
        arrays: dict[str, Any] = {
            "indices": torch.tensor([index for index, _ in self._tested], dtype=torch.int64).numpy(),
            "squares": torch.tensor([error for _, error in self._tested], dtype=torch.float64).numpy(),
            "shown": torch.tensor([index for index, *_ in self._shown], dtype=torch.int64).numpy(),
        }
        if self._shown:
            columns = zip(*self._shown, strict=True)
            next(columns)
            for name, parts in zip(("inputs", "targets", "answers"), columns, strict=True):
                arrays[name] = torch.stack(list(parts)).float().numpy()
        return arrays


def _region(readout: Sequence[Sequence[int]]) -> tuple[slice, ...]:
    try:
        pairs = [(operator.index(first), operator.index(end)) for first, end in readout]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or any(not 0 <= first < end for first, end in pairs):
        raise ValueError(
            f"`readout` (={readout!r}) must be null or, for each axis, the first cell and the end of a range."
        )
    return tuple(slice(first, end) for first, end in pairs)
