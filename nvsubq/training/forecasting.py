"""ForecastingTask: numbers for the cells that are not known yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nvsubq.training.task import Task


def squares_by_step(output: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted squared errors, and weights, summed for each place along the first spatial axis (time).

    Args:
        output, targets: `[B, K, T, *spatial]`.
        weights: `[B, T, *spatial]`; 0 where nothing is to be said.

    Returns:
        Two tensors `[T]`, float64.

    Example:
        >>> ones = torch.ones(1, 1, 2, 3)
        >>> squares_by_step(3 * ones, ones, torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]]))
        (tensor([0., 8.], dtype=torch.float64), tensor([0., 2.], dtype=torch.float64))
    """
    rest = [0, *range(2, weights.ndim)]
    errors = (output.double() - targets.double()).square().mean(1) * weights.double()
    return errors.sum(rest), weights.double().sum(rest)


class ForecastingTask(Task):
    """Trains a model of a field over time with the mean squared error of the cells to forecast.

    The first spatial axis is time. Logs `train/loss val/loss val/rmse test/loss test/rmse` and, for each step
    ahead, `test/rmse_month_1 ...`; losses are mean squares, in the unit of the targets squared. The other
    arguments are those of `Task`.

    Args:
        model: maps `[B, in_channels, T, *spatial]` to `[B, num_classes, T, *spatial]`.
        class_names: of the quantities that are forecast.

    Raises:
        ValueError: an argument out of its range, or an output of another shape.
    """

    kind = "forecasting"
    monitor = "val/rmse"
    scores = ("val/rmse", "val/loss", "train/loss")
    least_classes = 1

    def __init__(
        self,
        model: nn.Module,
        *,
        class_names: Sequence[str],
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
        self._validated: list[tuple[int, Tensor, Tensor]] = []
        self._tested: list[tuple[int, Tensor, Tensor]] = []

    def checked(self, fields: Tensor, targets: Tensor) -> Tensor:
        """The model's output, held against the shape of the targets."""
        output = self(fields)
        if output.shape != targets.shape:
            raise ValueError(
                f"The model's output (shape {tuple(output.shape)}) must be {list(targets.shape)}: a number "
                "for each quantity and cell."
            )
        return output.float()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch `(fields, targets, weights)`."""
        (fields, targets, weights), count, share = self.shared(batch, batch_idx)
        errors = (self.checked(fields, targets) - targets).square().mean(1) * weights
        loss = errors.sum() / weights.sum().clamp_min(1.0)  # a crop may be all land
        self.log_epoch("train/loss", loss, count)
        return loss * share

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Scores a batch of validation."""
        self._validated += self._score(batch, len(self._validated))

    def on_validation_epoch_end(self) -> None:
        """Logs loss and RMSE over all of validation."""
        squares, weights = self._sums(self._validated, None)
        self._validated = []
        loss = squares.sum() / weights.sum()
        self.log_score("val/loss", loss.float())
        self.log_score("val/rmse", loss.sqrt().float())

    def on_test_start(self) -> None:
        """Forgets what an earlier test found."""
        self._tested = []

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Scores a batch of the test split."""
        self._tested += self._score(batch, len(self._tested))

    def on_test_epoch_end(self) -> None:
        """Logs loss and RMSE over the whole test split, and RMSE for each step ahead."""
        squares, weights = self._sums(self._tested, self.test_size())
        loss = squares.sum() / weights.sum()
        self.log_score("test/loss", loss.float())
        self.log_score("test/rmse", loss.sqrt().float())
        ahead = (squares / weights)[weights > 0].sqrt()
        for number, value in enumerate(ahead, 1):
            self.log_score(f"test/rmse_month_{number}", value.float())

    def _score(self, batch: Any, before: int) -> list[tuple[int, Tensor, Tensor]]:
        """Number, squares and weights of each item."""
        fields, targets, weights = batch
        output = self.checked(fields, targets)
        indices = self.test_indices(before, len(targets)).tolist()
        items = zip(indices, output.cpu(), targets.cpu(), weights.cpu(), strict=True)
        return [(i, *squares_by_step(y[None], t[None], w[None])) for i, y, t, w in items]

    def _sums(self, rows: list[tuple[int, Tensor, Tensor]], size: int | None) -> tuple[Tensor, Tensor]:
        """Squares and weights of all processes' items, each once."""
        found = {index: (squares, weights) for index, squares, weights in self.gathered(rows)}
        kept = [found[index] for index in sorted(found) if size is None or index < size]
        squares, weights = (torch.stack(part).sum(0) for part in zip(*kept, strict=True))
        return squares, weights

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The output for the fields of a batch."""
        return self(batch[0] if isinstance(batch, (tuple, list)) else batch).float()

    def predictions(self) -> dict[str, Any]:
        """Arrays `indices squares weights` of the last test run (see `run_folder`)."""
        rows = sorted(self._tested, key=lambda row: row[0])
        return {
            "indices": torch.tensor([index for index, *_ in rows]).numpy(),
            "squares": torch.stack([squares for _, squares, _ in rows]).numpy(),
            "weights": torch.stack([weights for *_, weights in rows]).numpy(),
        }
