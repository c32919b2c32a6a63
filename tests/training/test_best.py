"""best.ckpt of a run that goes on: broken or gone, it is named, and no worse one takes its place unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from crash_driver import CONFIG, differences, result
from hydra import compose, initialize_config_dir

from nvsubq.cli.paths import config_dir
from nvsubq.training import CheckpointError, runner, train
from nvsubq.training.checkpoints import Checkpoints

FIRST_IS_BEST = "checkpoint.mode=max"  # of the training loss
SPARSE = "checkpoint.every_steps=null"  # no checkpoint within an epoch


def run(root: Path, *overrides: str, name: str = "a") -> Path:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", overrides=[*CONFIG, "epochs=3", f"paths.runs={root}", *overrides])
    return Path(train(config, root / name)["folder"])


def killed(root: Path, *overrides: str, after: int) -> Path:
    """The folder of checkpoints of a run killed after so many epochs; 3: when the training is over."""
    saved = Checkpoints.on_train_epoch_end

    def die(*args) -> None:
        raise SystemExit

    def save_and_die(self, trainer, module) -> None:
        saved(self, trainer, module)
        if trainer.current_epoch + 1 == after:
            die()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner._Training, "finish", die)
        if after < 3:
            patch.setattr(Checkpoints, "on_train_epoch_end", save_and_die)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            run(root, *overrides)
    return root / "a" / "checkpoints"


def cut(file: Path, *, in_place: bool = False) -> None:
    content = file.read_bytes()
    if not in_place:
        file.unlink()  # it may be a hard link of another file
    file.write_bytes(content[: len(content) // 2])


def figures(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("after", [2, 3])
def test_broken_and_nowhere_else(after, tmp_path, capsys):
    files = killed(tmp_path, FIRST_IS_BEST, after=after)
    cut(files / "best.ckpt")
    text = (
        r"best\.ckpt\) cannot be read: it is cut off.* \(epoch 1 or a later one\).*Delete it to go on without"
    )
    with pytest.raises(CheckpointError, match=text):
        run(tmp_path, FIRST_IS_BEST)
    (files / "best.ckpt").unlink()
    capsys.readouterr()
    folder = run(tmp_path, FIRST_IS_BEST)
    said = capsys.readouterr().out
    assert "best.ckpt) does not exist. The best of the epochs that are left is kept." in said
    assert ("last.ckpt stands in for best.ckpt: no epoch is left to train." in said) == (after == 3)
    assert (folder, figures(folder)["best_epoch"]) == (tmp_path / "a", 2)


def test_broken_and_the_previous_one_is_of_the_same_epoch(tmp_path, capsys):
    whole = run(tmp_path, FIRST_IS_BEST, SPARSE, name="whole")
    cut(killed(tmp_path, FIRST_IS_BEST, SPARSE, after=2) / "best.ckpt")
    folder = run(tmp_path, FIRST_IS_BEST, SPARSE)
    assert "previous.ckpt is of the best epoch too and takes its place." in capsys.readouterr().out
    assert differences(result(whole), result(folder)) == []
    assert figures(folder)["best_epoch"] == 0


def test_broken_together_with_the_last(tmp_path, capsys):
    """One file with two names: its epoch is run again, and is the best again."""
    whole = run(tmp_path, name="whole")
    files = killed(tmp_path, after=2)
    assert (files / "best.ckpt").samefile(files / "last.ckpt")
    cut(files / "best.ckpt", in_place=True)
    folder = run(tmp_path)
    assert "It is of the epoch that is run again, as last.ckpt was." in capsys.readouterr().out
    assert differences(result(whole), result(folder)) == []


def test_broken_in_the_run_of_ckpt_path(tmp_path):
    """It is not copied into the new run."""
    folder = run(tmp_path, FIRST_IS_BEST)
    cut(folder / "checkpoints" / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"best\.ckpt\) cannot be read.*Delete it to go on without"):
        run(tmp_path, FIRST_IS_BEST, "epochs=4", f"ckpt_path={folder}", name="b")
    assert not (tmp_path / "b").exists()
