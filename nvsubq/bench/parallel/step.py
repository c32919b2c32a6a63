"""One training step of a 3-D segmenter whose field lies in slabs, timed with and without its exchanges."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from nvsubq.cores import Mamba
from nvsubq.models import NDSegmenter
from nvsubq.nd.mixer import NDMixer
from nvsubq.parallel import Slabs, sequence_parallel, sum_gradients

PATCH, CLASSES = 4, 4
MODEL = "NDSegmenter, patches of 4, 4 blocks of 96 channels, Mamba both ways, local convolution of 3"


class Setting(NamedTuple):
    """What is measured.

    Args:
        side: cells along the second and the third axis.
        width: channels of a token.
        depth: blocks.
        repeats: timed steps of each kind.
    """

    side: int
    width: int = 96
    depth: int = 4
    repeats: int = 3


class CountingSlabs(Slabs):
    """Slabs that count the bytes which this process sends, and can leave the exchange out.

    Without exchange each process works alone on its slab: results are wrong, but the work is the same.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sent, self.alone = 0, False

    def layout(self, shape: Any, axis: int = 1) -> list[int]:
        return [shape[axis]] * self.count if self.alone else super().layout(shape, axis)

    def gather(self, x: Tensor, back: bool = False) -> Tensor:
        self.sent += x.numel() * x.element_size() * (self.count - 1)
        return x.expand(self.count, *x.shape).clone() if self.alone else super().gather(x, back)

    def swap(self, to_before: Tensor, to_after: Tensor) -> tuple[Tensor, Tensor]:
        neighbours = (self.rank > 0) * to_before.numel() + (self.rank < self.count - 1) * to_after.numel()
        self.sent += neighbours * to_before.element_size()
        if self.alone:
            return torch.zeros_like(to_after), torch.zeros_like(to_before)
        return super().swap(to_before, to_after)


class Training:
    """A model on this process's device; it trains on random fields, the slabs of all processes alike."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.setting, self.device = setting, device
        self.slabs = CountingSlabs()
        torch.manual_seed(0)
        mixer = partial(NDMixer, Mamba, bidirectional=True, fuse="mean")
        self.model = NDSegmenter(
            3, 1, CLASSES, patch_size=PATCH, depths=(setting.depth,), dims=(setting.width,), mixer=mixer,
            local_conv=3,
        ).to(device)  # fmt: skip
        sequence_parallel(self.model, self.slabs)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=device.type == "cuda")

    def fields(self, planes: int) -> tuple[Tensor, Tensor]:
        """This process's slab of a field of so many planes, and a class for each of its cells."""
        shape = (1, planes // self.slabs.count, self.setting.side, self.setting.side)
        image = torch.randn(1, *shape, device=self.device)
        return image, torch.randint(CLASSES, shape, device=self.device)

    def step(self, image: Tensor, target: Tensor) -> None:
        """Forward, backward and an optimizer's step, as `trainer=gpu` does them: bf16 where that is safe."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(image)
        loss = F.cross_entropy(logits.float(), target) / self.slabs.count
        del logits
        loss.backward()
        if not self.slabs.alone:
            sum_gradients(self.model, self.slabs)
        self.optimizer.step()

    def measured(self, planes: int, *, brief: bool = False) -> dict[str, Any]:
        """Time, memory and exchange of a step on a field of so many planes, the slowest process's.

        With `brief` of one step alone, and without what the exchange costs.
        """
        image, target = self.fields(planes)
        run = partial(self.step, image, target)
        self._reset_peak()
        run()
        self.slabs.sent = 0
        repeats = 1 if brief else self.setting.repeats
        seconds = self._seconds(run, repeats)
        sent = self.slabs.sent // repeats
        peak = self._peak()
        found: dict[str, Any] = {
            "processes": self.slabs.count,
            "field": [planes, self.setting.side, self.setting.side],
            "cells": planes * self.setting.side**2,
            "step_s": seconds,
            "peak_bytes": peak,
        }
        if self.slabs.count == 1 or brief:
            return found
        found["sent_bytes"] = sent
        found["step_without_overlap_s"] = self._seconds(run, repeats, overlap=False)
        found["step_without_exchange_s"] = self._seconds(run, repeats, alone=True)
        found["exchange_share"] = max(0.0, 1 - found["step_without_exchange_s"] / seconds)
        return found

    def _seconds(
        self, run: Callable[[], None], repeats: int, *, alone: bool = False, overlap: bool = True
    ) -> float:
        self.slabs.alone, self.slabs.overlap = alone, overlap
        try:
            times = []
            for _ in range(repeats):
                dist.barrier()
                self._synchronize()
                start = time.perf_counter()
                run()
                self._synchronize()
                times.append(time.perf_counter() - start)
        finally:
            self.slabs.alone, self.slabs.overlap = False, True
        return self.most(statistics.median(times))

    def most(self, value: float) -> float:
        """The largest of all processes' values."""
        found = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.item()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak(self) -> int | None:
        if self.device.type != "cuda":
            return None
        return int(self.most(torch.cuda.max_memory_allocated(self.device)))

    def room(self) -> int:
        """Bytes that a step may take at most, on the process with the least."""
        free, _ = torch.cuda.mem_get_info(self.device)
        held = torch.cuda.memory_reserved(self.device)
        return -int(self.most(-(free + held)))
