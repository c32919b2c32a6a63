"""The runs of a study: what each one is, where it lies, and whether it is done."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from nvsubq.lazy_config import ConfigError
from nvsubq.study.plan import Cell, Study, compose_run, hydra_here
from nvsubq.study.width import Width, find_width
from nvsubq.training.content import NO_CONTENT

DONE, FAILED, LOG = "done.json", "failed.json", "log.txt"
"""Files beside a run's own: the mark of its end, written last; why it failed; what it printed."""


@dataclass(frozen=True)
class Recipe:
    """What the runs of a cell share.

    Args:
        cell: which.
        overrides: what `nvsubq train` would be given.
        config: what Hydra made of them, the width included.
        width: what was found.
    """

    cell: Cell
    overrides: list[str]
    config: DictConfig
    width: Width


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Args:
        recipe: of its cell.
        seed: of weights, order and training canvases.
        rate: the peak learning rate.
    """

    recipe: Recipe
    seed: int
    rate: float

    @property
    def cell(self) -> Cell:
        """The cell that it belongs to."""
        return self.recipe.cell

    @property
    def config(self) -> DictConfig:
        """Its config for `nvsubq train`."""
        config = self.recipe.config.copy()
        config.seed, config.task.lr = self.seed, self.rate
        return config

    @property
    def overrides(self) -> list[str]:
        """What `nvsubq train` would be given for it."""
        return [*self.recipe.overrides, f"task.lr={self.rate:g}", f"seed={self.seed}"]

    @property
    def id(self) -> str:
        """A hash of what is learned: the same config has the same id on any machine and in any folder."""
        values: Any = OmegaConf.to_container(self.config, resolve=True)
        for key in NO_CONTENT:
            *groups, last = key.split(".")
            reduce(getitem, groups, values).pop(last, None)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Of its folder: for people, and its id."""
        return f"{self.cell.label}_lr{self.rate:g}_seed{self.seed}_{self.id}"


@dataclass
class Planned:
    """All recipes of a study, composed by Hydra and sized, with the runs that they make."""

    study: Study
    recipes: dict[Cell, Recipe] = field(default_factory=dict)

    def run(self, cell: Cell, seed: int, rate: float) -> Run:
        """A run of a cell."""
        return Run(self.recipes[cell], seed, rate)

    def choosing(self, core: str) -> list[Run]:
        """The runs that a core's learning rate is chosen by; none where there is nothing to choose."""
        rates = self.study.rates
        if len(rates) == 1:
            return []
        cell, seed = self.study.choice_cell(core), self.study.choose_on["seed"]
        return [self.run(cell, seed, rate) for rate in rates]

    @property
    def cores(self) -> list[str]:
        """The cores of the study that have a cell."""
        there = {cell.core for cell in self.study.cells()}
        return [core for core in self.study.axes["cores"] if core in there]


def plan_runs(study: Study) -> Planned:
    """Composes the config of every cell and finds its width.

    Raises:
        ConfigError, HydraException: a cell whose config cannot be made; a note names the cell.
    """
    planned = Planned(study)
    cells = list(study.cells())
    if len(study.rates) > 1:
        cells += [cell for core in planned.cores if (cell := study.choice_cell(core)) not in cells]
    with hydra_here():
        for cell in cells:
            try:
                planned.recipes[cell] = _recipe(study, cell)
            except Exception as error:
                error.__notes__ = [*getattr(error, "__notes__", ()), f"in the cell {cell.label}"]  # type: ignore[attr-defined]
                raise
    return planned


def _recipe(study: Study, cell: Cell) -> Recipe:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    from nvsubq.cli.errors import hydra_message
    from nvsubq.cli.unknown_keys import explain
    from nvsubq.training.build import check_config

    overrides = study.overrides_of(cell)
    try:
        config = compose_run([*overrides, f"name={study.name}"])
    except HydraException as error:
        GlobalHydra.instance().clear()  # to explain it a config is composed anew
        raise ConfigError(explain(error, overrides) or hydra_message(str(error)), "overrides") from None
    check_config(config)
    width = find_width(config, study.parameters, study.width_step)
    dims = [width.width] * len(config.model.depths)
    with open_dict(config):
        config.model.dims = dims
    return Recipe(cell, [*overrides, f"model.dims=[{','.join(map(str, dims))}]"], config, width)


class Folder:
    """The folder of a study: `runs/NAME/` are run folders as any other, the tables lie beside.

    Args:
        path: where.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path).absolute()
        self.runs = self.path / "runs"

    def of(self, run: Run) -> Path:
        """The folder of a run."""
        return self.runs / run.name

    def done(self, run: Run) -> bool:
        """Whether a run has come to its end."""
        return (self.of(run) / DONE).is_file()

    def failure(self, run: Run) -> str | None:
        """Why a run failed; None where it did not."""
        if self.done(run):
            return None
        try:
            return str(json.loads((self.of(run) / FAILED).read_text())["reason"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return "unknown: its failed.json is broken"

    def state(self, run: Run) -> str:
        """done, failed, begun or new."""
        if self.done(run):
            return "done"
        if self.failure(run) is not None:
            return "failed"
        return "begun" if self.of(run).is_dir() else "new"

    def figures(self, run: Run) -> dict[str, Any]:
        """metrics.json of a run that is done.

        Raises:
            ValueError: it is broken.
        """
        file = self.of(run) / "metrics.json"
        try:
            figures: dict[str, Any] = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read: {error}.") from error
        return figures
