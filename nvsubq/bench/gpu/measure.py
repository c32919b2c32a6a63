"""One implementation in one case: built, run, timed; what fails becomes a row that says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from nvsubq.bench.gpu.cases import PACKAGES
from nvsubq.bench.gpu.clock import Clock, Run, TooSlow
from nvsubq.bench.gpu.results import Row
from nvsubq.bench.gpu.work import Work
from nvsubq.bench.names import OURS
from nvsubq.bench.packages import version

FATAL = (
    "illegal memory access",
    "misaligned address",
    "launch failure",
    "illegal instruction",
    "assert trig",
)
"""Errors of CUDA after which no call of the process works."""


class Absent(Exception):
    """A package that is not installed, or a kernel that is not there; the message says which."""


@dataclass
class Task:
    """What is run.

    Args:
        runs: by what is timed: what runs.
        wall: those that are timed by the wall clock, not by events.
        graphs: those that are captured as a CUDA graph first.
        work: the least work of each, where it is known.
        remember: the run whose peak of memory counts; none where there is no backward.
        note: what a reader must know.
    """

    runs: dict[str, Run]
    wall: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()
    work: dict[str, Work] = field(default_factory=dict)
    remember: str = ""
    note: str = ""


class Subject(NamedTuple):
    """An implementation in a case.

    Args:
        table: key of `cases.TABLES`.
        case: in words.
        name: the implementation; one of the name of a package has its version told.
        build: makes the task; may fail.
    """

    table: str
    case: str
    name: str
    build: Callable[[], Task]


def measure_all(
    subjects: Sequence[Subject], clock: Clock, say: Callable[[str], None] = lambda text: None
) -> list[Row]:
    """Measures one after the other; after an error that ends the device's context the rest is skipped."""
    rows: list[Row] = []
    lost = ""
    for subject in subjects:
        say(f"{subject.table} {subject.case}: {subject.name}")
        if lost:
            row = new_row(subject)
            row.problem = f"skipped: the CUDA context was lost in {lost}"
        else:
            row = measure(subject, clock)
            lost = f"{row.table} {row.case} {row.name}" if _is_fatal(row.problem) else ""
        rows.append(row)
    return rows


def new_row(subject: Subject) -> Row:
    """A row without any figure."""
    package = subject.name.split()[0]
    known = package in PACKAGES or subject.name == OURS
    return Row(subject.table, subject.case, subject.name, (version(package) or "") if known else "")


def measure(subject: Subject, clock: Clock) -> Row:
    """Builds the task of a subject and measures all of it, as far as that goes."""
    row = new_row(subject)
    try:
        task = subject.build()
        row.work, row.note = task.work, task.note
        for what, run in task.runs.items():
            ready = clock.captured(run) if what in task.graphs else run
            row.times[what] = (clock.wall if what in task.wall else clock.events)(ready)
        if task.remember:
            row.memory = clock.memory(task.runs[task.remember])
    except Exception as error:
        row.problem = problem_of(error)
    task = run = ready = None  # type: ignore[assignment]
    if not _is_fatal(row.problem):
        try:
            clock.rest()
        except RuntimeError as error:  # of a kernel whose launch was well
            row.problem = problem_of(error)
    return row


def problem_of(error: Exception) -> str:
    """What a row says of an error: one line.

    Example:
        >>> problem_of(ModuleNotFoundError("No module named 'lrnnx'", name="lrnnx"))
        'not installed: lrnnx'
        >>> problem_of(RuntimeError("CUDA error: an illegal memory access was encountered"))
        'RuntimeError: CUDA error: an illegal memory access was encountered'
    """
    text = str(error).strip().split("\n")[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory: {text.removeprefix('CUDA out of memory. ')}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"not installed: {error.name}"
    if isinstance(error, (TooSlow, Absent)):
        return text
    if isinstance(error, RuntimeError) and ("does not serve" in text or "is not active" in text):
        return f"not there: {text}"
    return f"{type(error).__name__}: {text}"


def _is_fatal(problem: str) -> bool:
    return any(words in problem for words in FATAL)
