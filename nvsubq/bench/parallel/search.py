"""The largest field that trains, found by going on until memory is full."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nvsubq.bench.parallel.step import PATCH, Setting, Training

FULL = 3
"""Exit status of a process whose memory is full; its peers wait for it and are ended."""

PROBES = (16, 32)
"""Planes of each slab that tell how memory grows."""

Sizes = list[tuple[int, int]]
"""Planes that were trained on, and the peak of memory in bytes."""

SHARES = (0.85, 0.91, 0.95, 0.98, 1.01, 1.04, 1.07)
"""Of what should fit, what is tried, in this order."""


def measure(
    processes: int, setting: Setting, device: str, planes: Sequence[int] = (), limit: float = 90.0
) -> tuple[list[dict[str, Any]], str]:
    """Train on fields of these planes, or without any on larger and larger ones.

    Args:
        processes: each with a device of its own; of the CPU all use the same.
        setting: what is measured.
        device: "cuda" or "cpu".
        planes: along the first axis, each a multiple of processes times the patch.
        limit: seconds after which no larger field is tried.

    Returns:
        what was found, in the order of sizes, and why it ended.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # of the processes
    with tempfile.TemporaryDirectory() as folder:
        given = (processes, setting, device, tuple(planes), limit, folder)
        try:
            mp.spawn(_process, given, nprocs=processes)
            end = "all were tried"
        except mp.ProcessExitedException as error:
            if error.exit_code != FULL:
                raise
            end = Path(folder, "end").read_text()
        lines = Path(folder, "found")
        text = lines.read_text() if lines.exists() else ""
    return [json.loads(line) for line in text.splitlines()], end


def _process(
    rank: int,
    processes: int,
    setting: Setting,
    kind: str,
    planes: Sequence[int],
    limit: float,
    folder: str,
) -> None:
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=120),
    )
    training = Training(setting, device)
    at, sizes = 0, Sizes()
    try:
        for at in planes or _larger(training, sizes, limit):
            found = training.measured(at, brief=not planes)
            if rank == 0:
                with Path(folder, "found").open("a") as file:
                    file.write(json.dumps(found) + "\n")
            sizes.append((at, found["peak_bytes"]))
            dist.barrier()
    except RuntimeError as error:  # of memory, or of a size that an operator of torch does not take
        end = Path(folder, "end")
        if not end.exists():  # the first one knows why; to its peers a connection was closed
            end.write_text(f"{at} planes: {str(error).splitlines()[0][:200]}")
        os._exit(FULL)
    dist.destroy_process_group()
    os._exit(0)  # else gloo's threads, which still let go of tensors, may abort an interpreter that ends


def _larger(training: Training, sizes: Sizes, limit: float) -> Iterator[int]:
    """Planes of larger and larger fields, the same in every process; `sizes` takes each one in turn."""
    start, step = time.monotonic(), PATCH * training.slabs.count
    yield from (probe * training.slabs.count for probe in PROBES)
    (first, low), (second, high) = sizes
    growth = (high - low) / (second - first)
    fits = second + (training.room() - high) / growth
    done = second
    for share in SHARES:
        planes = int(share * fits) // step * step
        if planes <= done:
            continue
        if training.most(time.monotonic() - start) > limit:
            return
        done = planes
        yield planes
