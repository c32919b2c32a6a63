"""A study of seconds: short signals, narrow models, two steps."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

from omegaconf import OmegaConf

from nvsubq.study import worker

TINY = (
    "steps=2",
    "parameters=2000",
    "cores=[rglru,s5]",
    "spatial_dims=[1]",
    "tasks=[simple_copy]",
    "seeds=[0,1]",
    "rates=[1e-3,1e-2]",
    "choose_on.spatial_dims=1",
    "overrides.spatial_dims.1=['data.canvas=[80]']",
    "overrides.all=['data.item=4','data.batch_size=4','data.eval_batch_size=4','data.val_items=4',"
    "'data.test_items=8','model.depths=[1]','model.head_channels=4','trainer.limit_val_batches=1','trainer.limit_train_batches=2']",
)


def is_killed(config: str, folder: str, overrides: list[str]) -> None:
    """In place of `worker.main`: a run that the kernel ends."""
    os.kill(os.getpid(), signal.SIGKILL)


def has_no_disk(config: str, folder: str, overrides: list[str]) -> None:
    """In place of `worker.main`: a run whose disk is full, for its log too."""

    def train(*arguments: object) -> None:
        raise RuntimeError("no report") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    worker.train_run = train
    worker._print_into = lambda file: None
    os.close(2)
    worker.main(config, folder, overrides)


def cannot(config: str, folder: str, overrides: list[str]) -> None:
    """In place of `worker.main`: a run that fails by itself."""

    def train(*arguments: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "there are no data")

    worker.train_run = train
    worker.main(config, folder, overrides)


def tells_its_threads(config: str, folder: str, overrides: list[str]) -> None:
    """In place of `worker.main`: a run that fails for the threads in its config."""
    worker.write_failure(Path(folder), f"{OmegaConf.create(config).threads} threads")
