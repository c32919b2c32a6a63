"""`nvsubq compare RUN...`: runs side by side in one table; a sweep's folder counts as its runs."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from nvsubq.cli.runs import add_command

if TYPE_CHECKING:
    from nvsubq.training.comparison import Comparison

FORMATS = ("table", "markdown", "csv")
SPREAD = " ± "


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = add_command(
        subparsers,
        "compare",
        help="put runs side by side in one table",
        description="Puts finished runs side by side: what differs between them, and their test metrics, as "
        "mean and standard deviation over the runs that differ in the seed alone; of two with the same seed "
        "the newer counts.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run folder, or that of a sweep or an experiment: all runs in it",
    )
    parser.add_argument("--each", action="store_true", help="a line for each run, seeds apart")
    parser.add_argument("--format", default="table", choices=FORMATS, help="default: table")


def run(args: argparse.Namespace) -> int:
    """Prints the table; returns 0."""
    from nvsubq.training.comparison import compare, find_runs

    records, unfinished = find_runs(args.runs)
    found = compare(records, each=args.each)
    if args.format == "table":
        _show(found)
    else:
        sys.stdout.write(markdown(found) if args.format == "markdown" else as_csv(found))
    for path in found.copies:
        sys.stderr.write(f"left out, of the same setting and seed as a newer run: {path}\n")
    for path in unfinished:
        sys.stderr.write(f"left out, not finished: {path}\n")
    return 0


def _show(found: Comparison) -> None:
    """The table; settings that leave no room for what was measured come below it, by the number of a line."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.text import Text

    from nvsubq.training.table import show

    console, settings = Console(), found.columns.index("runs")
    unbounded = console.options.update(max_width=10**6)  # else what is too wide is measured as what fits
    for kept in range(settings, -1, -1):
        table = _table(found, kept, settings)
        if Measurement.get(console, unbounded, table).maximum <= console.width:
            break
    show(console, table)
    for line in _left_out(found, kept, settings):
        show(console, Text(line))


def _left_out(found: Comparison, kept: int, settings: int) -> list[str]:
    """The settings that are no column: what most lines have, and by number what others have instead."""
    names = found.columns[kept:settings]
    values = [row[kept:settings] for row in found.rows]
    most = [Counter(column).most_common(1)[0][0] for column in zip(*values, strict=True)]

    def pairs(given: list[str], usual: list[str | None]) -> str:
        told = zip(names, given, usual, strict=True)
        return ", ".join(f"{name}={value or 'absent'}" for name, value, other in told if value != other)

    lines = [f"all but those below: {pairs(most, [None] * len(most))}"] if names else []
    numbered = ((number, pairs(row, list(most))) for number, row in enumerate(values, 1))
    return lines + [f"{number}: {text}" for number, text in numbered if text]


def _table(found: Comparison, kept: int, settings: int) -> Any:
    """Lines of so many of the settings and all that was measured; numbered where settings are left out."""
    from rich.table import Table
    from rich.text import Text

    numbered = kept < settings

    def line(row: list[str], number: str) -> list[Text]:
        return [Text(cell) for cell in (*([number] if numbered else []), *row[:kept], *row[settings:])]

    table = Table()
    for number, name in enumerate(line(found.columns, "")):
        table.add_column(name, justify="left" if number < kept + numbered else "right", no_wrap=True)
    for number, row in enumerate(found.rows, 1):
        table.add_row(*line(row, str(number)))
    if found.baselines:
        table.add_section()
    for row in found.baselines:  # the name is in the first column
        table.add_row(*line(row, row[0] if not kept else ""), style="dim")
    return table


def markdown(found: Comparison) -> str:
    """The table in GitHub's Markdown.

    Example:
        >>> from nvsubq.training.comparison import Comparison
        >>> print(markdown(Comparison(["core", "runs"], [["S5", "3"]])), end="")
        | core | runs |
        |---|--:|
        | S5 | 3 |
    """
    first = found.columns.index("runs")
    rule = ["---" if number < first else "--:" for number in range(len(found.columns))]
    lines = [_line(found.columns), f"|{'|'.join(rule)}|"]
    lines += [_line(row) for row in (*found.rows, *found.baselines)]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def as_csv(found: Comparison) -> str:
    """The table as comma-separated values; a spread gets a column of its own, `NAME_std`.

    Example:
        >>> from nvsubq.training.comparison import Comparison
        >>> print(as_csv(Comparison(["core", "runs", "dice"], [["S5", "3", "0.9000 ± 0.0100"]])), end="")
        core,runs,dice,dice_std
        S5,3,0.9000,0.0100
    """
    rows = [*found.rows, *found.baselines]
    spread = [any(SPREAD in row[number] for row in rows) for number in range(len(found.columns))]

    def cells(row: list[str], names: bool = False) -> list[str]:
        out: list[str] = []
        for cell, wide in zip(row, spread, strict=True):
            value, _, deviation = cell.partition(SPREAD)
            out += [value, f"{cell}_std" if names else deviation] if wide else [cell]
        return out

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([cells(found.columns, names=True), *map(cells, rows)])
    return text.getvalue()
