"""What each process of a sequence-parallel test runs: models on a slab, and the same on the whole field."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nvsubq import NDBackbone, NDMixer, NDSegmenter, NDUNet
from nvsubq.cores import RGLRU, S5, S7, Mamba, Mamba2
from nvsubq.parallel import Slabs, join_slabs, sequence_parallel, sum_gradients

# Uneven, and with one plane of 2 x 2 cells the shortest slab has not enough for a convolution's taps at once.
PLANES = {2: (5, 1), 3: (3, 1, 4)}
CORES: dict[str, Any] = {
    "mamba": Mamba,
    "mamba zoh": partial(Mamba, discretization="zoh"),
    "mamba bilinear": partial(Mamba, discretization="bilinear"),
    "mamba complex and modulated": partial(Mamba, a_init="s4d_lin", a_modulation=True),
    "mamba dilated": partial(Mamba, conv_dilations=(1, 3)),
    "mamba portable": partial(Mamba, use_fast_path=False),
    "s5": partial(S5, d_state=8),
    "s5 half of the pairs": partial(S5, d_state=8, conj_sym=True, discretization="bilinear"),
    "rglru": partial(RGLRU, expand=1.5),
    "rglru first as it is": partial(RGLRU, normalize_first=False),
    "mamba2": partial(Mamba2, d_state=8, headdim=4),
    "s7": partial(S7, d_state=4),
    "s7 delta": partial(S7, d_state=4, variant="delta"),
}
SCANS: dict[str, Any] = {
    "snake": "snake",
    "axes(0, 2, 1)": "axes(0, 2, 1)",
    "two": ["row_major", "axes(0, 2, 1)"],
    "split": {"split_channels": ["row_major", "snake"]},
}


def mixer(core: Any, **options: Any) -> Any:
    return partial(NDMixer, core, **options)


def mamba_both_ways() -> Any:
    return mixer(partial(Mamba, d_state=4), bidirectional=True)


def segmenter(**options: Any) -> nn.Module:
    defaults = {"patch_size": 2, "depths": (2,), "dims": (8,), "mixer": mamba_both_ways(), "local_conv": 3}
    return NDSegmenter(3, 1, 3, **{**defaults, "head_channels": 4, **options})


def checkpointed() -> nn.Module:
    model = segmenter()
    model.set_grad_checkpointing()
    return model


# Models, the axis of the planes in their input and in their output (None: the same everywhere), and how many
# planes one of `PLANES` stands for.
MODELS: dict[str, tuple[Callable[[], nn.Module], int | None, int]] = {
    "segmenter": (segmenter, 2, 2),
    "segmenter of wide kernels": (lambda: segmenter(local_conv=5, stem="conv", pos_embed="sincos"), 2, 4),
    "segmenter that computes again": (checkpointed, 2, 2),
    "u-net": (
        lambda: NDUNet(
            3, 1, 3, patch_size=2, depths=(1, 1), dims=(8, 8), mixer=mamba_both_ways(), local_conv=3,
            pos_embed="axes", img_size=(32, 6, 6), head_channels=4,
        ),
        2,
        4,
    ),
    "classifier of means": (
        lambda: NDBackbone(3, 1, 3, patch_size=2, depths=(1,), dims=(8,), mixer=mamba_both_ways()),
        None,
        2,
    ),
    "classifier of peaks": (
        lambda: NDBackbone(
            3, 1, 3, patch_size=2, depths=(1,), dims=(8,), mixer=mamba_both_ways(), global_pool="max",
            pos_embed="learned", img_size=(16, 6, 6),
        ),
        None,
        2,
    ),
}  # fmt: skip


class Here:
    """One process of a test.

    Args:
        device: of the tensors.
        planes: of all slabs.
    """

    def __init__(self, device: torch.device, planes: tuple[int, ...]) -> None:
        self.device, self.planes, self.slabs = device, planes, Slabs()

    def own(self, field: Tensor, axis: int, times: int = 1) -> Tensor:
        """This process's slab."""
        sizes = [planes * times for planes in self.planes]
        first = sum(sizes[: self.slabs.rank])
        return field.narrow(axis, first, sizes[self.slabs.rank])

    def made(self, build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
        """The same model twice: whole, and in slabs."""
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(build().to(self.device))
        sequence_parallel(models[1], self.slabs)
        return models[0], models[1]

    def drawn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self.device)

    def errors(
        self, build: Callable[[], nn.Module], x: Tensor, axes: tuple[int, int | None], times: int = 1
    ) -> dict[str, float]:
        """How far outputs and gradients in slabs are from those of the whole, over the largest of each."""
        whole, cut = self.made(build)
        x, slab = x.clone().requires_grad_(), self.own(x, axes[0], times).clone().requires_grad_()
        y, part = whole(x), cut(slab)
        found = {}
        cotangent = self.drawn(*y.shape)
        y.backward(cotangent)
        if axes[1] is None:  # every process has the same output; the loss is counted once
            found["y"] = distance(part, y)
            part.backward(cotangent / self.slabs.count)
        else:
            found["y"] = distance(part, self.own(y, axes[1], times), y)
            part.backward(self.own(cotangent, axes[1], times))
        sum_gradients(cut, self.slabs)
        found["d_x"] = distance(slab.grad, self.own(x.grad, axes[0], times), x.grad)
        largest = max(float(p.grad.abs().max()) for p in whole.parameters() if p.grad is not None)
        for (name, p), q in zip(whole.named_parameters(), cut.parameters(), strict=True):
            if p.grad is not None:
                found[name] = distance(q.grad, p.grad, p.grad, least=1e-3 * largest)
        return found

    def mixers(self) -> Iterator[tuple[str, dict[str, float]]]:
        x = self.drawn(2, sum(self.planes), 2, 2, 8)
        for name, core in CORES.items():
            for both in (False, True):
                build = mixer(core, d_model=8, bidirectional=both)
                yield f"{name}{', both ways' if both else ''}", self.errors(build, x, (1, 1))
        x = self.drawn(2, sum(self.planes), 3, 2, 8)
        for name, scan in SCANS.items():
            build = mixer(Mamba, d_model=8, bidirectional=True, scan=scan)
            yield f"scan {name}", self.errors(build, x, (1, 1))

    def models(self) -> Iterator[tuple[str, dict[str, float]]]:
        for name, (build, out, times) in MODELS.items():
            x = self.drawn(2, 1, sum(self.planes) * times, 6, 5)
            yield name, self.errors(build, x, (2, out), times)

    def training(self) -> Iterator[tuple[str, dict[str, float]]]:
        """A few steps of a whole segmenter, the slabs' losses weighted by their cells."""
        whole, cut = self.made(segmenter)
        x = self.drawn(1, 1, sum(self.planes) * 2, 6, 5)
        target = (x[:, 0] > 0).long() + (x[:, 0] > 1).long()
        slab, own_target = self.own(x, 2, 2), self.own(target, 1, 2)
        steps = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (whole, cut)]
        found = {}
        for step in range(4):
            for optimizer in steps:
                optimizer.zero_grad()
            loss = F.cross_entropy(whole(x), target)
            loss.backward()
            part = F.cross_entropy(cut(slab), own_target) * (own_target.numel() / target.numel())
            part.backward()
            sum_gradients(cut, self.slabs)
            dist.all_reduce(total := part.detach().clone())
            found[f"loss {step}"] = distance(total, loss)
            for optimizer in steps:
                optimizer.step()
        for (name, p), q in zip(whole.named_parameters(), cut.parameters(), strict=True):
            found[name] = distance(q, p)
        with torch.no_grad():
            found["joined"] = distance(join_slabs(cut(slab), self.slabs), whole(x))
        yield "training", found

    def refusals(self) -> Iterator[tuple[str, str]]:
        """What every process says of fields that can't be cut so."""
        x = self.drawn(2, sum(self.planes), 2, 2, 8)
        late = self.slabs.rank == self.slabs.count - 1
        cut = {
            "columns": (mixer(Mamba, d_model=8, scan="column_major"), self.own(x, 1)),
            "batches": (mixer(Mamba, d_model=8), self.own(x, 1)[: 1 if late else 2]),
            "patches": (segmenter, self.drawn(1, 1, 2 if late else 3, 6, 5)),
            "thin": (lambda: segmenter(patch_size=1, local_conv=5), self.drawn(1, 1, 1 if late else 4, 6, 5)),
        }
        for name, (build, slab) in cut.items():
            try:
                self.made(build)[1](slab)
                yield name, "nothing"
            except ValueError as error:
                yield name, str(error)


def distance(found: Tensor, wanted: Tensor, scale: Tensor | None = None, least: float = 0.0) -> float:
    """The largest difference over the largest value."""
    largest = float((wanted if scale is None else scale).detach().abs().max())
    return float((found.detach() - wanted.detach()).abs().max()) / max(largest, least, 1e-12)


def run(rank: int, world: int, folder: str, kind: str) -> None:
    """Run all cases in one process and write what was found to `rank.json`."""
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    found: dict[str, Any] = {"errors": {}, "refusals": {}}
    try:
        here = Here(device, PLANES[world])
        for part in (here.mixers, here.models, here.training):
            found["errors"].update(part())
        found["refusals"].update(here.refusals())
    except BaseException:
        found["failure"] = traceback.format_exc()
        raise
    finally:
        Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
    os._exit(0)  # else gloo's threads, which still let go of tensors, may abort an interpreter that ends
