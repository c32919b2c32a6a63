"""Runs in processes: what ends them from outside is no failure, and what a failed run has is kept."""

from __future__ import annotations

import multiprocessing

import pytest
import study_helpers
from study_helpers import TINY

from nvsubq.study import pool, worker
from nvsubq.study.engine import Engine
from nvsubq.study.plan import load
from nvsubq.study.runs import Folder, plan_runs


@pytest.fixture
def engine(tmp_path):
    """Of two runs."""
    study = load("spatial_recall", [*TINY, "cores=[rglru]", "rates=[1e-3]"])
    return Engine(plan_runs(study), Folder(tmp_path))


def work(engine, monkeypatch, main):
    """All runs with `main` in place of the worker's; returns the pool, and how each run ended."""
    monkeypatch.setattr(worker, "main", main)
    monkeypatch.setattr(pool, "_context", lambda run: multiprocessing.get_context("spawn"))
    told = []
    runs = pool.Pool(engine.folder, 1, lambda run, how, why: told.append((run.seed, how, why)))
    runs.work(engine.next_run)
    return runs, told


@pytest.mark.parametrize(
    ("main", "reason"),
    [
        (study_helpers.is_killed, "its process was ended by SIGKILL: out of memory?"),
        (study_helpers.has_no_disk, "No space left on device"),
    ],
)
def test_what_ends_a_run_from_outside_is_no_failure(engine, monkeypatch, main, reason):
    runs, told = work(engine, monkeypatch, main)
    both = ["died", reason], ["died", reason + pool.AGAIN]
    assert told == [(seed, *end) for seed in (0, 1) for end in both]
    planned = list(engine.known())
    assert runs.left == [run.name for run in planned]
    for run in planned:
        assert engine.folder.failure(run) is None
        assert engine.folder.state(run) in ("new", "begun")
    assert engine.next_run(set()).name == planned[0].name


@pytest.mark.parametrize(("said", "threads"), [("3", 3), ("0", None), ("4,2", None)])
def test_threads_are_written_down(engine, monkeypatch, said, threads):
    """A run alone that names none: what it goes on with, with other `--jobs` too."""
    monkeypatch.setenv(pool.THREADS, said)
    work(engine, monkeypatch, study_helpers.tells_its_threads)
    for run in engine.known():
        assert engine.folder.failure(run) == f"{threads} threads"
    monkeypatch.delenv(pool.THREADS)
    assert pool.threads_alone() >= 1


def test_a_failed_run_is_not_tried_again_and_keeps_what_it_has(engine, monkeypatch):
    runs, told = work(engine, monkeypatch, study_helpers.cannot)
    assert [(seed, how) for seed, how, _ in told] == [(0, "failed"), (1, "failed")]
    assert all("there are no data" in why for *_, why in told)
    assert runs.left == []
    assert engine.next_run(set()) is None
    run = next(engine.known())
    checkpoint = engine.folder.of(run) / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"whole")
    pool.forget(engine.folder, run)
    assert engine.folder.state(run) == "begun"
    assert checkpoint.read_bytes() == b"whole"
