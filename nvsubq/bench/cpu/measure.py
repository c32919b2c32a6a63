"""All implementations of a core at one size: first runs one by one, then rounds in which they alternate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from nvsubq.bench.cpu.cases import CORES, PEERS, Size
from nvsubq.bench.cpu.process import Worker, WorkerError
from nvsubq.bench.cpu.results import Cell
from nvsubq.bench.names import OURS, PORTABLE
from nvsubq.bench.packages import version

TOLERANCE = 1e-4
"""Largest difference that counts as the same block: fp32, in another order of summation."""

REST = 0.02
"""Seconds between two runs: threads of the one before go to sleep."""


@dataclass(frozen=True)
class Options:
    """How to measure.

    Args:
        repeats: rounds, fewer for what would fill its limit.
        limit: seconds, of one forward and backward and about of a cell of the table.
        threads: of torch, in each process.
    """

    repeats: int = 7
    limit: float = 30.0
    threads: int = 1


def measure(
    core: str,
    size: Size,
    names: Sequence[str],
    options: Options,
    earlier: Sequence[Cell] = (),
    say: Callable[[str], None] = lambda text: None,
) -> list[Cell]:
    """Measures a core at a size.

    Args:
        core: key of `cases.CORES`.
        size: of the input.
        names: implementations.
        earlier: cells measured before, from which times and memory are estimated.
        say: told what is being done.

    Returns:
        A cell for each name; what could not be measured has a `problem`.
    """
    cells = [Cell(core, size, name, _version(name)) for name in names]
    for cell in cells:
        cell.problem = _missing(cell) or too_slow(cell, earlier, options.limit) or too_big(cell, earlier)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="nvsubq-bench-")))
        workers: dict[str, Worker] = {}
        for cell in (cell for cell in cells if not cell.problem):
            workers[cell.name] = Worker(core, size, cell.name, options.threads, folder / f"{cell.name}.pt")
            stack.callback(workers[cell.name].close)
        for cell in (cell for cell in cells if not cell.problem):
            say(f"{CORES[core][0]} {size}: {cell.name}, first run")
            _first(cell, workers[cell.name], options)
        _compare(cells, workers)
        say(f"{CORES[core][0]} {size}: rounds of alternating runs")
        _rounds(cells, workers, options)
    return cells


def _version(name: str) -> str:
    return version("nvsubq" if name in (OURS, PORTABLE) else name) or ""


def _missing(cell: Cell) -> str:
    there = cell.name not in PEERS or cell.version
    return "" if there else f"not installed: pip install {cell.name}"


def too_slow(cell: Cell, earlier: Sequence[Cell], limit: float) -> str:
    """Why a cell would take longer than the limit, judging by smaller sizes; empty where it would not.

    The time is taken to grow as the elements do, or faster where two sizes of one width have shown that.
    """
    before = [
        c
        for c in earlier
        if (c.core, c.name) == (cell.core, cell.name) and c.size.elements <= cell.size.elements
    ]
    stopped = next((c for c in before if "takes" in c.problem), None)
    if stopped:
        return f"skipped: {stopped.size} takes longer than --limit {limit:g} already"
    timed = sorted((c for c in before if c.both), key=lambda c: c.size.elements)
    if not timed:
        return ""
    last = timed[-1]
    power = max([1.0, *(_power(c, last) for c in timed[:-1] if c.size[2] == last.size[2])])
    estimate = min(last.both) * (cell.size.elements / last.size.elements) ** power
    return (
        f"skipped: takes about {estimate:.0f} s by {last.size}, over --limit {limit:g}"
        if estimate > limit
        else ""
    )


def _power(small: Cell, large: Cell) -> float:
    """The power of the length by which the time of one row grew."""
    longer = large.size.length / small.size.length
    if longer <= 1:
        return 1.0
    return math.log(min(large.both) * small.size.batch / min(small.both) / large.size.batch) / math.log(
        longer
    )


def too_big(cell: Cell, earlier: Sequence[Cell], available: int | None = None) -> str:
    """Why a cell would not fit into memory, judging by smaller sizes; empty where it would."""
    available = available_memory() if available is None else available
    known = [c for c in earlier if (c.core, c.name) == (cell.core, cell.name) and c.memory]
    if not known or not available:
        return ""
    last = max(known, key=lambda c: c.size.elements)
    needed = (last.memory or 0) * cell.size.elements / last.size.elements
    if needed <= 0.9 * available:
        return ""
    return (
        f"skipped: needs about {needed / 2**30:.0f} GiB by {last.size}, {available / 2**30:.0f} GiB are free"
    )


def available_memory() -> int | None:
    """Bytes that a process could still take; None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _first(cell: Cell, worker: Worker, options: Options) -> None:
    try:
        worker.ready()
        answer = worker.ask("first", options.limit)
    except WorkerError as error:
        cell.problem = str(error)
        return
    cell.memory = answer["memory"]


def _compare(cells: Sequence[Cell], workers: dict[str, Worker]) -> None:
    """Holds every output and input gradient to those of the portable path, or else of the first that ran."""
    import torch

    ran = {cell.name: cell for cell in cells if not cell.problem}
    if not ran:
        return
    reference = ran.get(PORTABLE, next(iter(ran.values())))
    reference.is_reference = True
    wanted = torch.load(workers[reference.name].outputs)
    for name, cell in ran.items():
        own = torch.load(workers[name].outputs)
        output, gradient = (
            float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
            for a, b in zip(own, wanted, strict=True)
        )
        cell.error = (output, gradient)
        if not max(cell.error) <= TOLERANCE:  # not a number is too much as well
            cell.problem = f"disagrees: output and gradient are off by {output:.1e} and {gradient:.1e}"


def _rounds(cells: Sequence[Cell], workers: dict[str, Worker], options: Options) -> None:
    for number in range(options.repeats):
        for cell in cells:
            if cell.problem or number >= _affordable(cell, options):
                continue
            try:
                for what, times in (
                    ("forward", cell.forward),
                    ("both", cell.both),
                    ("products", cell.products),
                ):
                    if what != "products" or cell.name == OURS:
                        time.sleep(REST)
                        times.append(workers[cell.name].ask(what, 3 * options.limit)["seconds"])
            except WorkerError as error:
                cell.problem = str(error)


def _affordable(cell: Cell, options: Options) -> int:
    """Rounds that fit into the limit; one at least."""
    if not cell.both:
        return 1
    return max(1, int(options.limit / (cell.forward[0] + cell.both[0])))
