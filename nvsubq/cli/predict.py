"""`nvsubq predict RUN FILE...`: a table of class probabilities, or one labelled volume for each file."""

from __future__ import annotations

import argparse
import csv
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvsubq.cli.runs import add_command, add_run_arguments, open_run

if TYPE_CHECKING:
    import torch

    from nvsubq.data import Sample
    from nvsubq.training.load import LoadedRun

TABLE = "predictions.csv"
SHOWN = 10
BATCH = 64
NAMED = 5


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "predict",
        help="apply a run's model to files",
        description=(
            "Classification writes predictions.csv: file, predicted class, and a probability for each class. "
            "Segmentation writes NAME_prediction.nii.gz for each file, on its grid and with its affine. "
            "All files are read before anything is written."
        ),
    )
    add_run_arguments(parser)
    parser.add_argument("files", nargs="+", metavar="FILE", help="images, or NIfTI volumes")
    parser.add_argument(
        "--out", default="predictions", metavar="DIR", help="where to write (default: predictions)"
    )


def run(args: argparse.Namespace) -> int:
    """Predicts and writes; returns 0."""
    import torch

    loaded = open_run(args.run, args.checkpoint)
    files, out = [Path(file) for file in args.files], Path(args.out)
    check_inputs(loaded.datamodule, files)
    loaded.task.to("cuda" if torch.cuda.is_available() else "cpu")
    if loaded.task.kind == "classification":
        _classify(loaded, files, out)
    else:
        _segment(loaded, files, out)
    return 0


def check_inputs(datamodule: Any, files: Sequence[Path]) -> None:
    """Reads every file once.

    Raises:
        ValueError: files cannot be read; up to five are named, each with the reason.
    """
    problems = []
    for file in files:
        try:
            datamodule.read_input(file)
        except ValueError as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        more = [f"and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
        lines = "\n  ".join(problems[:NAMED] + more)
        raise ValueError(f"{len(problems)} of {len(files)} files cannot be used:\n  {lines}")


def _classify(loaded: LoadedRun, files: Sequence[Path], out: Path) -> None:
    import torch

    task = loaded.task
    rows = []
    for first in range(0, len(files), BATCH):
        part = files[first : first + BATCH]
        samples = [_read(loaded, file) for file in part]
        probabilities = _probabilities(loaded, torch.stack([s.image for s in samples]), part[0])
        for file, row in zip(part, probabilities.tolist(), strict=True):
            best = max(range(len(row)), key=row.__getitem__)
            rows.append([str(file), task.class_names[best], *row])
    header = ["file", "predicted", *(f"probability_{name}" for name in task.class_names)]
    with staged(out) as stage, (stage / TABLE).open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([*row[:2], *(f"{p:.6f}" for p in row[2:])] for row in rows)
    width = max(len(row[0]) for row in rows[:SHOWN])
    for name, predicted, *row in rows[:SHOWN]:
        print(f"{name:<{width}}  {predicted}  {max(row):.1%}")
    if len(rows) > SHOWN:
        print(f"... and {len(rows) - SHOWN} more")
    print(f"written: {out / TABLE}")


def _segment(loaded: LoadedRun, files: Sequence[Path], out: Path) -> None:
    names = output_names(files)
    _check_no_input(files, [out / name for name in names])
    with staged(out) as stage:
        for file, name in zip(files, names, strict=True):
            sample = _read(loaded, file)
            labels = _probabilities(loaded, sample.image[None], file)[0].argmax(0)
            sample.save(labels, stage / name)
    for file, name in zip(files, names, strict=True):
        print(f"{file} -> {out / name}")


def _read(loaded: LoadedRun, file: Path) -> Sample:
    """Reads a file again: all of them may not fit into memory. What it warned of was said the first time."""
    logger = logging.getLogger("nvsubq.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return loaded.datamodule.read_input(file)
    finally:
        logger.setLevel(level)


def _probabilities(loaded: LoadedRun, images: torch.Tensor, file: Path) -> torch.Tensor:
    try:
        return loaded.task.probabilities(images).cpu()
    except ValueError as error:
        raise ValueError(f"{file}: the model cannot take it: {error}") from error


def output_names(files: Sequence[Path]) -> list[str]:
    """One name for each file; equal stems are numbered, and a number never takes another file's name.

    Example:
        >>> output_names([Path("a/scan.nii.gz"), Path("b/scan.nii"), Path("scan_2.nii.gz")])
        ['scan_prediction.nii.gz', 'scan_3_prediction.nii.gz', 'scan_2_prediction.nii.gz']
    """
    stems = [_stem(file) for file in files]
    taken = {stem.casefold() for stem in stems}
    used: set[str] = set()
    names = []
    for stem in stems:
        name, number = stem, 1
        if name.casefold() in used:
            while name.casefold() in taken:
                number += 1
                name = f"{stem}_{number}"
            taken.add(name.casefold())
        used.add(name.casefold())
        names.append(f"{name}_prediction.nii.gz")
    return names


def _stem(file: Path) -> str:
    name = file.name
    for suffix in (".nii.gz", ".nii"):
        if name.casefold().endswith(suffix):
            return name[: -len(suffix)]
    return file.stem


def _check_no_input(files: Sequence[Path], outputs: Sequence[Path]) -> None:
    inputs = {file.resolve(): file for file in files}
    for output in outputs:
        if output.resolve() in inputs:
            raise ValueError(
                f"{output} would be written over the input {inputs[output.resolve()]}: choose another --out."
            )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder whose files move into `out` when the block ends well; else nothing is left behind.

    Raises:
        ValueError: `out` cannot be written.
    """
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    stage: Path | None = None
    done = False
    try:
        if out.exists() and not out.is_dir():
            raise ValueError(f"`--out` (={out}) is a file, not a folder.")
        out.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".predict_", dir=out))
        yield stage
        files = sorted(stage.iterdir())
        for file in files:
            if (out / file.name).is_dir():
                raise ValueError(f"{out / file.name} is a folder: choose another --out.")
        for file in files:
            os.replace(file, out / file.name)
        done = True
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"`--out` (={out}) cannot be written: {reason}. Choose another with --out DIR."
        ) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        if not done:
            for folder in missing:  # innermost first
                try:
                    folder.rmdir()
                except OSError:
                    break
