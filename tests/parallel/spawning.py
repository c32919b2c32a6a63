"""Processes of a test that meet in `torch.distributed`, and what they found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp
from slab_cases import run


def found_by(world: int, folder: Path, kind: str) -> list[dict[str, Any]]:
    """Run all cases in `world` processes on one kind of device, and give what each of them found."""
    mp.spawn(run, (world, str(folder), kind), nprocs=world)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
