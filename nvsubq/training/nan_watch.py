"""NaNWatch: a loss or a gradient that is not finite stops the run, and says where it came from."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from nvsubq.training.durable import write_whole
from nvsubq.training.position import random_state, set_random_state

NAN_FILE = "nan_batch.pt"
"""In the run folder: the batch, the weights before its step, and the random state, for `torch.load`."""


class NaNWatch(Callback):
    """Stops at the first batch whose loss or gradient is not finite, before the weights take it.

    The batch is run again, with the same random draws, to find the first module whose output (or, on the way
    back, whose gradient) is not finite although all that went into it was. Batch, weights and random state
    are written to ``nan_batch.pt`` in the run folder, which loads with ``weights_only=True``.

    Args:
        every_n_steps: look at each `every_n_steps`th step, at every batch of it where gradients of several
            are added up; looking makes a GPU wait for the loss.
        gradients: look at gradients as well. With ``precision=16-mixed`` they are not looked at: there the
            scaler skips steps that overflow, which is no failure.

    Raises:
        ValueError: `every_n_steps` is not positive.
    """

    def __init__(self, *, every_n_steps: int = 1, gradients: bool = True) -> None:
        if isinstance(every_n_steps, bool) or not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"`every_n_steps` (={every_n_steps!r}) must be an integer of at least 1.")
        self.every_n_steps, self.gradients = every_n_steps, gradients
        self._batch: Any = None
        self._batch_idx = 0
        self._random: dict[str, Any] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps a batch that will be looked at, and the random state before it."""
        looked = batch_idx // trainer.accumulate_grad_batches % self.every_n_steps == 0
        self._batch, self._batch_idx = (batch if looked else None), batch_idx
        if looked:
            self._random = random_state()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Looks at the loss."""
        if self._batch is not None and not bool(torch.isfinite(loss).all()):
            value = float(loss.detach()) * trainer.accumulate_grad_batches
            self._stop(trainer, pl_module, f"`train/loss` is {value}", backward=False)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks at the gradients so far: at the step itself nothing tells which batch spoilt them."""
        if self._batch is None or not self.gradients or trainer.precision == "16-mixed":
            return
        norm = gradient_norm(pl_module)
        if not math.isfinite(norm):
            names = [name for name, p in pl_module.named_parameters() if not _finite(p.grad)]
            what = f"the gradient of {names[0]} is not finite" if names else f"the gradient's norm is {norm}"
            self._stop(trainer, pl_module, what, backward=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets the last batch go."""
        self._batch = None

    def _stop(self, trainer: L.Trainer, pl_module: L.LightningModule, what: str, *, backward: bool) -> None:
        content = {
            "batch": self._batch,
            "batch_idx": self._batch_idx,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "random": self._random,
            "state_dict": pl_module.state_dict(),
        }
        kept = _kept(Path(trainer.default_root_dir) / NAN_FILE, content, write=trainer.is_global_zero)
        found = origin(pl_module, self._batch, self._batch_idx, self._random, backward=backward)
        place = (
            f"step {trainer.global_step + 1}, epoch {trainer.current_epoch + 1}, batch {self._batch_idx + 1}"
        )
        raise FloatingPointError(
            f"{what} ({place}): training diverged.\n"
            f"  It came from {found}.\n"
            f"  {kept}\n"
            "  Lower `task.lr`, raise `task.warmup`, or set `trainer.gradient_clip_val`."
        )


def gradient_norm(module: nn.Module) -> float:
    """The 2-norm of all gradients together."""
    gradients = [p.grad.detach() for p in module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0


def origin(
    task: L.LightningModule, batch: Any, batch_idx: int, random: dict[str, Any], *, backward: bool
) -> str:
    """Where the first figure that is not finite comes from, in words; runs the step again."""
    if any(not _finite(tensor) for tensor in _tensors(batch)):
        return "the batch: it holds values that are not finite"
    for name, parameter in task.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name}: an earlier step made it not finite"
    set_random_state(random)
    task.zero_grad()
    with _watched(task, backward) as found, _unlogged(task), torch.enable_grad():
        try:
            loss: Any = task.training_step(batch, batch_idx)
            if backward:
                with warnings.catch_warnings():  # torch's, for the first layer: its input needs no gradient
                    warnings.simplefilter("ignore")
                    loss.backward()
        except (
            RuntimeError
        ) as error:  # a model that changes outputs in place can't be watched on the way back
            return f"a layer that cannot be told: {str(error).splitlines()[0]}"
    if found:
        return found[0]
    return "the loss itself: every layer's figures are finite" if not backward else "no single layer"


@contextmanager
def _watched(task: nn.Module, backward: bool) -> Iterator[list[str]]:
    """Fills a list with the modules that turn finite figures into others, the first one first."""
    found: list[str] = []
    handles = []
    for name, module in task.named_modules():
        if not name:
            continue
        what = f"{name} ({type(module).__name__})"

        def forward_hook(module: nn.Module, given: Any, made: Any, what: str = what) -> None:
            if all(map(_finite, _tensors(given))) and not all(map(_finite, _tensors(made))):
                found.append(f"the output of {what}")

        def backward_hook(module: nn.Module, made: Any, given: Any, what: str = what) -> None:
            if all(map(_finite, _tensors(given))) and not all(map(_finite, _tensors(made))):
                found.append(f"the gradient through {what}")

        if backward:
            handles.append(module.register_full_backward_hook(backward_hook))
        else:
            handles.append(module.register_forward_hook(forward_hook))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unlogged(task: L.LightningModule) -> Iterator[None]:
    """The second run of a step logs nothing."""
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del task.log


def _kept(file: Path, content: dict[str, Any], *, write: bool) -> str:
    """Writes the file, and says where it is; what goes wrong there must not hide why the run ends."""
    try:
        if write:
            memory = io.BytesIO()
            torch.save(content, memory)
            write_whole(file, memory.getbuffer())
    except Exception as error:
        reason = (
            (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        )
        return f"Batch and weights could not be written to {file}: {reason}."
    return f"Batch and weights are in {file}."


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _finite(value: Tensor | None) -> bool:
    return value is None or bool(torch.isfinite(value).all())
