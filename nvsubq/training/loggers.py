"""The loggers of a run: made from the config, and ended with the run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from nvsubq.lazy_config import instantiate


class Loggers:
    """Ends what it has built when its block is left: Lightning leaves a Weights & Biases run open.

    The next job of a sweep, in the same process, would log into that run. A run that was there before the
    block is the caller's and stays open.

    Args:
        warn: shows a warning; a logger that cannot be ended must not lose a run that is written.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self._built: list[Any] = []

    def build(self, nodes: Mapping[str, Any], folder: Path, values: Any) -> list[Any]:
        """Builds each logger for the run in `folder`, and gives it the resolved config."""
        for node in nodes.values():
            logger = instantiate(node, save_dir=str(folder))
            self._built.append(logger)
            logger.log_hyperparams(values)
        return list(self._built)

    def __enter__(self) -> Loggers:
        self._before = _wandb_run()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for logger in self._built:
            self._end(type(logger).__name__, logger.finalize, "failed" if kind else "success")
        run = _wandb_run()
        if run is not None and run is not self._before:
            self._end("Weights & Biases", run.finish, 1 if kind else 0)

    def _end(self, name: str, end: Callable[[Any], Any], status: str | int) -> None:
        try:
            end(status)
        except Exception as error:
            self.warn(f"the logger {name} was not ended: {type(error).__name__}: {error}")


def _wandb_run() -> Any:
    """The open run of this process, if there is one: no package is imported to find out."""
    return getattr(sys.modules.get("wandb"), "run", None)
