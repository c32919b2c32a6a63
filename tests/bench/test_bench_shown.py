"""The table and the plot of `nvsubq.bench`."""

from __future__ import annotations

import pytest
from rich.console import Console

from nvsubq.bench.cpu import plot, table
from nvsubq.bench.cpu.cases import Size
from nvsubq.bench.cpu.results import Cell
from nvsubq.bench.names import OURS, PORTABLE

SIZES = (Size(4, 196, 192), Size(1, 1024, 192), Size(1, 4096, 192), Size(1, 4096, 384))


def cells() -> list[Cell]:
    found = []
    for size in SIZES:
        seconds = size.elements * 1e-8
        times = [seconds, 2 * seconds, 3 * seconds]
        found.append(Cell("mamba", size, OURS, "0.1.0", times, times, times[:1], 2**20, (1e-7, 2e-7)))
        slow = [4 * t for t in times]
        found.append(
            Cell(
                "mamba",
                size,
                PORTABLE,
                "0.1.0",
                slow,
                slow,
                memory=3 * 2**20,
                error=(0.0, 0.0),
                is_reference=True,
            )
        )
        found.append(
            Cell("mamba", size, "mambapy", "1.2.0", error=(0.25, 0.5), problem="disagrees: by a quarter")
        )
        found.append(Cell("mamba", size, "lite-mamba", problem="not installed: pip install lite-mamba"))
    return found


def text_of(what: object) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def test_table():
    lines = text_of(table.core_table("mamba", cells())).splitlines()
    (ours,) = (line for line in lines if "(4, 196, 192)" in line)
    assert ours.split() == [
        "(4,", "196,", "192)", "nvsubq", "0.1.0", "3.01", "ms", "(2.26-3.76)", "3.01", "ms", "(2.26-3.76)",
        "1", "MiB", "260,417", "1e-07", "/", "2e-07",
    ]  # fmt: skip
    portable = [line for line in lines if "nvsubq torch" in line]
    assert len(portable) == 4
    assert all(line.endswith("reference ") for line in portable)
    assert all(line.count("4.00x") == 2 for line in portable)
    assert sum("disagrees" in line and "2e-01 / 5e-01" in line for line in lines) == 4
    assert sum("not installed" in line for line in lines) == 4


def test_problems_have_their_reason():
    lines = table.problems(cells())
    assert lines[0] == "Mamba (4, 196, 192) mambapy 1.2.0: disagrees: by a quarter"
    assert lines[1] == "Mamba (4, 196, 192) lite-mamba: not installed: pip install lite-mamba"
    assert len(lines) == 8


def test_matrix_products_and_the_rest():
    lines = text_of(table.products_table(cells())).splitlines()
    (line,) = (line for line in lines if "(4, 196, 192)" in line)
    assert line.split()[4:] == ["3.01", "ms", "1.51", "ms", "1.51", "ms", "50", "%"]


def test_plot_has_a_line_for_each_implementation():
    figure = plot.time_by_length("mamba", cells())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["forward", "forward and backward"]
    assert figure.texts[0].get_text() == "Mamba, C = 192, fp32"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["nvsubq 0.1.0", "nvsubq torch"]
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert [label.get_text() for label in axes.get_xticklabels()] == ["4 x 196", "1024", "4096"]
        assert [len(lines[0].get_xdata()) for lines in axes.containers] == [3, 3]


def test_labels_do_not_touch():
    timed = [Cell("s5", Size(1, n, 8), OURS, "0.1.0", [0.1], [0.2]) for n in (100, 110, 10000, 9000)]
    (axes, _) = plot.time_by_length("s5", timed).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "", "9000", ""]


def test_plot_of_one_size():
    timed = [Cell("s5", Size(1, 100, 8), OURS, "0.1.0", [0.1], [0.2])]
    (axes, _) = plot.time_by_length("s5", timed).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100"]


def test_plot_of_nothing():
    with pytest.raises(ValueError, match=r"`core` \(='s5'\) has no times"):
        plot.time_by_length("s5", cells())
