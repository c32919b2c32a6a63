"""Small errors keep their digits wherever scores are shown."""

from __future__ import annotations

import pytest
from rich.console import Console

from nvsubq.training.comparison import spread
from nvsubq.training.scores import lower_is_better, score_text, spread_text
from nvsubq.training.table import score_table


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00021, "2.10e-4"), (0.001, "0.0010"), (-5.7e-5, "-5.70e-5"), (0.092, "0.0920"), (12.0, "12.0000"),
     (0.0, "0.0000"), (float("nan"), "nan"), (None, "")],
)  # fmt: skip
def test_scores_as_text(value, text):
    assert score_text(value) == text


def test_spread_of_small_errors():
    assert spread([2.0e-4, 2.2e-4]) == "2.10e-4 ± 1.4e-5"
    assert spread([2.1e-4]) == "2.10e-4"
    assert spread_text(2.1e-4, 0.0) == "2.10e-4 ± 0"


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [(0.00631, 0.0000118, "0.006310 ± 0.000012"), (0.5, 0.0996, "0.50 ± 0.10"), (123.4, 35.2, "123 ± 35"),
     (0.0002, 0.005, "0.0002 ± 0.0050"), (-2.1e-4, 3e-6, "-2.100e-4 ± 3.0e-6"), (1e-6, 5e-4, "1e-6 ± 5.0e-4"),
     (0.0, 0.01, "0.000 ± 0.010"), (0.5, 1e-9, "0.5000 ± 1.0e-9"), (float("nan"), float("nan"), "nan ± nan"),
     (float("inf"), float("nan"), "inf ± nan"), (float("nan"), 0.1, "nan ± 0.10")],
)  # fmt: skip
def test_two_digits_of_a_deviation(mean, deviation, text):
    assert spread_text(mean, deviation) == text


def test_which_way_is_better():
    assert [lower_is_better(f"val/{name}") for name in ("loss", "rmse", "mse", "dice")] == [True] * 3 + [
        False
    ]


def test_the_final_table_shows_small_errors():
    figures = {"metrics": {"test/mse": 2.1e-4, "test/loss": 2.1e-4}, "core_name": "S5",
               "baselines": {"constant": {"mse": 0.0446}}}  # fmt: skip
    console = Console(width=80)
    with console.capture() as captured:
        console.print(score_table(figures, "test"))
    shown = captured.get()
    assert "2.10e-4" in shown
    assert "0.0446" in shown
