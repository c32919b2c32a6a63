"""report.html: complete, self-contained, whole or not at all, and sensible for runs that are not."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from nvsubq import viz
from nvsubq.training import report
from nvsubq.training.report import write_report
from nvsubq.training.report_data import RunError, read_record


def edit(run: Path, **changes: object) -> None:
    file = run / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def written(run: Path) -> str:
    assert write_report(run) == run / "report.html"
    assert not list(run.glob("*.part"))
    return (run / "report.html").read_text()


def check_self_contained(html: str) -> None:
    references = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html) + re.findall(r"url\(([^)]*)", html)
    assert references
    assert all(reference.startswith("data:") for reference in references)
    outside = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//[a-z]|file:|@import|<script", outside)
    for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", html):
        picture = base64.b64decode(data, validate=True)
        assert picture.startswith((b"\x89PNG", b"<?xml"))


def test_training_writes_the_report(finished_digits_run: Path) -> None:
    assert (finished_digits_run / "report.html").is_file()


def test_classification(digits_run: Path) -> None:
    (digits_run / "report.html").unlink()
    html = written(digits_run)
    check_self_contained(html)
    figures = json.loads((digits_run / "metrics.json").read_text())
    for text in (
        "<title>tiny, Mamba</title>",
        "2 January 2026, 03:04",
        f"{figures['metrics']['test/accuracy']:.4f}",
        "3 nearest neighbours",
        "support vector machine",
        "scikit-learn&#39;s digits (8 x 8), own split; not comparable with MNIST.",
        f"{figures['parameters']:,}",
        "nvsubq train",
        "name=tiny",
        f"torch {figures['versions']['torch']}",
        "images/s",
        "Confusion",
        "Examples, worst first",
        "Walk and reach",
        'alt="scan orders: row_major"',
        'alt="steps between neighbours: row_major"',
        'alt="effective receptive field"',
        "<summary>Config</summary>",
        "_target_: nvsubq.cores.Mamba",
    ):
        assert text in html, text
    # three curves, a matrix, a walk, its neighbours; a grid, a receptive field
    assert html.count("data:image/svg+xml") == 6
    assert html.count("data:image/png") == 2
    assert html == written(digits_run)


def test_segmentation(volume_run: Path) -> None:
    html = written(volume_run)
    check_self_contained(html)
    for text in (
        "test mean Dice",
        "Dice, label 1",
        "intensity histogram",
        "Slices, worst first",
        "background (not scored)",
        "voxels/s",
        "Volumes of volumes",
    ):
        assert text in html, text
    arrays = np.load(volume_run / "predictions.npz")
    assert html.count("data:image/png") == len(arrays["shown"]) + 1  # and a receptive field
    assert arrays["receptive_field"].ndim == 3


@pytest.mark.parametrize("voxel_size", [[1.0, 1.0, 3.0], [[1.0, 2.0, 3.0]] * 2])
def test_voxel_sizes_of_the_description_are_used(
    volume_run: Path, voxel_size: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    slices = viz.slices
    monkeypatch.setattr(
        "nvsubq.viz.slices", lambda *a, voxel_size, **k: seen.append(voxel_size) or slices(*a, **k)
    )
    data = json.loads((volume_run / "metrics.json").read_text())["data"]
    edit(volume_run, data=data | {"voxel_size": voxel_size})
    written(volume_run)
    assert seen[0] == (voxel_size if isinstance(voxel_size[0], float) else voxel_size[0])


def test_names_are_escaped(digits_run: Path) -> None:
    classes = ["<script>alert(1)</script>", *map(str, range(1, 10))]
    edit(digits_run, name="<b>& $x$", classes=classes, baselines={"<i>": {"accuracy": 0.5}})
    html = written(digits_run)
    assert "<script" not in html
    assert "&lt;b&gt;&amp; $x$" in html
    assert "&lt;i&gt;" in html


def test_without_baselines(digits_run: Path) -> None:
    edit(digits_run, baselines={})
    html = written(digits_run)
    assert "nearest neighbours" not in html
    assert "best baseline" not in html


def test_interrupted_run(digits_run: Path) -> None:
    for name in ("metrics.json", "predictions.npz"):
        (digits_run / name).unlink()
    html = written(digits_run)
    check_self_contained(html)
    assert "This run did not finish: it was stopped after 2 epochs, and there are no final metrics." in html
    assert "validation accuracy" in html
    assert "nvsubq.cores.Mamba" in html
    assert html.count("data:image/svg+xml") == 3


def test_one_epoch(digits_run: Path) -> None:
    file = digits_run / "metrics.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:2]) + "\n")
    (digits_run / "metrics.json").unlink()
    assert "stopped after 1 epoch, and" in written(digits_run)


def test_no_epoch(digits_run: Path) -> None:
    for name in ("metrics.json", "metrics.csv", "predictions.npz", "resolved.yaml"):
        (digits_run / name).unlink()
    html = written(digits_run)
    assert "stopped after 0 epochs" in html
    assert 'class="curves"' not in html


def test_run_that_was_not_tested(digits_run: Path) -> None:
    figures = json.loads((digits_run / "metrics.json").read_text())
    metrics = {k: v for k, v in figures["metrics"].items() if not k.startswith("test/")}
    edit(digits_run, metrics=metrics, tested_with=None, baselines={})
    (digits_run / "predictions.npz").unlink()
    html = written(digits_run)
    assert "This run was not tested" in html
    assert "validation, last epoch" in html


def test_part_of_the_test_split(digits_run: Path) -> None:
    assert "test items were scored" not in written(digits_run)
    data = json.loads((digits_run / "metrics.json").read_text())["data"]
    edit(digits_run, data=data | {"sizes": {"train": 1259, "val": 269, "test": 1000}})
    assert "Only 269 of 1,000 test items were scored." in written(digits_run)


def test_metrics_that_are_not_finite(digits_run: Path) -> None:
    edit(digits_run, metrics={"test/accuracy": None, "test/loss": None, "val/loss": None})
    written(digits_run)


def test_metrics_without_optional_figures(digits_run: Path) -> None:
    (digits_run / "metrics.json").write_text('{"name": "bare", "metrics": {"test/accuracy": 0.5}}')
    assert "0.5000" in written(digits_run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", "{", r"metrics\.json is broken: Expecting property name"),
        ("metrics.json", "[1]", r"metrics\.json must hold one object, not list"),
        ("metrics.csv", "epoch,step\n0,x\n", r"metrics\.csv is broken: could not convert"),
        ("metrics.csv", "step\n1\n", r"metrics\.csv is broken: it has a row without an epoch"),
        ("predictions.npz", "no archive", r"predictions\.npz is broken"),
        ("resolved.yaml", "a: [", r"resolved\.yaml is not valid YAML"),
    ],
)
def test_broken_file_is_named_and_the_old_report_stays(
    digits_run: Path, name: str, content: str, message: str
) -> None:
    (digits_run / "report.html").write_text("old")
    (digits_run / name).write_text(content)
    with pytest.raises(RunError, match=message):
        write_report(digits_run)
    assert (digits_run / "report.html").read_text() == "old"
    assert not list(digits_run.glob("*.part"))


def test_nothing_half_written(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (digits_run / "report.html").write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(digits_run)
    assert (digits_run / "report.html").read_text() == "old"
    assert not list(digits_run.glob("*.part"))


def test_folder_that_is_no_run(tmp_path: Path, finished_digits_run: Path) -> None:
    with pytest.raises(RunError, match=r"`run` \(=.*\) is no run folder: it has none of config"):
        write_report(tmp_path)
    with pytest.raises(RunError, match=r"`run` \(=.*nowhere\) does not exist"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"is a file; a run is a folder"):
        write_report(tmp_path / "file")
    (tmp_path / "gone").symlink_to("elsewhere")
    with pytest.raises(RunError, match=r"is a link to elsewhere, which does not exist"):
        write_report(tmp_path / "gone")
    with pytest.raises(RunError, match=r"Did you mean .*latest\?"):
        write_report(finished_digits_run.parent)
    assert not list(tmp_path.glob("report*"))


def test_flattened_images_are_shown_as_images(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = (digits_run / "resolved.yaml").read_text()
    (digits_run / "resolved.yaml").write_text(config.replace("flatten: false", "flatten: true"))
    arrays = dict(np.load(digits_run / "predictions.npz"))
    arrays["images"] = arrays["images"].reshape(len(arrays["images"]), 1, 64)
    np.savez(digits_run / "predictions.npz", **arrays)
    seen = []
    grid = viz.example_grid
    monkeypatch.setattr("nvsubq.viz.example_grid", lambda images, *a: seen.append(images) or grid(images, *a))
    written(digits_run)
    assert seen[0].shape[1:] == (1, 8, 8)


def test_record_dates(digits_run: Path, tmp_path: Path) -> None:
    assert str(read_record(digits_run).date()) == "2026-01-02 03:04:05"
    other = Path(shutil.copytree(digits_run, tmp_path / "lr=0.1,seed=0"))
    assert read_record(other).date() is not None


def test_template_lies_in_the_package() -> None:
    assert report.TEMPLATE.is_file()
