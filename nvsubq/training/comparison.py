"""Runs side by side: one line for each setting, with mean and spread over seeds, and the baselines below."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nvsubq.training.content import NO_CONTENT, is_below
from nvsubq.training.report_data import RUN_FILES, Record, RunError, check_run, read_record
from nvsubq.training.scores import score_text, spread_text
from nvsubq.training.table import duration

NO_SETTING = (
    *NO_CONTENT, "defaults", "name", "seed", "checkpoint.every_s", "checkpoint.every_steps",
    "trainer.enable_progress_bar",
)  # fmt: skip
"""Keys that make no line of their own."""


@dataclass
class Comparison:
    """A table: names of its columns, its lines, and those of the baselines, as they are shown.

    `copies` are runs that were left out: a newer one is of the same setting and seed.
    """

    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    baselines: list[list[str]] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)


def find_runs(paths: Sequence[str | Path]) -> tuple[list[Record], list[Path]]:
    """The finished runs that `paths` name, and those inside a sweep that did not finish.

    Args:
        paths: run folders, and folders of sweeps or experiments, which count as the runs below them.

    Raises:
        RunError: a path that is neither, a run named by itself that did not finish, or a broken file.
    """
    folders: dict[Path, bool] = {}  # whether it was named by itself
    for path in map(Path, paths):
        inside = [] if _is_run(path) or not path.is_dir() else _runs_below(path)
        if not inside:
            folders[check_run(path).resolve()] = True
        for folder in inside:
            folders.setdefault(folder.resolve(), False)
    records = [(read_record(folder), named) for folder, named in folders.items()]
    for record, named in records:
        if named and not record.finished:
            raise RunError(f"`run` (={record.path}) did not finish: it has no metrics.json.")
    done = [record for record, _ in records if record.finished]
    if not done:
        raise RunError(f"none of the runs below {', '.join(map(str, paths))} did finish.")
    return done, [record.path for record, _ in records if not record.finished]


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in RUN_FILES)


def _runs_below(path: Path) -> list[Path]:
    """Run folders below, in the order of their start; links such as `latest` are not followed."""
    found = [file for file in path.rglob("config.yaml") if not file.parent.is_symlink()]
    return [file.parent for file in sorted(found, key=lambda file: (file.stat().st_mtime_ns, str(file)))]


def compare(records: Sequence[Record], *, each: bool = False) -> Comparison:
    """Puts runs into one table.

    Args:
        records: finished runs.
        each: a line for each run; without it runs that differ in nothing but the seed are one line, and of
            those of one seed the newest counts.

    Returns:
        Columns are what differs between the runs, the number of runs, parameters, test metrics (mean and,
        over several seeds, sample standard deviation) and the time of training.
    """
    settings = [_setting(record) for record in records]
    keys = _differing(settings)
    if each:
        pairs = zip(settings, records, strict=True)
        settings = [setting | {"seed": str(record.figures.get("seed"))} for setting, record in pairs]
        keys = [*keys, "seed"]
    groups: dict[tuple[str, ...], list[Record]] = {}
    for number, (record, setting) in enumerate(zip(records, settings, strict=True)):
        label = tuple(setting.get(key, "") for key in keys)
        groups.setdefault((*label, str(number)) if each else label, []).append(record)
    metrics = _test_metrics(records)
    shown = [metric.removeprefix("test/") for metric in metrics]
    table = Comparison([*keys, "runs", "parameters", *shown, "training"])
    for choice, runs in groups.items():
        group = _newest(runs)
        table.copies += [one.path for one in runs if not any(one is kept for kept in group)]
        values = (spread([_metric(one, metric) for one in group]) for metric in metrics)
        times = [one.figures["train_s"] for one in group if one.figures.get("train_s") is not None]
        sizes = sorted({one.figures["parameters"] for one in group})
        table.rows.append(
            [
                *choice[: len(keys)],
                str(len(group)),
                " to ".join(f"{size:,}" for size in sizes[:: max(1, len(sizes) - 1)]),
                *values,
                duration(statistics.fmean(times)) if times else "",
            ]
        )
    table.baselines = _baselines(records, len(keys), shown)
    return table


def _setting(record: Record) -> dict[str, str]:
    """What a run was, as plain text: model and core by name, and every value of its config."""
    figures = record.figures
    core = figures.get("core_name") if figures.get("core") != record.setting("model._target_") else ""
    names = {"name": str(figures.get("name")), "model": str(figures.get("model")), "core": str(core)}
    file = record.path / "config.yaml"  # interpolations kept: what follows another value is no difference
    config = OmegaConf.load(file) if file.is_file() else OmegaConf.create({})
    if not isinstance(config, DictConfig):
        raise RunError(f"{file} must hold a mapping.")
    return names | {
        key: str(value)
        for key, value in _flat(OmegaConf.to_container(config, resolve=False))
        if not is_below(key, NO_SETTING) and not key.endswith("_target_")
    }


def _newest(runs: Sequence[Record]) -> list[Record]:
    """One run for each seed, the newest: a copy adds nothing to the spread over seeds."""
    by_seed: dict[Any, Record] = {}
    for run in sorted(runs, key=_age):
        by_seed[run.figures.get("seed", run.path)] = run  # a run that does not tell is no copy
    return [run for run in runs if any(run is one for one in by_seed.values())]


def _age(run: Record) -> tuple[datetime.datetime, int]:
    return run.date() or datetime.datetime.min, (run.path / "metrics.json").stat().st_mtime_ns


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [
        pair for key, item in value.items() for pair in _flat(item, f"{prefix}.{key}" if prefix else str(key))
    ]


def _differing(settings: Sequence[dict[str, str]]) -> list[str]:
    """Keys whose values differ; below `model` and `core` those that differ between runs of one class.

    Where nothing differs the runs go by their name.
    """
    keys = dict.fromkeys(key for setting in settings for key in setting)
    found = []
    for key in keys:
        owner = key.partition(".")[0] if "." in key else ""
        values: dict[str, set[str | None]] = {}
        for setting in settings:
            values.setdefault(setting[owner] if owner in ("model", "core") else "", set()).add(
                setting.get(key)
            )
        if any(len(different) > 1 for different in values.values()):
            found.append(key)
    return found or ["name"]


def _test_metrics(records: Sequence[Record]) -> list[str]:
    names = dict.fromkeys(name for record in records for name in record.figures.get("metrics", {}))
    found = [name for name in names if name.startswith("test/") and name != "test/loss"]
    return found or [name for name in names if name == "test/loss"]


def _metric(record: Record, name: str) -> float | None:
    return record.figures.get("metrics", {}).get(name)


def spread(values: Sequence[float | None]) -> str:
    """The mean and, of several values, the sample standard deviation.

    Example:
        >>> spread([0.5]), spread([0.5, 0.7, None]), spread([None])
        ('0.5000', '0.60 ± 0.14', '')
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = statistics.fmean(known)
    return spread_text(mean, statistics.stdev(known)) if len(known) > 1 else score_text(mean)


def _baselines(records: Sequence[Record], keys: int, metrics: Sequence[str]) -> list[list[str]]:
    """Those that the runs stored; where they differ (other test data), the range of what was stored."""
    stored: dict[str, list[dict[str, float]]] = {}
    for record in records:
        for name, scores in (record.figures.get("baselines") or {}).items():
            stored.setdefault(name, []).append(scores)
    return [
        [name, *[""] * (keys + 1), *(_range(scores, metric) for metric in metrics), ""]
        for name, scores in stored.items()
    ]


def _range(scores: Sequence[dict[str, float]], metric: str) -> str:
    values = sorted(score[metric] for score in scores if score.get(metric) is not None)
    if not values:
        return ""
    low, high = score_text(values[0]), score_text(values[-1])
    return low if low == high else f"{low} to {high}"
