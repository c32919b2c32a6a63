"""StateNorm: how large the states of the recurrent cores are where their walks end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from nvsubq.nd.mixer import NDMixer
from nvsubq.nd.tables import order_table

STATE = "lrnn_state"
"""The key of an inference cache that holds the recurrent state."""


class StateNorm(Callback):
    """Logs `state/norm`, the mean over layers, walks and items, and `state/norm_max`.

    Once an epoch the last training batch goes through the model once more, without gradients, and each core
    of an `NDMixer` walks what reached it and keeps its final state: the norm is the square root of the mean
    square of that state's elements. A state that grows from epoch to epoch says that a decay is too near 1.
    Cores without a state (attention), foreign ones, and walks over a share of the channels are left out.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the batch."""
        self._batch = batch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks, and logs where there was anything to see."""
        if self._batch is None:
            return
        norms = state_norms(pl_module, self._batch[0])
        self._batch = None
        if norms:
            pl_module.log("state/norm", sum(norms) / len(norms), batch_size=1, sync_dist=True)
            pl_module.log("state/norm_max", max(norms), batch_size=1, sync_dist=True, reduce_fx="max")


def state_norms(task: nn.Module, images: Tensor) -> list[float]:
    """The root mean square of each core's final state, over a batch."""
    norms: list[float] = []

    def look(mixer: nn.Module, given: Any) -> None:
        assert isinstance(mixer, NDMixer)
        if mixer.causal and not mixer.split and len(given) == 1:  # with `spatial` there is a class token
            norms.extend(_of_walks(mixer, given[0]))

    handles = [m.register_forward_pre_hook(look) for m in task.modules() if isinstance(m, NDMixer)]
    training = task.training
    task.eval()
    try:
        with torch.no_grad():
            task(images)
    finally:
        task.train(training)
        for handle in handles:
            handle.remove()
    return norms


def _of_walks(mixer: NDMixer, field: Tensor) -> Iterator[float]:
    cells, shape = field.flatten(1, -2), field.shape[1:-1]
    for i, path in enumerate(mixer.paths):
        core: Any = getattr(mixer, path.core)
        if not hasattr(core, "allocate_inference_cache"):
            continue
        if path.order == "row_major":
            order = torch.arange(cells.shape[1], device=cells.device)
        else:
            order = order_table(path.order, shape, cells.device, False).long()
        told = cells if mixer.direction is None else cells + mixer.direction[i].to(cells.dtype)
        walked = told[:, order.flip(0) if path.reverse else order]  # a cache goes forward alone
        cache = core.allocate_inference_cache(len(walked), walked.shape[1])
        core(walked, inference_cache=cache)
        if isinstance(cache.get(STATE), Tensor):
            yield float(cache[STATE].abs().double().square().mean().sqrt())
