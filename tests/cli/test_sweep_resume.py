"""A sweep that was interrupted, or in which a job failed, goes on by the same command."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from nvsubq.training.callbacks import EpochFigures
from nvsubq.training.unfinished import MARK

SEEDS = ("-m", "core=rglru", "seed=0,1,2", "hydra.sweep.subdir=${seed}")


def sweeps(here: Path) -> list[Path]:
    return sorted(p for p in (here / "runs" / "mnist").iterdir() if p.name.startswith("sweep_"))


def ended(sweep: Path) -> dict[str, int]:
    """The jobs that have ended, and when."""
    return {file.parent.name: file.stat().st_mtime_ns for file in sorted(sweep.glob("*/metrics.json"))}


@pytest.fixture
def interrupted(train, here, monkeypatch) -> Path:
    """The folder of a sweep that was stopped in the second epoch of its second job."""
    epochs = []

    def interrupt(self, trainer, module):
        epochs.append(trainer.current_epoch)
        if len(epochs) == 4:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(EpochFigures, "on_train_epoch_start", interrupt)
        try:
            assert train(*SEEDS) == 130
        finally:
            signal.signal(signal.SIGINT, handler)
    (sweep,) = sweeps(here)
    assert list(ended(sweep)) == ["0"]
    assert (sweep / MARK).is_file()
    assert (sweep / "1" / MARK).is_file()
    return sweep


def test_goes_on_where_it_was(interrupted, train, here, capsys):
    before = ended(interrupted)
    capsys.readouterr()
    assert train(*SEEDS) == 0
    said = capsys.readouterr().out
    assert f"going on with the sweep runs/mnist/{interrupted.name} (resume=false begins a new one)" in said
    assert f"done before: runs/mnist/{interrupted.name}/0\n" in said
    assert f"going on with runs/mnist/{interrupted.name}/1 from last.ckpt" in said
    assert sweeps(here) == [interrupted]
    after = ended(interrupted)
    assert list(after) == ["0", "1", "2"]
    assert after["0"] == before["0"]
    assert not list(here.rglob(MARK))
    # All of it is done: the same command is a new sweep.
    assert train(*SEEDS, "trainer.fast_dev_run=true") == 0
    assert len(sweeps(here)) == 2


def test_what_begins_anew(interrupted, train, here):
    quick = "trainer.fast_dev_run=true"  # another config
    assert train(*SEEDS, quick) == 0
    assert len(sweeps(here)) == 2
    assert train(*SEEDS[:2], "seed=0,1", *SEEDS[3:], quick) == 0
    assert len(sweeps(here)) == 3
    assert list(ended(interrupted)) == ["0"]


def test_resume_false_begins_anew(interrupted, train, here):
    assert train(*SEEDS, "resume=false") == 0
    assert len(sweeps(here)) == 2
    assert (interrupted / MARK).is_file()


def test_a_failed_job_is_tried_again(train, here, capsys):
    command = ("-m", "task.lr=-1,1e-3", "trainer.fast_dev_run=true", "hydra.sweep.subdir=${hydra.job.num}")
    for _ in range(2):
        assert train(*command) == 1
        captured = capsys.readouterr()
        assert "1 of 2 jobs failed: #0" in captured.err
        assert len(sweeps(here)) == 1
    assert "done before: " in captured.out
    assert list(ended(sweeps(here)[0])) == ["1"]


def test_a_named_folder_with_a_sweep_in_it_is_not_taken_for_this_one(train, here):
    command = ("-m", "seed=0,1", "trainer.fast_dev_run=true", "hydra.sweep.subdir=${seed}")
    for _ in range(2):
        assert train(*command, r"hydra.sweep.dir='it\'s'") == 0
    assert list(ended(here / "it's")) == ["0", "0_2", "1", "1_2"]


def test_a_sweep_that_leaves_nothing_leaves_no_mark(train, here):
    assert train("-m", "task.lr=-1,-2") == 1
    assert not list(here.rglob("*"))
