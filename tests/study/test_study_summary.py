"""Tables and page of made-up runs: what is marked, and what a damaged file does."""

from __future__ import annotations

import json

import numpy as np
import pytest
from study_helpers import TINY

from nvsubq.cli.main import main
from nvsubq.study.engine import Engine
from nvsubq.study.plan import load
from nvsubq.study.runs import Folder, plan_runs
from nvsubq.study.summary import summarise
from nvsubq.study.tables import MARKED, markdown, tables
from nvsubq.study.trivial import BASELINE, baseline_errors

COLOUR = "mean in its colour"
STUDY = [
    *TINY, "cores=[rglru]", "rates=[1e-3]", "tasks=[simple_copy,color_conditioning]", "seeds=[0,1,2]",
    "overrides.spatial_dims.1=['data.canvas=[400]']",
]  # fmt: skip


@pytest.fixture
def engine(here):
    """Three seeds of two tasks that are done: one below the best trivial error, one at it."""
    engine = Engine(plan_runs(load("spatial_recall", STUDY)), Folder(here / "s"))
    for run in engine.known():
        trivial = baseline_errors(run.recipe, engine.folder)
        best = min(trivial.values(), key=lambda errors: errors.mean())
        less = best.min() / 2 if run.cell.task == "simple_copy" else 0.0
        wobble = 1e-5 * (run.seed - 1) + 1e-6 * np.arange(8)
        finish(engine.folder.of(run), best - less + wobble)
    return engine


def finish(folder, squares):
    """What a run that is done leaves, as far as tables and page read it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0")
    figures = {
        "steps": 2, "train_s": 1.0, "metrics": {"test/mse": float(squares.mean()), "val/mse": 0.1},
        "peak_memory_bytes": 1, "peak_device_bytes": None, "versions": {}, "threads": 1, "device": "cpu",
        "precision": "32-true",
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(figures))
    np.savez_compressed(folder / "predictions.npz", indices=np.arange(len(squares)), squares=squares)
    (folder / "done.json").write_text("{}")


def damage(file):
    """Flips bytes within the compressed data of the first array: no header says that they are wrong."""
    data = bytearray(file.read_bytes())
    for place in range(70, 76):
        data[place] ^= 0xFF
    file.write_bytes(data)


def test_a_cell_is_marked_against_the_best_trivial_predictor(engine):
    summary = summarise(engine)
    copied, coloured = summary.cells
    assert (copied.trivial, copied.verdict) == (BASELINE, "beats")
    assert copied.trivial_sigmas == copied.sigmas > 4.6
    assert (coloured.trivial, coloured.verdict) == (COLOUR, "equal")
    assert coloured.mean_in_its_colour < coloured.per_pixel_mean
    assert coloured.sigmas > 4.6  # all the same
    assert [table.beats[0] for table in tables(summary)] == [True, False]
    first, second = (table.rows for table in tables(summary))
    assert [row[0] for row in first[1:]] == [f"{BASELINE}, to beat", "constant"]
    assert [row[0] for row in second[1:]] == [f"{COLOUR}, to beat", BASELINE, "constant"]
    text = markdown(summary)
    assert f"1 of 2 cells beat the best trivial predictor of their task (the {BASELINE})" in text
    assert "1 of 2 cells cannot be told from it: rglru 1-D color_conditioning" in text
    assert text.count("**") == 2
    assert f"**{first[0][MARKED]}**" in text


def test_one_seed_is_not_marked(engine):
    for run in engine.known():
        if run.seed > 0:
            (engine.folder.of(run) / "done.json").unlink()
    summary = summarise(engine)
    assert [row.verdict for row in summary.cells] == ["one seed"] * 2
    assert "2 of 2 cells have one seed, so nothing can be said of others" in markdown(summary)
    assert "**" not in markdown(summary)


def test_a_run_with_damaged_predictions_is_shown_as_failed(engine, capsys):
    run = next(engine.known())
    file = engine.folder.of(run) / "predictions.npz"
    damage(file)
    assert main(["study", "spatial_recall", "--folder", "s", *STUDY, "--page-only"]) == 1
    reason = f"{file} is broken: "
    assert reason in capsys.readouterr().err
    assert reason in (engine.folder.path / "study.html").read_text()
    summary = summarise(engine)
    assert [row.state for row in summary.runs].count("failed") == 1
    assert (summary.cells[0].runs, summary.cells[0].failed) == (2, 1)
    assert summary.cells[0].reason.startswith(reason)
    assert main(["compare", str(file.parent)]) == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_file_of_baselines_is_made_anew(engine, how):
    (before,) = {row.per_pixel_mean for row in summarise(engine).cells if row.task == "simple_copy"}
    for file in (engine.folder.path / "baselines").iterdir():
        whole = file.read_bytes()
        if how == "cut":
            file.write_bytes(whole[: len(whole) // 2])
        else:
            damage(file)
    assert summarise(engine).cells[0].per_pixel_mean == before
    assert all(
        np.load(file)["constant"].shape == (8,) for file in (engine.folder.path / "baselines").iterdir()
    )
