"""The committed table of docs/cores.md is of the cores and options that there are, and all passes."""

from __future__ import annotations

import inspect
import json

import pytest
from option_cases import CASES, COLUMNS, SIMPLE
from table import DOCS, GPU, Recorder, check_columns, read_table, write_table

# What chooses no arithmetic: where parameters lie, and how a caller counts layers.
UNTOLD = {"self", "d_model", "layer_idx", "device", "dtype"}


def test_rows_are_the_cases() -> None:
    table = read_table(DOCS / "cores.md")
    assert list(table) == [str(case) for case in CASES]
    for case, row in table.items():
        assert tuple(row) == COLUMNS
        assert set(row.values()) == {"pass"}, case


def test_the_gpu_column_is_that_of_its_file() -> None:
    recorded = json.loads((DOCS / "cores_gpu.json").read_text())
    assert recorded["cells"] == {case: row[GPU] for case, row in read_table(DOCS / "cores.md").items()}
    assert f"{recorded['device']}, torch {recorded['torch'].split('+')[0]}" in (DOCS / "cores.md").read_text()


@pytest.mark.parametrize("case", SIMPLE, ids=lambda case: case.name)
def test_every_option_has_a_row(case) -> None:
    given = {name for other in CASES if other.name == case.name for name in other.options}
    assert set(inspect.signature(case.cls).parameters) - UNTOLD - {"causal"} == given
    # `causal=False` has no step and no cache: tests/cores/test_attention.py has its own tests


def test_the_table_is_written_from_outcomes(tmp_path) -> None:
    for name in ("cores.md", "cores_gpu.json"):
        (tmp_path / name).write_text((DOCS / name).read_text())
    cells = {str(case): dict.fromkeys(COLUMNS, "pass") for case in CASES}
    write_table(tmp_path, cells)
    assert (tmp_path / "cores.md").read_text() == (DOCS / "cores.md").read_text()
    cells[str(CASES[3])]["varlen"] = "fail"
    write_table(tmp_path, cells)
    assert read_table(tmp_path / "cores.md")[str(CASES[3])]["varlen"] == "fail"


def test_a_part_of_the_tests_writes_no_table(tmp_path) -> None:
    recorder = Recorder(tmp_path)
    recorder.seen[str(CASES[0]), "forward"] += [True]
    with pytest.raises(pytest.UsageError, match=r"needs every test of tests/cores; none ran for \['Mamba"):
        recorder.pytest_sessionfinish()
    check_columns({"Mamba()": {"step": "fail"}}, ("step",))
