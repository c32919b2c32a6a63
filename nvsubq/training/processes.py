"""Which process of a training this is, before Lightning has set anything up, and the run folder of all."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from omegaconf import ListConfig

from nvsubq.lazy_config import ConfigError

RUN = "NVSUBQ_RUN"
"""Environment variable: the folder that the first process has claimed, for processes that it starts."""

WAIT = timedelta(minutes=10)
"""How long a process waits for the first one to claim a folder."""

# torch's process group, made later at the same address and port by the same process, takes over the server.
_store: Any = None
_runs = 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["RANK"]) == 0
    if SLURMEnvironment.detect():
        return int(os.environ.get("SLURM_PROCID", 0)) == 0
    environment = LightningEnvironment()
    return environment.node_rank() == 0 and environment.local_rank() == 0


def share_folder(folder: Path | None) -> Path | None:
    """Gives the folder that the first process has claimed to all the others.

    Processes that Lightning starts inherit it. Those that `torchrun` or SLURM start, and the first one on
    each further machine, ask the first process of all, at the address where they will meet anyway.

    Args:
        folder: of the first process; None in the others.

    Returns:
        The folder; None where there is no first process to ask.
    """
    global _runs
    if folder is not None:
        os.environ[RUN] = str(folder)
    if not _started_apart():
        return Path(os.environ[RUN]) if RUN in os.environ else None
    key, _runs = f"nvsubq/run/{_runs}", _runs + 1
    store = _meeting_place(first=folder is not None)
    if folder is not None:
        store.set(key, str(folder))
    else:
        os.environ[RUN] = store.get(key).decode()
    return Path(os.environ[RUN])


def check_single(trainer: Any) -> None:
    """Refuses a job of a sweep for which Lightning would start processes: each would run the whole sweep.

    Args:
        trainer: its config.

    Raises:
        ConfigError: it asks for several devices or machines, and nothing has started the processes for them.
    """
    if TorchElasticEnvironment.detect() or SLURMEnvironment.detect():
        return
    for key in ("devices", "num_nodes"):
        wanted = trainer.get(key)
        count = len(wanted) if isinstance(wanted, ListConfig) else wanted
        if wanted in ("auto", -1, "-1"):
            count = torch.cuda.device_count() if trainer.get("accelerator") in ("auto", "gpu", "cuda") else 1
        if str(count).isdigit() and int(str(count)) > 1:
            raise ConfigError(
                f"`trainer.{key}` (={wanted}): a job of a sweep is one process unless SLURM starts it "
                "(hydra/launcher=slurm) or torchrun the sweep; or give one command for each job."
            )


def _started_apart() -> bool:
    """Whether this process shares no environment with all the others of the training."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"]) > 1
    if SLURMEnvironment.detect():
        return int(os.environ["SLURM_NTASKS"]) > 1
    # Several machines without a manager: the first process on each is told its number, and where to meet.
    told = {"NODE_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return told and LightningEnvironment().local_rank() == 0


def _meeting_place(first: bool) -> Any:
    from torch.distributed import TCPStore

    global _store
    if _store is None:
        environment = SLURMEnvironment() if SLURMEnvironment.detect() else LightningEnvironment()
        # torchrun's agent serves at that port already.
        serves = first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        _store = TCPStore(
            environment.main_address,
            environment.main_port,
            is_master=serves,
            timeout=WAIT,
            wait_for_workers=False,
            multi_tenant=True,
        )
    return _store
