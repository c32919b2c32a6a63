"""`nvsubq study`: what it leaves, what it does not run again, a run that fails, a study that is killed."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from study_helpers import TINY

from nvsubq.cli.main import main


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def ends(folder: Path) -> dict[str, int]:
    """When each finished run ended."""
    return {file.parent.name: file.stat().st_mtime_ns for file in folder.glob("runs/*_seed*/done.json")}


def begun(folder: Path) -> list[Path]:
    """Checkpoints of runs that have not come to their end."""
    found = folder.glob("runs/*_seed*/checkpoints/last.ckpt")
    return [file for file in found if not (file.parents[1] / "done.json").is_file()]


def went_on(folder: Path) -> int:
    """How many runs say that they went on from a checkpoint."""
    logs = [" ".join(file.read_text().split()) for file in folder.glob("runs/*_seed*/log.txt")]
    return sum("going on with" in log and "from last.ckpt" in log for log in logs)


@pytest.mark.slow
def test_a_study_from_start_to_page(here, capsys):
    """One core trains, the other cannot: its runs are shown as failed, and the study goes on."""
    bad = "+overrides.cores.s5=['checkpoint.monitor=val/none']"
    study = ["study", "spatial_recall", "--folder", "s", *TINY, bad]
    assert main([*study, "--dry-run"]) == 0
    assert "6 runs left" in " ".join(capsys.readouterr().out.split())
    assert not (here / "s").exists()
    assert main([*study, "--jobs", "2"]) == 1
    said = capsys.readouterr()
    assert said.err.count("`checkpoint.monitor` (='val/none') must be one of val/mse") == 2
    folder = here / "s"

    runs = rows(folder, "runs.csv")
    assert [(r["core"], r["state"]) for r in runs if r["core"] == "s5"] == [("s5", "failed")] * 2
    trained = [r for r in runs if r["core"] == "rglru"]
    assert len(trained) == 3  # two rates, and the other seed with the chosen one
    assert all(r["state"] == "done" and r["steps"] == "2" and float(r["ms_per_step"]) > 0 for r in trained)
    chosen = min((r for r in trained if r["seed"] == "0"), key=lambda r: float(r["val_mse"]))["rate"]
    good, failed = rows(folder, "cells.csv")
    assert (good["core"], good["rate"], good["runs"], good["planned"]) == ("rglru", chosen, "2", "2")
    scores = [float(r["test_mse"]) for r in trained if r["rate"] == chosen]
    assert float(good["mse"]) == pytest.approx(sum(scores) / 2)
    assert float(good["gain"]) == pytest.approx(float(good["per_pixel_mean"]) - float(good["mse"]))
    assert (failed["rate"], failed["mse"]) == ("", "")
    assert failed["reason"] == "it failed with every learning rate"

    one = folder / trained[0]["folder"]
    stored = json.loads((one / "metrics.json").read_text())
    assert stored["metrics"]["test/mse"] == float(trained[0]["test_mse"])
    assert (folder / "runs" / "latest").is_symlink()
    page, text = (folder / "study.html").read_text(), (folder / "study.md").read_text()
    assert page.count("data:image/") == 2  # curves and answers
    for shown in (page, text):
        assert "1-D simple_copy" in shown
        assert "per-pixel mean" in shown
        assert "it failed with every learning rate" in shown

    before = ends(folder)
    assert main([*study, "--page-only"]) == 1
    assert main([*study, "--jobs", "2", "--retry"]) == 1
    assert ends(folder) == before
    assert (folder / "study.md").read_text() == text
    capsys.readouterr()
    assert main(["compare", "--format", "csv", "s"]) == 0
    compared = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert "mse" in compared[0]
    assert sum(int(row["runs"] or 0) for row in compared) == 3


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on(here, capsys):
    study = ["study", "spatial_recall", "--folder", "s", *TINY]
    study += ["cores=[rglru]", "rates=[1e-3]", "seeds=[0,1,2]", "steps=40"]
    folder = here / "s"
    command = [sys.executable, "-m", "nvsubq.cli.main", *study]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for _ in range(1200):
        if len(ends(folder)) == 1 and begun(folder):
            break
        assert first.poll() is None, first.communicate()[0].decode()
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    time.sleep(0.5)  # its run sees that it is gone
    before = ends(folder)
    assert len(before) == 1
    assert not (folder / "study.html").exists()
    assert main([*study, "--jobs", "2"]) == 0  # begun with one
    assert "2 runs left" in capsys.readouterr().out
    after = ends(folder)
    assert len(after) == 3
    assert went_on(folder) == 1
    assert {name: after[name] for name in before} == before
    assert len(list(folder.glob("runs/*_seed*"))) == 3
    assert {row["steps"] for row in rows(folder, "runs.csv")} == {"40"}


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(here, capsys):
    """Within the same command."""
    folder = here / "s"
    study = ["study", "spatial_recall", "--folder", "s", *TINY]
    study += ["cores=[rglru]", "rates=[1e-3]", "seeds=[0]", "steps=40"]

    def kill() -> None:
        for _ in range(1200):
            if begun(folder):
                break
            time.sleep(0.05)
        for run in multiprocessing.active_children():
            run.kill()

    threading.Thread(target=kill, daemon=True).start()
    assert main([*study, "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "died" in said
    assert "its process was ended by SIGKILL" in said
    assert len(ends(folder)) == went_on(folder) == 1
    assert [(row["state"], row["steps"]) for row in rows(folder, "runs.csv")] == [("done", "40")]
