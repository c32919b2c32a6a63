"""What `evaluate` and `predict` share: the arguments RUN and --checkpoint, and the trained run behind them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nvsubq.training.load import LoadedRun


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds RUN and --checkpoint."""
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/mnist/latest")
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="best|last|PATH",
        help="which weights to use (default: best)",
    )


def open_run(run: str, checkpoint: str, overrides: Sequence[str] = ()) -> LoadedRun:
    """Builds the datamodule and the trained task of a run.

    Args:
        run: the run folder.
        checkpoint: "best", "last", or a file.
        overrides: ``key=value`` changes of the run's config.

    Raises:
        ValueError: no run, no checkpoint, or one that is broken or does not fit; the message names it.
    """
    from nvsubq.training.build import build_datamodule, build_task
    from nvsubq.training.load import CHECKPOINTS, LoadedRun, load_config, load_run, load_weights
    from nvsubq.training.report_data import check_run
    from nvsubq.training.system import set_threads

    path = check_run(run)
    if checkpoint in CHECKPOINTS:
        loaded = load_run(path, checkpoint=checkpoint, overrides=overrides)
    else:
        file = Path(checkpoint)
        if not file.is_file():
            raise ValueError(f"`--checkpoint` (={checkpoint}) is neither best nor last nor a file.")
        config = load_config(path, overrides)
        datamodule = build_datamodule(config)
        task = build_task(config, datamodule)
        load_weights(task, file)
        loaded = LoadedRun(path.resolve(), config, datamodule, task.eval(), file)
    set_threads(loaded.config.get("threads"))
    return loaded
