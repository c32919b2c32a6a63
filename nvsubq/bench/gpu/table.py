"""The measurements as tables for a terminal: for each thing timed its time, rates and floor."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from nvsubq.bench.gpu.cases import TABLES
from nvsubq.bench.gpu.results import Row
from nvsubq.bench.gpu.work import Ceilings
from nvsubq.bench.names import OURS
from nvsubq.bench.stats import digits, mebibytes, short


def of_rows(name: str, rows: Sequence[Row], ceilings: Ceilings) -> Table:
    """The implementations of a table, case by case; ratios are to the first of a case.

    Args:
        name: key of `cases.TABLES`.
        rows: of this table.
        ceilings: of the device.
    """
    title, timed = TABLES[name]
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    rated = any(row.work for row in rows)
    table.add_column("case", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    for what in timed:
        for heading in (what, "", *(("TB/s", "Texp/s", "floor", "") if rated else ())):
            table.add_column(heading, justify="right", no_wrap=True)
    remembered = any(row.memory is not None for row in rows)
    if remembered:
        table.add_column("peak", justify="right", no_wrap=True)
    first = rows[0] if rows else None
    for i, row in enumerate(rows):
        new = i == 0 or rows[i - 1].case != row.case
        if new:
            first = row
            if i:
                table.add_section()
        cells = [text for what in timed for text in _timed(row, what, first, ceilings, rated)]
        style = "bold" if row.name == OURS else ""
        peak = [mebibytes(row.memory)] if remembered else []
        table.add_row(row.case if new else "", Text(row.label), *cells, *peak, style=style)
    return table


def remarks(rows: Sequence[Row]) -> list[str]:
    """A line for each row that has a problem or a note."""
    return [
        f"{row.table} {row.case} {row.label}: {text}"
        for row in rows
        for text in (row.problem, row.note)
        if text
    ]


def _timed(row: Row, what: str, first: Row | None, ceilings: Ceilings, rated: bool) -> list[str]:
    """Time, ratio and, where the table has them, rates, floor and how much of it is reached."""
    if what not in row.times:
        return [short(row.problem) if row.problem else "", *([""] * (5 if rated else 1))]
    seconds = row.median(what)
    compared = first is not None and first is not row and what in first.times
    factor = f"{seconds / first.median(what):.2f}x" if compared and first is not None else ""
    cells = [duration(seconds), factor]
    if not rated:
        return cells
    if what not in row.work:
        return [*cells, "", "", "", ""]
    rates = row.rates(what, ceilings)
    exps = digits(rates["exps_per_second"] / 1e12) if row.work[what].exps else ""
    floor = f"{duration(rates['floor'])} {rates['bound']}"
    return [*cells, digits(rates["bytes_per_second"] / 1e12), exps, floor, f"{100 * rates['reached']:.0f} %"]


def duration(seconds: float) -> str:
    """A time in microseconds, or in milliseconds from ten on.

    Example:
        >>> duration(396e-6), duration(0.0132)
        ('396 µs', '13.2 ms')
    """
    return f"{digits(1e3 * seconds)} ms" if seconds >= 0.01 else f"{digits(1e6 * seconds)} µs"
