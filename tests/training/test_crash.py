"""A training that dies, at any moment, goes on by the same command and ends with the same bits."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_driver import CONFIG, KILLS, differences, result
from hydra import compose, initialize_config_dir

from nvsubq.cli import errors
from nvsubq.cli.paths import config_dir
from nvsubq.training import CheckpointError, runner, train, unfinished
from nvsubq.training.checkpoints import Checkpoints
from nvsubq.training.load import newest_checkpoint, read_checkpoint
from nvsubq.training.quiet import quiet_lightning


def run(root: Path, *overrides: str, name: str = "a") -> Path:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", overrides=[*CONFIG, "epochs=2", f"paths.runs={root}", *overrides])
    return Path(train(config, root / name)["folder"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")
def test_kill_at_any_moment(tmp_path):
    driver, seed = Path(__file__).with_name("crash_driver.py"), random.randrange(2**32)
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), str(seed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["undisturbed"] == []
    assert found["random"]["wrong"] == [], found
    assert found["random"]["kills"] == KILLS
    assert found["writing"]["wrong"] == []
    assert found["writing"]["kills"] >= 6
    for damage in found["broken"].values():
        assert damage["wrong"] == []
        assert len(damage["named"]) == 1
        assert "checkpoints/last.ckpt" in damage["named"][0]
        assert damage["named"][0].endswith("Going on from previous.ckpt.")
    assert list(found["variants"].values()) == [[], []], found["variants"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    quiet_lightning()
    return run(tmp_path_factory.mktemp("whole"))


def refuse_the_nth(monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    """From the `number`th file on, nothing can be written any more."""
    real, count = os.fsync, [0]

    def fsync(handle: int) -> None:
        count[0] += 1
        if count[0] >= number:
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.ENOSPC, "the disk is full: cannot write "),
        (errno.EROFS, "Read-only file system: "),
        (errno.EACCES, "Permission denied: "),
    ],
)
def test_a_disk_that_takes_no_more(code, text, whole, tmp_path, monkeypatch):
    refuse_the_nth(monkeypatch, 14, code)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        run(tmp_path)
    monkeypatch.undo()
    message = errors.message(caught.value)
    assert message.startswith(text)
    assert str(tmp_path / "a") in message
    assert "last.ckpt, is whole; the same command goes on from it." in message
    assert not list(tmp_path.rglob("*.part"))
    assert read_checkpoint(tmp_path / "a" / "checkpoints" / "last.ckpt")["global_step"] > 0
    assert differences(result(whole), result(run(tmp_path))) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_write_that_finds_the_disk_full_names_the_file(tmp_path, monkeypatch):
    from nvsubq.training.durable import write_whole

    target = tmp_path / "x"
    target.write_text("old")
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: real(Path("/dev/full"), mode))
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_whole(target, b"new" * 10_000)
    monkeypatch.undo()
    assert caught.value.filename == str(target)
    assert target.read_text() == "old"


def test_what_goes_on_and_what_begins_anew(whole, tmp_path, monkeypatch):
    refuse_the_nth(monkeypatch, 14, errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        run(tmp_path, name="2020-01-01")
    monkeypatch.undo()
    # Another config, and the same one told so, begin anew; the same one, a second later, does not.
    assert run(tmp_path, "seed=1", name="2020-01-02").name == "2020-01-02"
    assert run(tmp_path, "resume=false", name="2020-01-03").name == "2020-01-03"
    assert (tmp_path / "2020-01-01" / unfinished.MARK).is_file()
    assert run(tmp_path, name="2020-01-04").name == "2020-01-01"
    assert not list(tmp_path.rglob(unfinished.MARK))
    assert run(tmp_path, name="2020-01-05").name == "2020-01-05"
    assert {p.name for p in (tmp_path / "2020-01-01" / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}


@pytest.mark.parametrize("least", [1, 4])
def test_stopped_early_stays_stopped(least, tmp_path, monkeypatch):
    """Killed after the training and before the test, or while `min_epochs` keeps a stopped one going."""
    options = ("epochs=6", "early_stopping.patience=1", "early_stopping.min_delta=10.0")
    options = (*options, f"trainer.min_epochs={least}")
    whole = run(tmp_path, *options, name="whole")
    stage, epoch_end = runner._Training.finish, Checkpoints.on_train_epoch_end

    def die(*args: object) -> None:
        raise SystemExit

    def die_in_the_third(self: Checkpoints, trainer: Any, module: Any) -> None:
        epoch_end(self, trainer, module)
        if trainer.current_epoch == 2:
            die()

    monkeypatch.setattr(runner._Training, "finish", die)
    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", die_in_the_third)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        run(tmp_path, *options, name="cut")
    monkeypatch.setattr(runner._Training, "finish", stage)
    monkeypatch.setattr(Checkpoints, "on_train_epoch_end", epoch_end)
    cut = run(tmp_path, *options, name="cut")
    assert differences(result(whole), result(cut)) == []
    figures = json.loads((cut / "metrics.json").read_text())
    assert (figures["epochs"], figures["stopped_early"]) == (max(2, least), True)


def test_run_of_another_process_is_left_alone(tmp_path):
    """The lock is the other process's until it ends, however that comes."""
    code = (
        "import sys, time; from pathlib import Path; from nvsubq.training import unfinished\n"
        "mark = unfinished.Mark.make(Path(sys.argv[1]), 'x'); print('ready', flush=True); time.sleep(60)"
    )
    (tmp_path / "a").mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        assert unfinished.find(tmp_path / "b", "x") is None
    finally:
        other.kill()
        other.communicate()
    mark = unfinished.find(tmp_path / "b", "x")
    assert mark is not None
    assert mark.folder == tmp_path / "a"
    mark.remove()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-200],
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"not a checkpoint",
    "flipped": lambda content: content[:3000] + bytes([content[3000] ^ 1]) + content[3001:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_previous_one_used(damage, whole, tmp_path):
    good = whole / "checkpoints" / "last.ckpt"
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    last.write_bytes(DAMAGES[damage](good.read_bytes()))
    with pytest.raises(CheckpointError, match=r"no checkpoint of this run is whole:\n  checkpoint .*last"):
        newest_checkpoint(tmp_path)
    shutil.copyfile(good, previous)
    found, problems = newest_checkpoint(tmp_path)
    assert found == previous
    assert len(problems) == 1
    assert str(last) in str(problems[0])


def test_every_flipped_bit_is_noticed(whole, tmp_path):
    good = (whole / "checkpoints" / "last.ckpt").read_bytes()
    rng, file, unnoticed = random.Random(0), tmp_path / "x.ckpt", 0
    expected = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    for _ in range(60):
        content = bytearray(good)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        try:
            found = read_checkpoint(file)
        except CheckpointError:
            continue
        unnoticed += 1  # padding between the parts, times of the parts: nothing that is loaded
        assert differences(expected, found) == []
    assert unnoticed < 40


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("checkpoint.every_s=0", r"`checkpoint\.every_s` \(=0\) must be null or a number above 0\."),
        ("checkpoint.every_steps=1.5", r"`checkpoint\.every_steps` \(=1\.5\) must be null or an integer"),
        ("resume=maybe", r"`resume` \(='maybe'\) must be true or false\."),
    ],
)
def test_options(override, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        run(tmp_path, override)


def test_checkpoints_by_the_clock(tmp_path, monkeypatch):
    steps: list[int] = []
    save = Checkpoints._save
    monkeypatch.setattr(
        Checkpoints, "_save", lambda self, t, better: (steps.append(t.global_step), save(self, t, better))[1]
    )
    run(tmp_path, "checkpoint.every_steps=null", "checkpoint.every_s=1e-6", "epochs=1", name="always")
    assert steps == list(range(1, 10))
    steps.clear()
    run(tmp_path, "checkpoint.every_steps=null", "checkpoint.every_s=1e6", "epochs=1", name="never")
    assert steps == [9]
