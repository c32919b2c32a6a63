"""What `evaluate` and `predict` share: RUN and --checkpoint, and the trained run behind them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvsubq.training.load import LoadedRun


class Intermixed(argparse.ArgumentParser):
    """A parser that takes options between positional arguments: ``predict RUN a.png --out DIR b.png``."""

    _inside = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def, override]
        """As argparse's; `add_subparsers` calls this one, which has no form for intermixed arguments."""
        if self._inside:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def add_command(subparsers: Any, name: str, **texts: str) -> argparse.ArgumentParser:
    """Adds a command whose options may stand anywhere."""
    parser = Intermixed(prog=f"nvsubq {name}", description=texts["description"], allow_abbrev=False)
    subparsers.add_parser(name, help=texts["help"], add_help=False)
    subparsers.choices[name] = parser
    return parser


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
    lacking = [key for key in ("data", "model", "task", "trainer") if key not in load_config(path)]
    if lacking:
        raise ValueError(f"{path / 'config.yaml'} is no config of a training: it lacks {', '.join(lacking)}.")
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
