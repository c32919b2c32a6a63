"""`nvsubq evaluate RUN`: scores a checkpoint again, beside what the run stored and the baselines."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvsubq.cli.runs import add_command, add_run_arguments, open_run

if TYPE_CHECKING:
    from rich.table import Table

    from nvsubq.training.load import LoadedRun
    from nvsubq.training.report_data import Record

SAME = 1e-6
"""Up to so much difference the stored numbers count as equal: threads and machines round differently."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "evaluate",
        help="score a run's checkpoint on its test split",
        description="Scores a run's checkpoint and shows it beside the stored numbers and the baselines.",
    )
    add_run_arguments(parser)
    parser.add_argument("--split", default="test", choices=("test", "val"), help="default: test")
    parser.add_argument(
        "--report", action="store_true", help="write metrics.json, predictions.npz and report.html again"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # without one argparse lists them as required
        metavar="KEY=VALUE",
        help="changes of the run's config, such as data.root=elsewhere",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints the table; returns 0."""
    if args.report:
        _check_report(args)
    from rich.console import Console

    from nvsubq.training.quiet import quiet_lightning
    from nvsubq.training.report_data import read_record
    from nvsubq.training.table import duration, show

    quiet_lightning()
    console = Console()
    record = read_record(args.run)
    loaded = open_run(args.run, args.checkpoint, args.overrides)
    started = time.perf_counter()
    metrics = _measure(loaded, args.split, console)
    limit = _limits(loaded.config.trainer)[f"limit_{args.split}_batches"]
    if not metrics:
        raise ValueError(
            f"nothing was scored: `trainer.limit_{args.split}_batches` (={limit}) leaves no batch; "
            f"add trainer.limit_{args.split}_batches=null."
        )
    seconds = time.perf_counter() - started
    size = len(loaded.datamodule.dataset(args.split))
    show(console, f"run         {args.run}\ncheckpoint  {loaded.checkpoint}")
    share = "" if limit is None else f", limited by trainer.limit_{args.split}_batches={limit}"
    show(console, f"data        {loaded.datamodule.name}, {args.split} split, {size:,} items{share}")
    show(console, f"time        {duration(seconds)}\n")
    baselines = _baselines(record, loaded, args) if args.split == "test" else {}
    stored, label = _stored(record, args)
    show(console, _table(record, metrics, stored, label, baselines, args))
    comparable = stored and label.startswith(f"{args.checkpoint} checkpoint") and not args.overrides
    if comparable:
        show(console, _comparison(metrics, stored))
    if args.report:
        _refresh(record, loaded, metrics, baselines, args.checkpoint, seconds)
        show(console, f"written     {record.path / 'report.html'}")
    return 0


def _check_report(args: argparse.Namespace) -> None:
    for given, reason in (
        (args.split != "test", "--split val"),
        (args.checkpoint not in ("best", "last"), "--checkpoint PATH"),
        (bool(args.overrides), "overrides"),
    ):
        if given:
            raise ValueError(
                f"`--report` cannot go with {reason}: the report shows the test of the run's own checkpoint."
            )


def _measure(loaded: LoadedRun, split: str, console: Any) -> dict[str, float]:
    """Metrics without their prefix, by the loop that the training's own test used."""
    import lightning as L

    from nvsubq.training.progress import EpochProgress

    loaded.datamodule.setup()
    trainer = L.Trainer(
        **_trainer_options(loaded.config.trainer, console),
        callbacks=[EpochProgress(console)] if split == "test" else [],
        enable_progress_bar=split == "test",
    )
    loop = trainer.test if split == "test" else trainer.validate
    loop(loaded.task, datamodule=loaded.datamodule, verbose=False)
    return {name.removeprefix(f"{split}/"): float(value) for name, value in trainer.callback_metrics.items()}


def _limits(settings: Any) -> dict[str, Any]:
    """How many batches the run itself scored: a share, a number, or None for all."""
    fast = settings.get("fast_dev_run", False)
    names = ("limit_test_batches", "limit_val_batches")
    return {name: int(fast) if fast else settings.get(name) for name in names}


def _trainer_options(settings: Any, console: Any) -> dict[str, Any]:
    """The run's own, on one device; where its GPU is missing, the CPU in fp32."""
    import torch

    accelerator, precision = settings.get("accelerator", "auto"), settings.get("precision", "32-true")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        console.print("There is no GPU here: evaluated on the CPU in fp32; last digits may differ.")
        accelerator, precision = "cpu", "32-true"
    return _limits(settings) | {
        "accelerator": accelerator,
        "devices": 1,
        "precision": precision,
        "deterministic": settings.get("deterministic"),
        "inference_mode": settings.get("inference_mode", True),
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }


def _stored(record: Record, args: argparse.Namespace) -> tuple[dict[str, float], str]:
    """What the run wrote down for this split, and of which checkpoint."""
    figures = record.figures
    if args.split == "test":
        metrics, which = figures.get("metrics") or {}, figures.get("tested_with")
        label = f"{which} checkpoint"
    else:
        best = figures.get("best_epoch")
        which = "best" if args.checkpoint == "best" and best is not None else "last"
        rows = [row for row in record.rows if which == "last" or row["epoch"] == best]
        metrics, label = (rows[-1] if rows else {}), f"{which} checkpoint"
    prefix = f"{args.split}/"
    found = {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix) and value is not None
    }
    return found, label


def _baselines(record: Record, loaded: LoadedRun, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Those that the run stored; computed where it has none, or where the data may be others."""
    stored = record.figures.get("baselines") or {}
    if stored and not any(override.startswith("data.") for override in args.overrides):
        return stored
    return loaded.datamodule.baselines() if loaded.config.get("baselines", True) else {}


def _table(
    record: Record,
    metrics: dict[str, float],
    stored: dict[str, float],
    label: str,
    baselines: dict[str, dict[str, float]],
    args: argparse.Namespace,
) -> Table:
    from rich.table import Table
    from rich.text import Text

    from nvsubq.training.scores import score_text

    names = sorted(metrics, key=lambda name: (name == "loss", name.count("_"), name))
    which = f"{args.checkpoint} checkpoint" if args.checkpoint in ("best", "last") else "given checkpoint"
    table = Table(title=f"{args.split}, {which}", title_justify="left", title_style="bold")
    table.add_column("")
    for name in names:
        table.add_column(Text(name), justify="right")
    core = record.figures.get("core_name") or str(record.setting("core._target_") or "").rsplit(".", 1)[-1]
    rows = [(core or "this run", metrics, "bold")]
    if stored:
        rows.append((f"stored by the run, {label}", stored, ""))
    rows += [(name, values, "dim") for name, values in baselines.items()]
    for name, values, style in rows:
        table.add_row(Text(name), *(score_text(values.get(column)) for column in names), style=style)
    return table


def _comparison(metrics: dict[str, float], stored: dict[str, float]) -> str:
    gaps = {
        name: abs(metrics[name] - value)
        for name, value in stored.items()
        if name in metrics and not (math.isnan(metrics[name]) and math.isnan(value))
    }
    if not gaps:
        return ""
    worst = max(gaps, key=lambda name: gaps[name])
    if gaps[worst] <= SAME:
        return "The stored numbers are the same."
    return f"The stored numbers differ, by up to {gaps[worst]:.2g} ({worst})."


def _refresh(
    record: Record,
    loaded: LoadedRun,
    metrics: dict[str, float],
    baselines: dict[str, dict[str, float]],
    checkpoint: str,
    seconds: float,
) -> None:
    """Writes the final files of a run again; of a run that was interrupted, for the first time."""
    from nvsubq.training.report import write_report
    from nvsubq.training.report_walks import reach
    from nvsubq.training.run_folder import RunFolder

    class Existing(RunFolder):
        def __init__(self, path: Path) -> None:
            self.path, self.root = path, path.parent  # it is claimed already

    folder = Existing(record.path)
    figures = record.figures or _figures(record, loaded)
    kept = {name: value for name, value in figures["metrics"].items() if not name.startswith("test/")}
    figures |= {
        "metrics": kept | {f"test/{name}": value for name, value in metrics.items()},
        "tested_with": checkpoint,
        "test_s": seconds,
        "baselines": baselines,
    }
    try:
        folder.write_predictions(loaded.task.predictions() | reach(loaded.task.model, loaded.datamodule))
        folder.write_metrics(figures)
        write_report(record.path)
    except OSError as error:
        raise ValueError(f"`--report`: {record.path} cannot be written: {error.strerror}.") from error


def _figures(record: Record, loaded: LoadedRun) -> dict[str, Any]:
    """What metrics.json says of an interrupted run, as far as it can still be known."""
    from nvsubq.training import system
    from nvsubq.training.build import core_name, core_target

    config, task = loaded.config, loaded.task
    last = record.rows[-1] if record.rows else {}
    return {
        "name": config.get("name"),
        "task": task.kind,
        "model": type(task.model).__name__,
        "core": core_target(config),
        "core_name": core_name(config),
        "seed": config.get("seed"),
        "epochs": len(record.rows),
        "steps": int(last.get("step") or 0) or None,
        "best_epoch": None,
        "stopped_early": False,
        "interrupted": True,
        "metrics": {name: value for name, value in last.items() if name not in ("epoch", "step")},
        "classes": task.class_names,
        "scored_classes": getattr(task, "scored_classes", None),
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "train_s": None,
        "total_s": None,
        "peak_memory_bytes": None,
        "peak_device_bytes": None,
        "threads": None,
        "device": None,
        "precision": None,
        "processes": 1,
        "data": loaded.datamodule.describe(),
        "versions": system.versions(),
        "command": None,
    }
