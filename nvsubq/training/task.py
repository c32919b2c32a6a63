"""What both tasks share: the model, the optimizer, and the names of what is logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn

from nvsubq.training.optim import SCHEDULES, adamw, ranks_of, schedule
from nvsubq.training.shares import share_of


def check_range(
    name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False
) -> float:
    """`value` as a float in [low, high] ((low, high] with `open_low`), or a ValueError that names it."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (low < value <= high if open_low else low <= value <= high):
        bounds = f"{'above' if open_low else 'at least'} {low}" + (
            f" and at most {high}" if high < math.inf else ""
        )
        raise ValueError(f"`{name}` (={value!r}) must be a number {bounds}.")
    return float(value)


class Task(L.LightningModule):
    """A model with a loss, metrics and an optimizer. Subclasses say what is scored.

    Args:
        model: maps a batch `[B, in_channels, *spatial]` to logits.
        class_names: one name for each class; their number is the number of classes.
        lr: peak learning rate of AdamW.
        weight_decay: of every matrix that ``model.no_weight_decay()`` does not exempt.
        betas: of AdamW.
        schedule: "cosine" or "constant", both after a linear warm-up, per optimizer step.
        warmup: fraction of all steps that the warm-up takes.
        final_lr: where the cosine ends, as a fraction of `lr`.

    Raises:
        ValueError: an argument out of its range.
    """

    kind: str
    monitor: str
    scores: tuple[str, ...]  # metrics of validation that a checkpoint can follow
    least_classes = 2

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
        super().__init__()
        if len(class_names) < self.least_classes:
            least = "two classes" if self.least_classes == 2 else "one quantity"
            raise ValueError(f"`class_names` (={list(class_names)}) must name at least {least}.")
        if schedule not in SCHEDULES:
            raise ValueError(f"`schedule` (={schedule!r}) must be one of {', '.join(SCHEDULES)}.")
        if len(betas) != 2:
            raise ValueError(f"`betas` (={list(betas)}) must be two numbers.")
        self.model = model
        self._ranks = ranks_of(model)
        self.class_names = [str(name) for name in class_names]
        self.num_classes = len(self.class_names)
        self.lr = check_range("lr", lr, 0.0, open_low=True)
        self.weight_decay = check_range("weight_decay", weight_decay, 0.0)
        self.betas = (
            check_range("betas[0]", betas[0], 0.0, 1.0),
            check_range("betas[1]", betas[1], 0.0, 1.0),
        )
        self.schedule = schedule
        self.warmup = check_range("warmup", warmup, 0.0, 1.0)
        self.final_lr = check_range("final_lr", final_lr, 0.0, 1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch `[B, in_channels, *spatial]`."""
        return self.model(images)

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities along axis 1, in fp32, of images of any size; no gradient, evaluation mode."""
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                return self.logits(images.to(self.device)).float().softmax(1)
        finally:
            self.train(training)

    def logits(self, images: Tensor) -> Tensor:
        """Logits as they are evaluated: what `forward` gives, or a tiling of it."""
        return self(images)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities of the images of a batch."""
        return self.logits(batch[0] if isinstance(batch, (tuple, list)) else batch).float().softmax(1)

    def shared(self, batch: Any, batch_idx: int, split: str = "train") -> tuple[Any, int, float]:
        """A batch without what is in it a second time, how many of its items count, and their weight.

        With several processes, `share_of` says why. A batch in which nothing counts stays as it is, with 0
        items and weight 0: every process must take every step.

        Args:
            batch: a tuple of tensors, items along their first axis.
            batch_idx: its number in the epoch.
            split: "train" or "val".
        """
        count = len(batch[0])
        if self._trainer is None or self.trainer.world_size == 1:
            return batch, count, 1.0
        loader = self.trainer.train_dataloader if split == "train" else self.trainer.val_dataloaders
        own, weight = share_of(loader, batch_idx, count)
        return (tuple(part[:own] for part in batch) if own else batch), own, weight

    def log_score(self, name: str, value: Tensor) -> None:
        """Logs a number that was counted on the CPU from all processes' items, the same in each of them."""
        # To the device: NCCL, by which Lightning takes the mean of equals, knows no CPU.
        self.log(name, value.to(self.device), sync_dist=True)

    def log_epoch(self, name: str, value: Any, batch_size: int) -> None:
        """Logs a mean over the epoch, over all processes."""
        # A float: Lightning would round half of an odd sum down where two processes share it.
        size: Any = float(batch_size)
        self.log(name, value, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)

    def predictions(self) -> dict[str, Any]:
        """What the last test run predicted, as arrays (see `run_folder`)."""
        raise NotImplementedError

    def gathered(self, rows: list[Any]) -> list[Any]:
        """The rows of all processes (each scored its share of the test split)."""
        if self.trainer.world_size == 1:
            return rows
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, rows)
        return [row for part in parts for row in part]

    def test_indices(self, first: int, count: int) -> Tensor:
        """Numbers in the test split of the `count` items after the `first` that this process has had.

        Processes take every `world_size`-th item; what fills up the end gets numbers past the split's size.
        """
        return (first + torch.arange(count)) * self.trainer.world_size + self.trainer.global_rank

    def test_size(self) -> int:
        """Items in the test split."""
        loaders = self.trainer.test_dataloaders
        return len(loaders.dataset)  # type: ignore[union-attr]

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as the trainer says; the norm of gradients in shards is known to FSDP's root alone."""
        root: Any = self.trainer.strategy.model
        if gradient_clip_val and gradient_clip_algorithm != "value" and hasattr(root, "clip_grad_norm_"):
            root.clip_grad_norm_(gradient_clip_val)
            return
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        """AdamW, and the schedule stepped after every optimizer step."""
        steps = self.trainer.estimated_stepping_batches
        clock = _clock(self.trainer)
        if self.schedule == "cosine" and clock is None and not math.isfinite(steps):
            raise ValueError(
                "`schedule` (='cosine') needs an end: set trainer.max_epochs, trainer.max_steps "
                "or trainer.max_time."
            )
        # Lightning cannot clip the gradients of a fused optimizer under mixed precision.
        fused = not (self.trainer.gradient_clip_val and "mixed" in str(self.trainer.precision))
        optimizer = adamw(
            self.model,
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=self.betas,
            fused=fused,
            ranks=self._ranks,
        )
        factor = schedule(self.schedule, steps, self.warmup, self.final_lr, clock)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _clock(trainer: Any) -> Callable[[], float] | None:
    """How much of `trainer.max_time` is over, in [0, 1]; None where the trainer has no such limit."""
    timer = next((callback for callback in trainer.callbacks if isinstance(callback, Timer)), None)
    limit = None if timer is None else timer.time_remaining()
    if timer is None or limit is None:
        return None
    total = limit + timer.time_elapsed()
    return lambda: min(1.0, timer.time_elapsed() / total)
