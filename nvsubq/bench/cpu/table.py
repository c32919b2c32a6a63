"""The measurements as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from nvsubq.bench.cpu.cases import CORES
from nvsubq.bench.cpu.results import Cell, beside
from nvsubq.bench.names import OURS
from nvsubq.bench.stats import digits, mebibytes, quartiles, ratio, short


def core_table(core: str, cells: Sequence[Cell]) -> Table:
    """The implementations of a core, size by size.

    Args:
        core: key of `cases.CORES`.
        cells: measurements, of this core and others.
    """
    name, options = CORES[core]
    arguments = ", ".join(f"{key}={value}" for key, value in options.items())
    table = Table(
        title=f"{name}({arguments}), fp32: median (quartiles), times as long as {OURS}",
        title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("(B, L, C)", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    for heading in ("forward", "", "forward+backward", "", "peak", "cells/s", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    own = [cell for cell in cells if cell.core == core]
    for i, cell in enumerate(own):
        new = i == 0 or own[i - 1].size != cell.size
        if new and i:
            table.add_section()
        style = "bold" if cell.name == OURS else ""
        table.add_row(str(cell.size) if new else "", Text(cell.label), *_row(cell, own), style=style)
    return table


def problems(cells: Sequence[Cell]) -> list[str]:
    """A line for each cell without times, with the reason."""
    return [f"{CORES[c.core][0]} {c.size} {c.label}: {c.problem}" for c in cells if c.problem]


def _row(cell: Cell, cells: Sequence[Cell]) -> list[str]:
    if cell.problem:
        return [short(cell.problem), "", "", "", "", "", _errors(cell)]
    ours = beside(cells, cell)
    texts = []
    for what in ("forward", "both"):
        times = getattr(cell, what)
        factor = None if ours is None or ours is cell else ratio(times, getattr(ours, what))
        texts += [_times(times), "" if factor is None else f"{factor:.2f}x"]
    rate = cell.size.cells / quartiles(cell.both)[1]
    return [*texts, mebibytes(cell.memory), f"{rate:,.0f}", _errors(cell)]


def _times(times: Sequence[float]) -> str:
    low, middle, high = quartiles(times)
    unit, scale = ("s", 1.0) if middle >= 1 else ("ms", 1e-3)
    shown = [digits(seconds / scale) for seconds in (low, middle, high)]
    return f"{shown[1]} {unit}" + (f" ({shown[0]}-{shown[2]})" if len(times) > 1 else "")


def _errors(cell: Cell) -> str:
    if cell.error is None:
        return ""
    return "reference" if cell.is_reference else f"{cell.error[0]:.0e} / {cell.error[1]:.0e}"


def products_table(cells: Sequence[Cell]) -> Table:
    """Of each block's forward time: its matrix products alone, and all the rest."""
    table = Table(
        title="of the block's forward time", title_justify="left", title_style="bold",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for heading in ("core", "(B, L, C)"):
        table.add_column(heading, no_wrap=True)
    for heading in ("forward", "matrix products", "the rest", "share of the rest"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell in (c for c in cells if c.name == OURS and c.products):
        whole, products = quartiles(cell.forward)[1], quartiles(cell.products)[1]
        rest = max(0.0, whole - products)
        table.add_row(
            CORES[cell.core][0],
            str(cell.size),
            *(f"{digits(1000 * seconds)} ms" for seconds in (whole, products, rest)),
            f"{100 * rest / whole:.0f} %",
        )
    return table
