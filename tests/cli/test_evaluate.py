"""`nvsubq evaluate`: the training's own numbers again, and one clear message for what cannot be scored."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nvsubq.cli.main import main

pytestmark = pytest.mark.usefixtures("wide", "here")


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["evaluate", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def stamps(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_the_same_numbers_as_the_training(
    finished_digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(finished_digits_run)
    assert main(["evaluate", str(finished_digits_run)]) == 0
    out = capsys.readouterr().out
    metrics = json.loads((finished_digits_run / "metrics.json").read_text())["metrics"]
    rows = re.findall(r"[│|] (Mamba|stored by the run, best checkpoint) +[│|] +([\d.]+) [│|] +([\d.]+) ", out)
    wanted = (f"{metrics['test/accuracy']:.4f}", f"{metrics['test/loss']:.4f}")
    assert rows == [("Mamba", *wanted), ("stored by the run, best checkpoint", *wanted)]
    assert "The stored numbers are the same." in out
    assert "3 nearest neighbours" in out
    assert "digits, test split, 269 items" in out
    assert stamps(finished_digits_run) == before


def test_volumes_and_their_last_checkpoint(
    finished_volume_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished_volume_run), "--checkpoint", "last"]) == 0
    out = capsys.readouterr().out
    assert "test, last checkpoint" in out
    assert "dice_label_1" in out
    assert "stored by the run, best checkpoint" in out
    assert "intensity histogram" in out


@pytest.mark.parametrize("which", ["best", "last"])
def test_validation(finished_digits_run: Path, which: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--split", "val", str(finished_digits_run), "--checkpoint", which]) == 0
    out = capsys.readouterr().out
    assert f"val, {which} checkpoint" in out
    assert "The stored numbers are the same." in out
    assert "nearest neighbours" not in out


def test_limits_of_the_run_act(finished_digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(finished_digits_run), "trainer.limit_test_batches=1"]) == 0
    assert "test split, 269 items, limited by trainer.limit_test_batches=1" in capsys.readouterr().out
    text = refused(capsys, finished_digits_run, "trainer.limit_test_batches=0")
    assert "nothing was scored: `trainer.limit_test_batches` (=0) leaves no batch; add trainer" in text


def test_checkpoint_by_its_path(finished_digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = finished_digits_run / "checkpoints" / "last.ckpt"
    assert main(["evaluate", str(finished_digits_run), "--checkpoint", str(file)]) == 0
    assert "test, given checkpoint" in capsys.readouterr().out


def test_overrides_may_follow_options(
    volume_run: Path, volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(volumes, tmp_path / "moved here")
    assert main(["evaluate", str(volume_run), "--split", "test", f"data.root={moved}", "threads=1"]) == 0
    assert "The stored numbers" not in capsys.readouterr().out


def test_report_is_written_again(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((digits_run / "metrics.json").read_text())
    predicted = dict(np.load(digits_run / "predictions.npz"))
    for name in ("report.html", "predictions.npz"):
        (digits_run / name).unlink()
    assert main(["evaluate", str(digits_run), "--report"]) == 0
    after = json.loads((digits_run / "metrics.json").read_text())
    assert after.pop("test_s") != before.pop("test_s")
    assert after["metrics"] == pytest.approx(before["metrics"], abs=1e-6)
    assert after | {"metrics": 0} == before | {"metrics": 0}
    again = dict(np.load(digits_run / "predictions.npz"))
    assert again.keys() == predicted.keys() | {"receptive_field"}  # the fixture's run asks for no report
    for name, array in predicted.items():
        np.testing.assert_allclose(again[name], array, atol=1e-6)
    assert f"written     {digits_run / 'report.html'}" in capsys.readouterr().out
    assert (digits_run / "report.html").is_file()


def test_report_of_an_interrupted_run(digits_run: Path) -> None:
    for name in ("metrics.json", "predictions.npz", "report.html"):
        (digits_run / name).unlink()
    assert main(["evaluate", str(digits_run), "--checkpoint", "last", "--report"]) == 0
    html = (digits_run / "report.html").read_text()
    assert "This run did not finish; its checkpoint was scored afterwards." in html
    assert "Examples, worst first" in html
    assert json.loads((digits_run / "metrics.json").read_text())["tested_with"] == "last"


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (["--split", "val"], "--split val"),
        (["--checkpoint", "x.ckpt"], "--checkpoint PATH"),
        (["data.split_seed=1"], "overrides"),
    ],
)
def test_report_of_something_else_is_refused(
    digits_run: Path, extra: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"`--report` cannot go with {reason}: the report" in refused(
        capsys, digits_run, "--report", *extra
    )


def test_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    text = refused(capsys, "empty")
    assert text == (
        "error: `run` (=empty) is no run folder: it has none of config.yaml, metrics.csv, metrics.json.\n"
    )
    assert "`run` (=nowhere) does not exist." in refused(capsys, "nowhere")


def test_run_without_config_or_checkpoint(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(digits_run / "checkpoints")
    assert "has no checkpoint best.ckpt: its training did not finish an epoch." in refused(capsys, digits_run)
    (digits_run / "config.yaml").unlink()
    assert "is no run folder: it has no config.yaml." in refused(capsys, digits_run)


def test_empty_config(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (digits_run / "config.yaml").write_text("")
    text = refused(capsys, digits_run)
    assert "config.yaml is no config of a training: it lacks data, model, task, trainer." in text
    (digits_run / "config.yaml").write_text("data: [")
    assert "config.yaml" in refused(capsys, digits_run)


def test_checkpoint_that_does_not_fit(
    finished_digits_run: Path, finished_volume_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = finished_volume_run / "checkpoints" / "best.ckpt"
    text = refused(capsys, finished_digits_run, "--checkpoint", file)
    assert f"checkpoint (={file}) does not fit the model of this config:" in text
    assert "not in the model: model.backbone." in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read: it is cut off, or no checkpoint at all."),
        (None, "is neither best nor last nor a file."),
        ({"weights": 1}, "is no checkpoint of a training: it has no `state_dict`."),
    ],
)
def test_broken_checkpoint(
    finished_digits_run: Path,
    tmp_path: Path,
    content: object,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "some.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    text = refused(capsys, finished_digits_run, "--checkpoint", file)
    assert f"(={file})" in text
    assert reason in text


def test_override_that_names_no_key(finished_digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, finished_digits_run, "data.rot=1")
    assert "override 'data.rot=1' names no key of the run's config." in text


def test_data_that_is_gone(volume_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, volume_run, "data.root=/gone")
    assert "/gone" in text


def test_run_that_cannot_be_written(
    digits_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    text = refused(capsys, digits_run, "--report")
    assert f"`--report`: {digits_run} cannot be written: Permission denied." in text


def test_traceback_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVSUBQ_TRACEBACK", "1")
    assert main(["evaluate", "nowhere"]) == 1
    assert "Traceback" in capsys.readouterr().err
