"""The table core by option in docs/cores.md, from the outcomes of the tests that carry the mark `column`.

`scripts/test.sh tests/cores --write-table` writes it. A run with `-m gpu` on a machine with a GPU writes that
column, as `cores_gpu.json`, which the next run without it puts in.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from option_cases import CASES, COLUMNS, Case

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- table of options: begin -->\n", "<!-- table of options: end -->\n"
GPU = "GPU"

Cells = dict[str, dict[str, str]]  # by case, by column: pass or fail


class Recorder:
    """A pytest plugin: a cell is `pass` where every test of its column passed for its case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo):
        report = yield
        mark = item.get_closest_marker("column")
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        if mark and isinstance(case, Case) and (report.when == "call" or not report.passed):
            self.seen[str(case), mark.args[0]].append(report.passed)
        return report

    def pytest_sessionfinish(self) -> None:
        cells: Cells = {str(case): {} for case in CASES}
        for (case, column), outcomes in self.seen.items():
            cells[case][column] = "pass" if all(outcomes) else "fail"
        if any(GPU in row for row in cells.values()):
            write_gpu(self.folder, cells)
        else:
            write_table(self.folder, cells)


def check_columns(cells: Cells, columns: tuple[str, ...]) -> None:
    """Raise UsageError unless all rows have all of these columns: a part of the tests makes no table."""
    lacking = [f"{case}: {column}" for case, row in cells.items() for column in columns if column not in row]
    if lacking:
        raise pytest.UsageError(f"--write-table needs every test of tests/cores; none ran for {lacking}")


def write_gpu(folder: Path, cells: Cells) -> None:
    """Write the GPU's column, and the machine that it is from."""
    check_columns(cells, (GPU,))
    found = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cells": {case: row[GPU] for case, row in cells.items()},
    }
    (folder / "cores_gpu.json").write_text(json.dumps(found, indent=1) + "\n")


def write_table(folder: Path, cells: Cells) -> None:
    """Put the table into cores.md, with the GPU's column from its file."""
    check_columns(cells, tuple(column for column in COLUMNS if column != GPU))
    gpu = json.loads((folder / "cores_gpu.json").read_text())["cells"]
    rows = [("core", "options", *COLUMNS), ("---",) * (2 + len(COLUMNS))]
    for case in CASES:
        row = cells[str(case)] | {GPU: gpu.get(str(case), "not run")}
        rows.append((case.name, f"`{case.shown}`" if case.shown else "", *(row[c] for c in COLUMNS)))
    lines = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    page = folder / "cores.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}{lines}{END}{rest.split(END)[1]}")


def read_table(page: Path) -> Cells:
    """The cells of a written page."""
    lines = page.read_text().split(BEGIN)[1].split(END)[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {
        f"{name}({shown.strip('`')})": dict(zip(head[2:], row, strict=True)) for name, shown, *row in rows
    }
