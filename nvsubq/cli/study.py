"""`nvsubq study NAME`: the runs of a study, one after the other or side by side, and its tables and page."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvsubq.cli.runs import add_command

if TYPE_CHECKING:
    from nvsubq.study.engine import Engine
    from nvsubq.study.runs import Run

LEAST_MINUTES = 2.0


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "study",
        help="run a study: many trainings, one table with error bars",
        description="Runs the trainings of a study and writes study.html, study.md, runs.csv and cells.csv. "
        "Interrupted, the same command goes on; runs that are done are not run again.",
    )
    parser.add_argument("name", metavar="NAME", help="a file of configs/study, such as spatial_recall")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # without one argparse lists them as required
        metavar="KEY=VALUE",
        help="changes of the study: cores=[mamba,s5] seeds=[0]",
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="default: runs/study_NAME")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side (default: 1)")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="end within so many minutes; the same command goes on"
    )
    parser.add_argument("--dry-run", action="store_true", help="list runs, widths and parameters, run none")
    parser.add_argument("--page-only", action="store_true", help="write tables and page of what is there")
    parser.add_argument("--retry", action="store_true", help="run failed runs again, from their checkpoints")


def run(args: argparse.Namespace) -> int:
    """Runs what is left of a study; returns 1 if a run has failed, else 0."""
    from hydra.errors import HydraException

    from nvsubq.cli import errors, unknown_keys
    from nvsubq.study.plan import GROUP, load

    began = time.monotonic()
    _check(args)
    try:
        study = load(args.name, args.overrides)
    except HydraException as error:
        asked = ["--config-name", f"{GROUP}/{args.name}", *args.overrides]
        text = unknown_keys.explain(error, asked)
        if text is None or errors.wants_traceback():
            raise
        raise SystemExit(f"error: {text}") from None
    from nvsubq.study.engine import Engine
    from nvsubq.study.runs import Folder, plan_runs

    planned = plan_runs(study)
    folder = Folder(args.folder or Path(_runs(), f"study_{study.name}"))
    engine = Engine(planned, folder)
    if args.dry_run:
        _show_plan(engine)
        return 0
    if args.page_only and not folder.runs.is_dir():
        raise ValueError(f"`--folder` (={folder.path}) holds no study: it has no folder runs.")
    if args.page_only:
        return _report(engine)
    with _only_one(folder.path):
        return _work(engine, args, began)


def _runs() -> str:
    import os

    return os.environ.get("NVSUBQ_RUNS") or "runs"


def _check(args: argparse.Namespace) -> None:
    if args.jobs < 1:
        raise ValueError(f"`--jobs` (={args.jobs}) must be at least 1.")
    if args.minutes is not None and not (LEAST_MINUTES <= args.minutes < math.inf):
        raise ValueError(f"`--minutes` (={args.minutes:g}) must be at least {LEAST_MINUTES:g}.")


def _work(engine: Engine, args: argparse.Namespace, began: float) -> int:
    from nvsubq.study.pool import Pool, forget

    if args.retry:
        for one in list(engine.known()):
            if engine.folder.failure(one) is not None:
                forget(engine.folder, one)
    deadline = None if args.minutes is None else began + 60 * args.minutes

    def ended(one: Run, how: str, why: str) -> None:
        minutes = (time.monotonic() - began) / 60
        reason = f": {why}" if why else ""
        print(f"{minutes:6.1f} min  {how:7}  {one.name}{reason}  ({engine.left()} left)", flush=True)

    interrupted = False
    pool = Pool(engine.folder, args.jobs, ended, deadline)
    print(f"{engine.folder.path}: {engine.left()} runs left, {args.jobs} side by side", flush=True)
    try:
        pool.work(engine.next_run)
    except KeyboardInterrupt:
        interrupted = True
    code = _report(engine)
    left = engine.left()
    if left:
        print(f"{left} runs are left; the same command goes on:\n  nvsubq {_again()}")
    for name in pool.left:
        sys.stderr.write(f"interrupted twice, left for the next command: {name}\n")
    return 130 if interrupted else 1 if pool.left else code


def _again() -> str:
    import shlex

    return shlex.join(sys.argv[1:])


def _report(engine: Engine) -> int:
    """Writes tables and page; returns 1 if a run has failed."""
    from nvsubq.study.page import write_page
    from nvsubq.study.summary import summarise, write_csv
    from nvsubq.study.tables import write_markdown

    summary = summarise(engine)
    files = [*write_csv(summary, engine.folder), write_markdown(summary, engine.folder)]
    files.append(write_page(summary, engine.folder))
    print(f"written: {', '.join(map(str, files))}")
    failed = [row for row in summary.runs if row.state == "failed"]
    for row in failed:
        sys.stderr.write(
            f"failed: {row.core} {row.spatial_dims}-D {row.task} patch {row.patch_size} "
            f"rate {row.rate:g} seed {row.seed}: {row.reason}\n"
        )
    return 1 if failed else 0


def _show_plan(engine: Engine) -> None:
    from rich.console import Console
    from rich.table import Table

    from nvsubq.training.table import show

    study = engine.planned.study
    columns = ("core", "dims", "task", "patch", "seeds", "width", "parameters", "off", "done")
    table = Table(*columns, title=f"{study.name}: {study.parameters:,} parameters, {study.steps:,} steps")
    choices = engine.choices()
    for cell, seeds in study.cells().items():
        width, rate = engine.planned.recipes[cell].width, choices[cell.core].rate
        runs = [engine.planned.run(cell, seed, rate) for seed in seeds] if rate is not None else []
        table.add_row(
            cell.core,
            str(cell.spatial_dims),
            cell.task,
            str(cell.patch_size),
            " ".join(map(str, seeds)),
            str(width.width),
            f"{width.parameters:,}",
            f"{width.deviation:+.1%}",
            str(sum(map(engine.folder.done, runs))),
        )
    console = Console()
    show(console, table)
    for cell, reason in study.left_out():
        show(console, f"left out: {cell.label}: {reason}")
    show(
        console,
        f"{engine.left()} runs left in {engine.folder.path}, those that choose a learning rate included",
    )


def _only_one(folder: Path) -> Any:
    from nvsubq.study.lock import only_one

    return only_one(folder)
