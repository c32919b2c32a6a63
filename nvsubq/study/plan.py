"""What a study consists of: axes, grids, cells, overrides; read from `configs/study/NAME.yaml`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nvsubq.cli.errors import nearest
from nvsubq.cli.paths import PRIMARY, config_dir
from nvsubq.lazy_config import ConfigError

AXES = ("cores", "spatial_dims", "tasks", "patch_sizes", "seeds")
GROUP = "study"


@dataclass(frozen=True, order=True)
class Cell:
    """A line of the study's table: everything but seed and learning rate."""

    spatial_dims: int
    task: str
    patch_size: int
    core: str

    @property
    def label(self) -> str:
        """
        Example:
            >>> Cell(2, "simple_copy", 1, "s5").label
            's5_2d_simple_copy_p1'
        """
        return f"{self.core}_{self.spatial_dims}d_{self.task}_p{self.patch_size}"


@dataclass(frozen=True)
class Study:
    """A study as its YAML says.

    Args:
        name: of the study.
        recipe: the experiment that every run starts from.
        axes: axis -> values; they bound what the grids may hold.
        grids: name -> axis -> values; an axis that a grid leaves out takes all its values.
        steps: optimizer steps of every run.
        parameters: the budget that the width of each model is found for.
        width_step: what widths are multiples of.
        rates: learning rates of which each core gets the best.
        choose_on: the cell (`spatial_dims`, `task`, `patch_size`) and the `seed` on which it is chosen.
        overrides: "all" -> overrides of every run, axis -> value -> overrides of the runs that have it.
        absent: cells that are left out, each with its `reason`.
    """

    name: str
    recipe: str
    axes: dict[str, tuple]
    grids: dict[str, dict[str, tuple]]
    steps: int
    parameters: int
    width_step: int
    rates: tuple[float, ...]
    choose_on: dict[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)
    absent: tuple[dict[str, Any], ...] = ()

    def cells(self) -> dict[Cell, list[int]]:
        """Every cell of the grids with its seeds, in the order of the axes; absent ones left out."""
        found: dict[Cell, list[int]] = {}
        for grid in self.grids.values():
            values = {a: [v for v in self.axes[a] if a not in grid or v in grid[a]] for a in AXES}
            for dims, task, patch, core in itertools.product(
                values["spatial_dims"], values["tasks"], values["patch_sizes"], values["cores"]
            ):
                cell = Cell(dims, task, patch, core)
                if self.reason_absent(cell) is None:
                    seeds = found.setdefault(cell, [])
                    seeds += [seed for seed in values["seeds"] if seed not in seeds]
        return {cell: seeds for cell, seeds in found.items() if seeds}

    def left_out(self) -> list[tuple[Cell, str]]:
        """Cells that the grids ask for and `absent` takes away, with the reason."""
        whole = Study(**{**self.__dict__, "absent": ()}).cells()
        return [(cell, reason) for cell in whole if (reason := self.reason_absent(cell)) is not None]

    def reason_absent(self, cell: Cell) -> str | None:
        """Why a cell is left out; None where it is not."""
        own = {"cores": cell.core, "spatial_dims": cell.spatial_dims, "tasks": cell.task}
        own["patch_sizes"] = cell.patch_size
        for entry in self.absent:
            if all(own[axis] in values for axis, values in entry.items() if axis != "reason"):
                return str(entry["reason"])
        return None

    def choice_cell(self, core: str) -> Cell:
        """The cell on which the learning rate of a core is chosen."""
        on = self.choose_on
        return Cell(on["spatial_dims"], on["task"], on["patch_size"], core)

    def overrides_of(self, cell: Cell) -> list[str]:
        """What `nvsubq train` would be given for a cell, without width, rate and seed."""
        own = {
            "cores": cell.core,
            "spatial_dims": cell.spatial_dims,
            "tasks": cell.task,
            "patch_sizes": cell.patch_size,
        }
        more = [
            str(item) for axis, value in own.items() for item in self.overrides.get(axis, {}).get(value, ())
        ]
        return [
            f"experiment={self.recipe}",
            f"core={cell.core}",
            f"data.spatial_dims={cell.spatial_dims}",
            f"data.recall={cell.task}",
            f"model.patch_size={cell.patch_size}",
            f"trainer.max_steps={self.steps}",
            "report=false",
            "trainer.enable_progress_bar=false",
            *map(str, self.overrides.get("all", ())),
            *more,
        ]


def names() -> list[str]:
    """The studies that there are."""
    return sorted(file.stem for file in (config_dir() / GROUP).glob("*.yaml"))


def load(name: str, overrides: Sequence[str] = ()) -> Study:
    """Reads a study, with overrides in Hydra's grammar.

    Raises:
        ConfigError: there is no such study, or a value that is not one of its axis.
        HydraException: an override that names no key, or cannot be read.
    """
    from hydra import compose

    if name not in names():
        raise ConfigError(
            f"`study` (={name}) must be one of {', '.join(names())}.{nearest(name, names())}", "study"
        )
    with hydra_here():
        config = compose(f"{GROUP}/{name}", overrides=list(overrides))
    return check(config)


def check(config: DictConfig) -> Study:
    """A study from its composed config.

    Raises:
        ConfigError: names the key, its value, and what it must be.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    axes = {axis: _values(axis, plain[axis]) for axis in AXES}
    grids = {
        str(name): {
            axis: _values(f"grids.{name}.{axis}", values)
            for axis, values in _mapping(f"grids.{name}", grid or {}).items()
        }
        for name, grid in _mapping("grids", plain["grids"]).items()
    }
    for key in ("steps", "parameters", "width_step"):
        if isinstance(plain[key], bool) or not isinstance(plain[key], int) or plain[key] < 1:
            raise ConfigError(f"`{key}` (={plain[key]!r}) must be an integer of at least 1.", key)
    rates = plain["rates"]
    if not isinstance(rates, list) or not rates or not all(_positive(rate) for rate in rates):
        raise ConfigError(f"`rates` (={rates!r}) must be a list of numbers above 0.", "rates")
    if len(set(rates)) < len(rates):
        raise ConfigError(f"`rates` (={rates!r}) must not name a rate twice.", "rates")
    on = _mapping("choose_on", plain["choose_on"])
    for key, axis in (
        ("spatial_dims", "spatial_dims"),
        ("task", "tasks"),
        ("patch_size", "patch_sizes"),
        ("seed", "seeds"),
    ):
        _values(f"choose_on.{key}", [on.get(key)], axis)
    absent = plain.get("absent") or []
    if not isinstance(absent, list):
        raise ConfigError(f"`absent` (={absent!r}) must be a list.", "absent")
    for number, entry in enumerate(absent):
        if not isinstance(entry, dict) or "reason" not in entry:
            raise ConfigError(f"`absent[{number}]` (={entry!r}) must have a `reason`.", "absent")
        for axis, values in entry.items():
            if axis != "reason":
                _values(f"absent[{number}].{axis}", values)
    more = _overrides(_mapping("overrides", plain.get("overrides") or {}))
    study = Study(
        name=str(plain["name"]),
        recipe=str(plain["recipe"]),
        axes=axes,
        grids=grids,
        steps=plain["steps"],
        parameters=plain["parameters"],
        width_step=plain["width_step"],
        rates=tuple(map(float, rates)),
        choose_on=on,
        overrides=more,
        absent=tuple(absent),
    )
    if not study.cells():
        raise ConfigError("the axes and grids of this study leave no run.", "grids")
    for core in {cell.core for cell in study.cells()} if len(rates) > 1 else ():
        reason = study.reason_absent(study.choice_cell(core))
        if reason is not None:
            raise ConfigError(
                f"`choose_on` (={on}) must be a cell that every core has; of {core} it is absent: {reason}",
                "choose_on",
            )
    return study


def _mapping(key: str, value: Any) -> dict[Any, Any]:
    """A part of a study that has names."""
    if not isinstance(value, dict):
        raise ConfigError(f"`{key}` (={value!r}) must be a mapping: `{key}={{NAME: VALUE, ...}}`.", key)
    return value


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _overrides(given: dict[str, Any]) -> dict[str, Any]:
    """The overrides, checked; numbers of an axis are strings in YAML, as an override of one needs."""
    known, found = ("all", *AXES[:-1]), {}
    for key, value in given.items():
        if key not in known:
            raise ConfigError(
                f"`overrides.{key}` must be one of {', '.join(known)}.{nearest(str(key), known)}",
                f"overrides.{key}",
            )
        if key != "all":
            value = _mapping(f"overrides.{key}", value or {})
            value = {int(name) if str(name).isdigit() else name: items for name, items in value.items()}
            if value:
                _values(f"overrides.{key}", list(value), key)
        for items in [value] if key == "all" else value.values():
            if not isinstance(items, list) or not all(isinstance(i, str) and "=" in i for i in items):
                raise ConfigError(
                    f"`overrides.{key}` (={items!r}) must be lists of KEY=VALUE.", f"overrides.{key}"
                )
        found[key] = value
    return found


def _values(key: str, values: Any, axis: str | None = None) -> tuple:
    """The values of an axis, checked."""
    from nvsubq.data.recall_draw import RECALLS

    axis = axis or key.rsplit(".", 1)[-1]
    if axis not in AXES:
        raise ConfigError(f"`{key}` is no axis; axes are {', '.join(AXES)}.{nearest(axis, AXES)}", key)
    if not isinstance(values, list) or not values:
        raise ConfigError(f"`{key}` (={values!r}) must be a list of at least one value.", key)
    known: dict[str, Any] = {
        "cores": sorted(file.stem for file in (config_dir() / "core").glob("*.yaml")),
        "spatial_dims": (1, 2, 3),
        "tasks": RECALLS,
    }
    for value in values:
        if axis in known and (value not in known[axis] or isinstance(value, bool)):
            hint = nearest(str(value), map(str, known[axis]))
            raise ConfigError(
                f"`{key}` (={value!r}) must be one of {', '.join(map(str, known[axis]))}.{hint}", key
            )
        least = {"patch_sizes": 1, "seeds": 0}.get(axis)
        if least is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ConfigError(f"`{key}` (={value!r}) must be an integer of at least {least}.", key)
    if len(set(values)) < len(values):
        raise ConfigError(f"`{key}` (={values!r}) must not name a value twice.", key)
    return tuple(values)


def hydra_here() -> Any:
    """The context in which Hydra composes from the package's configs."""
    from hydra import initialize_config_dir

    return initialize_config_dir(str(config_dir()), version_base="1.3")


def compose_run(overrides: Sequence[str]) -> DictConfig:
    """The config of `nvsubq train` under these overrides; to be called within `hydra_here`."""
    from hydra import compose

    return compose(PRIMARY.removesuffix(".yaml"), overrides=list(overrides))


def by_seed(cells: dict[Cell, list[int]]) -> Iterator[tuple[Cell, int]]:
    """Cells and seeds, the first seed of every cell first: half a study says something of all cells."""
    most = max(map(len, cells.values()), default=0)
    for number in range(most):
        for cell, seeds in cells.items():
            if number < len(seeds):
                yield cell, seeds[number]
