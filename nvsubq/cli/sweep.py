"""Sweeps (`nvsubq train -m`): all configs are checked before the first job runs, and a table ends them."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from nvsubq.cli.job_name import leave_out_constants
from nvsubq.lazy_config import ConfigError

current: SweepTable | None = None
"""The sweep of this process, if it is one; `cli.train` ends it, whether or not a job failed."""

runs: Path | None = None
"""The folder of all runs, once Hydra has composed the config and before it makes any folder."""

SPREAD_OVER = "seed"
"""Runs that differ in nothing else are one line of the table, with mean and spread."""


class SweepRefused(BaseException):
    """A sweep with a bad job. No `Exception`: Hydra turns those of its callbacks into warnings and goes on.

    Args:
        error: what is wrong with the job.
        overrides: those of the job, where its config could not be composed.
    """

    def __init__(self, error: Exception, overrides: Sequence[str] = ()) -> None:
        super().__init__(str(error))
        self.error = error
        self.overrides = tuple(overrides)


class SweepTable(Callback):
    """Hydra's hooks around a sweep; named in ``configs/hydra/default.yaml``."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Checks the run's name before Hydra makes a folder of it.

        Raises:
            SweepRefused: it is a path.
        """
        from nvsubq.training.run_name import check_name

        global runs
        try:
            check_name(config.name)
            runs = Path(str(config.paths.runs))
        except (ConfigError, OmegaConfBaseException) as error:
            raise SweepRefused(error) from None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Checks the configs of all jobs, so that a sweep dies before any data is read; names their folders.

        Raises:
            SweepRefused: with the problems of the first bad job; the message names the job.
        """
        from nvsubq.cli.sweep_resume import begin
        from nvsubq.training.build import check_config
        from nvsubq.training.processes import check_single

        global current, runs
        checked = []
        for overrides in jobs([*params_of(config.hydra.sweeper), *config.hydra.overrides.task]):
            try:
                job = compose(kwargs.get("config_name"), overrides=overrides)
                check_config(job)
                if "slurm" not in config.hydra.launcher._target_.lower():
                    check_single(job.trainer)
                checked.append(job)
            except ConfigError as error:
                text = f"{error}\n  in the job {' '.join(overrides)}"
                raise SweepRefused(ConfigError(text, error.key)) from None
            except HydraException as error:
                raise SweepRefused(error, overrides) from None
        leave_out_constants(config)
        wanted = Path(config.hydra.sweep.dir)
        self.folder, self.mark = begin(config, checked)
        if self.folder != wanted:
            _show(f"going on with the sweep {self.folder} (resume=false begins a new one)")
        self.runs = runs = Path(str(config.paths.runs))
        current = self

    def finish(self, *, complete: bool) -> None:
        """Shows the table, and removes the folder of a sweep that left nothing.

        Args:
            complete: all jobs have ended well; else the same command goes on with the sweep.
        """
        from nvsubq.training.run_folder import remove_empty
        from nvsubq.training.unfinished import MARK

        files = sorted(self.folder.rglob("metrics.json"), key=lambda file: file.stat().st_mtime_ns)
        if files:
            _show(summary([(_overrides(f), json.loads(f.read_text())) for f in files], str(self.folder)))
        left = {p.name for p in self.folder.iterdir()} if self.folder.is_dir() else set()
        nothing = left <= {"multirun.yaml", MARK}
        if self.mark is not None and (complete or nothing):
            self.mark.remove()
        if nothing:
            (self.folder / "multirun.yaml").unlink(missing_ok=True)
            remove_empty(self.folder, self.runs)


def params_of(sweeper: DictConfig) -> list[str]:
    """What ``hydra.sweeper.params`` of a config sweeps over, as overrides.

    Those of another sweeper than Hydra's own are its own affair: it reads them in its own language.
    """
    if "basic_sweeper" not in sweeper._target_:
        return []
    return [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]


def _show(what: Any) -> None:
    from rich.console import Console

    from nvsubq.training.table import show

    show(Console(), what)


def jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of every job of a sweep, in the order of Hydra's own sweeper.

    Of two with one key the later wins, in the place of the earlier: the command line comes after the
    params of a config.

    Example:
        >>> jobs(["core=s5,mamba", "seed=0"])
        [['core=s5', 'seed=0'], ['core=mamba', 'seed=0']]
        >>> jobs(["seed=0,1", "core=s5", "seed=2"])
        [['seed=2', 'core=s5']]
    """
    hydra = GlobalHydra.instance()
    loader = hydra.config_loader() if hydra.is_initialized() else None
    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(overrides):
        key = override.get_key_element()
        if override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        elif override.is_sweep_override():
            return []  # an interval: only a sweeper that samples it knows its values
        else:
            choices[key] = [str(override.input_line)]
    return [list(job) for job in itertools.product(*choices.values())]


def _overrides(file: Path) -> dict[str, str]:
    pairs = (item.partition("=") for item in json.loads(file.read_text())["command"])
    return {key: value for key, _, value in pairs}


def summary(runs: list[tuple[dict[str, str], dict[str, Any]]], title: str) -> Any:
    """A line for each setting: mean and, over seeds, sample standard deviation of the test metrics.

    Args:
        runs: overrides and metrics.json of each run.
        title: of the table.
    """
    from rich.table import Table

    from nvsubq.training.comparison import spread

    varying = [
        key for key in dict.fromkeys(k for o, _ in runs for k in o) if len({o.get(key) for o, _ in runs}) > 1
    ]
    keys = [key for key in varying if key != SPREAD_OVER]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for overrides, figures in runs:
        groups.setdefault(tuple(overrides.get(key, "") for key in keys), []).append(figures)
    metrics = [m for m in runs[0][1]["metrics"] if m.startswith("test/") and m != "test/loss"]
    columns = [*keys, "runs", "parameters", *metrics, "training"]
    table = Table(*columns, title=title, title_justify="left", title_style="bold")
    for choice, group in groups.items():
        scores = (spread([one["metrics"].get(metric) for one in group]) for metric in metrics)
        seconds = statistics.fmean(one["train_s"] for one in group)
        table.add_row(*choice, str(len(group)), f"{group[0]['parameters']:,}", *scores, f"{seconds:.0f} s")
    return table
