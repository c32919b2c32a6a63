"""What a regression was asked and what it answered: a section of the report."""

from __future__ import annotations

import numpy as np

from nvsubq import viz
from nvsubq.training.report_data import Record
from nvsubq.training.report_section import Picture, Section
from nvsubq.training.scores import score_text


def answered(record: Record) -> list[Section]:
    """A few test items as input, target and answer, with the error of each; empty where none was kept."""
    arrays = record.predictions
    if not len(arrays["shown"]):
        return []
    squares = {int(i): float(e) for i, e in zip(arrays["indices"], arrays["squares"], strict=True)}
    shown = [int(index) for index in arrays["shown"]]
    notes = [f"MSE {score_text(squares[index])}" for index in shown]
    figure = viz.answer_grid(arrays["inputs"], arrays["targets"], arrays["answers"], notes)
    text = f"The first {len(shown)} test items, none of them chosen"
    text += {1: "; signals are folded into rows, read like lines of text. ", 3: "; slices of an input stand "
             "beside each other, the first upper left. "}.get(arrays["inputs"].ndim - 2, ". ")  # fmt: skip
    errors = np.array(list(squares.values()))
    text += (
        f"Of {len(errors):,} test items half have an error below {score_text(float(np.median(errors)))}, "
        f"the worst has {score_text(float(errors.max()))}."
    )
    alt = f"{len(shown)} test items: input, target and answer below each other"
    width = round(figure.get_figwidth() * viz.style.PIXELS_PER_INCH)
    return [Section("Answers", text, [Picture(viz.png_uri(figure), alt, width)])]
