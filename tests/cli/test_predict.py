"""`nvsubq predict`: what it writes, where, and that it writes nothing when something is wrong."""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from nvsubq.cli import predict
from nvsubq.cli.main import main

pytestmark = pytest.mark.usefixtures("here")

AFFINE = np.array([[0.0, 4.0, 0.0, 3.0], [-1.0, 0.0, 0.0, 9.0], [0.0, 0.0, 2.0, -7.0], [0, 0, 0, 1]])


def image(path: Path, size: tuple[int, int] = (8, 8), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 90, size, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def volume(path: Path, shape: tuple[int, ...] = (9, 16, 11)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).random(shape, dtype=np.float32)
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), path)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["predict", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def test_classification(finished_digits_run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a b(1).png", "größe,=é.png", "folder/a b(1).png"]
    for seed, name in enumerate(names):
        image(here / name, (20 + seed, 30), seed)
    assert main(["predict", str(finished_digits_run), *names]) == 0
    found = rows(here / "predictions" / "predictions.csv")
    assert [row["file"] for row in found] == names
    assert list(found[0]) == ["file", "predicted", *(f"probability_{digit}" for digit in range(10))]
    for row in found:
        shares = [float(row[f"probability_{digit}"]) for digit in range(10)]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == str(int(np.argmax(shares)))
    out = capsys.readouterr().out
    assert "a b(1).png" in out
    assert f"written: {Path('predictions/predictions.csv')}" in out
    assert [path.name for path in (here / "predictions").iterdir()] == ["predictions.csv"]


def test_a_row_does_not_depend_on_the_others(
    finished_digits_run: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(image(here / f"{i}.png", seed=i)) for i in range(5)]
    monkeypatch.setattr(predict, "BATCH", 2)
    assert main(["predict", str(finished_digits_run), *files, "--out", "all"]) == 0
    assert main(["predict", str(finished_digits_run), files[4], "--out", "one"]) == 0
    assert rows(here / "all" / "predictions.csv")[4] == rows(here / "one" / "predictions.csv")[0]


def test_segmentation(finished_volume_run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [volume(here / "a scan.nii.gz"), volume(here / "other.nii", (13, 9, 10))]
    run = str(finished_volume_run)
    assert main(["predict", run, str(files[0]), "--out", "o u t", str(files[1])]) == 0
    out = here / "o u t"
    assert sorted(path.name for path in out.iterdir()) == [
        "a scan_prediction.nii.gz",
        "other_prediction.nii.gz",
    ]
    for file, name in zip(files, ("a scan", "other"), strict=True):
        given, answer = nibabel.load(file), nibabel.load(out / f"{name}_prediction.nii.gz")
        assert answer.shape == given.shape
        assert answer.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(answer.affine, given.affine)
        assert set(np.unique(answer.dataobj)) <= {0, 1, 2}
    assert f"{files[1]} -> {Path('o u t/other_prediction.nii.gz')}" in capsys.readouterr().out


def test_checkpoint_is_chosen(finished_digits_run: Path, here: Path) -> None:
    file = image(here / "x.png")
    last = finished_digits_run / "checkpoints" / "last.ckpt"
    for out, checkpoint in (("a", "last"), ("b", str(last))):
        options = ["--checkpoint", checkpoint, "--out", out]
        assert main(["predict", str(finished_digits_run), str(file), *options]) == 0
    assert rows(here / "a" / "predictions.csv") == rows(here / "b" / "predictions.csv")


def test_equal_stems_get_names_of_their_own() -> None:
    files = [Path(p) for p in ("a/x.nii.gz", "b/x.nii", "c/X.nii.gz", "x_2.nii.gz", "y.nii.gz")]
    names = predict.output_names(files)
    assert names == [
        "x_prediction.nii.gz",
        "x_3_prediction.nii.gz",
        "X_4_prediction.nii.gz",
        "x_2_prediction.nii.gz",
        "y_prediction.nii.gz",
    ]


def test_an_input_is_never_overwritten(
    finished_volume_run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = volume(here / "x.nii.gz"), volume(here / "x_prediction.nii.gz")
    before = second.read_bytes()
    text = refused(capsys, finished_volume_run, first, second, "--out", ".")
    assert "x_prediction.nii.gz would be written over the input" in text
    assert second.read_bytes() == before
    assert len(list(here.iterdir())) == 2


def test_all_inputs_are_read_before_anything_is_written(
    finished_digits_run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = image(here / "good.png")
    (here / "broken.png").write_bytes(good.read_bytes()[:40])
    (here / "text.png").write_text("no image")
    text = refused(capsys, finished_digits_run, "good.png", "missing.png")
    assert text == "error: missing.png: no such file.\n"
    text = refused(capsys, finished_digits_run, "broken.png", "good.png", "text.png")
    assert "error: 2 of 3 files cannot be used:\n  broken.png cannot be read as an image" in text
    assert "text.png cannot be read as an image: not a format that Pillow reads." in text
    text = refused(capsys, finished_digits_run, *(f"gone{i}.png" for i in range(9)))
    assert "9 of 9 files cannot be used" in text
    assert text.rstrip().endswith("and 4 more")
    assert not (here / "predictions").exists()


def test_file_of_another_kind(
    finished_volume_run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "picture.png cannot be read as NIfTI" in refused(
        capsys, finished_volume_run, image(here / "picture.png")
    )
    four = volume(here / "four.nii.gz", (8, 8, 8, 2))
    assert "four.nii.gz has 2 channels; the data set has 1." in refused(capsys, finished_volume_run, four)


def test_volume_that_the_model_cannot_take(
    finished_volume_run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found while predicting: what was written for the first file goes too."""
    good, small = volume(here / "good.nii.gz"), volume(here / "small.nii.gz", (9, 2, 9))
    text = refused(capsys, finished_volume_run, good, small, "--out", "new/out")
    assert f"{small}: the model cannot take it: " in text
    assert "smaller than the patch" in text
    assert not (here / "new").exists()


def test_out_is_a_file(finished_digits_run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = image(here / "x.png")
    assert "`--out` (=x.png) is a file, not a folder." in refused(
        capsys, finished_digits_run, file, "--out", "x.png"
    )
    text = refused(capsys, finished_digits_run, file, "--out", "x.png/below")
    assert "`--out` (=x.png/below) cannot be written: Not a directory. Choose another with --out DIR." in text
    (here / "out" / "predictions.csv").mkdir(parents=True)
    assert "predictions.csv is a folder" in refused(capsys, finished_digits_run, file, "--out", "out")


def test_out_that_is_read_only(
    finished_digits_run: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    file = image(here / "x.png")
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    text = refused(capsys, finished_digits_run, file, "--out", "new")
    assert "`--out` (=new) cannot be written: Permission denied. Choose another with --out DIR." in text
    assert not (here / "new").exists()


def test_nothing_half_written(
    finished_volume_run: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = volume(here / "x.nii.gz")
    save = nibabel.save

    def full(data: object, path: Path) -> None:
        save(data, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nibabel, "save", full)
    (here / "out").mkdir()
    text = refused(capsys, finished_volume_run, file, "--out", "out")
    assert "`--out` (=out) cannot be written: No space left on device." in text
    assert os.listdir(here / "out") == []


def test_folder_that_is_no_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "`run` (=.) is no run folder" in refused(capsys, ".", image(here / "x.png"))


def test_no_file_is_a_usage_error(finished_digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(finished_digits_run)]) == 2
    assert "required: FILE" in capsys.readouterr().err
