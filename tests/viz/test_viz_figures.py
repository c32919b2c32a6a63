"""Curves, confusion matrices, example grids and slices: what is drawn, and what is refused."""

from __future__ import annotations

import base64
import subprocess
import sys
import warnings

import matplotlib
import numpy as np
import pytest

from nvsubq import viz


def texts(figure) -> list[str]:
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [text.get_text() for text in axes.texts] + [axes.get_title("left")]
    return found


def test_curve_has_a_line_for_each_series_and_marks_the_best() -> None:
    figure = viz.curve(
        [0, 1, 2], {"train": [3.0, 2.0, 1.0], "validation": [None, 2.5, 2.0]}, title="loss", best=1
    )
    axes = figure.axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["train"] == [[1, 3], [2, 2], [3, 1]]
    assert lines["validation"] == [[2, 2.5], [3, 2]]
    assert axes.lines[-1].get_xdata() == [2, 2]
    assert "best" in texts(figure)


def test_curve_of_one_epoch_shows_a_point_and_no_best() -> None:
    figure = viz.curve([0], {"loss": [1.0]}, title="loss", best=0)
    (line,) = figure.axes[0].lines
    assert line.get_marker() == "o"
    assert figure.axes[0].get_xlim() == (0.75, 1.25)


@pytest.mark.parametrize(("epochs", "values"), [([], []), ([0, 1], [None, float("nan")])])
def test_curve_without_numbers_says_so(epochs: list[int], values: list) -> None:
    assert "nothing measured" in texts(viz.curve(epochs, {"loss": values}, title="loss"))


def test_curve_refuses_a_series_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"`series\['loss'\]` \(length 1\) must have one value for each"):
        viz.curve([0, 1], {"loss": [1.0]}, title="loss")


def test_confusion_counts_rows_are_true() -> None:
    counts = viz.confusion_counts(np.array([0, 0, 2]), np.array([1, 0, 2]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_confusion_shows_counts_and_names() -> None:
    figure = viz.confusion(np.array([[5, 2], [0, 7]]), ["$5", "a rather long name of a class"])
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["5", "2", "7"]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["$5", "a rather…a class"]
    viz.svg_uri(figure)  # "$5" is no formula


def test_confusion_of_many_classes_has_no_numbers() -> None:
    figure = viz.confusion(np.eye(60, dtype=int), [f"class {i}" for i in range(60)])
    assert not figure.axes[0].texts
    assert len(figure.axes[0].get_xticks()) <= 40


def test_confusion_refuses_another_number_of_names() -> None:
    with pytest.raises(ValueError, match=r"`counts` \(shape \(2, 2\)\) must be \[3, 3\] for 3 classes"):
        viz.confusion(np.eye(2), ["a", "b", "c"])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 6), (2, 30), (1, 6, 7, 8)])
def test_example_grid_draws_every_rank(shape: tuple[int, ...]) -> None:
    images = viz.to_unit(np.random.default_rng(0).standard_normal((9, *shape)))
    figure = viz.example_grid(images, ["cat"] * 9, ["dog"] + ["cat"] * 8, [0.75] * 9)
    assert len(figure.axes) == 9
    assert {"cat as dog", "cat", "75.0%"} <= set(texts(figure))
    assert viz.png_uri(figure).startswith("data:image/png;base64,")


def test_example_grid_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(lengths 1, 2, 2\) must have one entry for each of 2 images"):
        viz.example_grid(np.zeros((2, 1, 4, 4)), ["a"], ["a", "b"], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"`images` \(shape \(2, 4\)\) must be \[M, C, \*spatial\]"):
        viz.example_grid(np.zeros((2, 4)), ["a", "b"], ["a", "b"], [1.0, 1.0])


def test_slices_are_the_right_way_up() -> None:
    """A mark at the right, anterior, superior corner is at the right and the top of every plane."""
    label = np.zeros((6, 8, 10), dtype=int)
    label[...] = 1
    label[5, 7, 9] = 2
    figure = viz.slices(label.astype(float), label, label, ["out", "in", "mark"], scored=[2])
    planes = figure.axes[3:6]  # of the label: coronal, sagittal, axial
    shapes = [(10, 6), (10, 8), (8, 6)]  # rows go up
    for axes, shape in zip(planes, shapes, strict=True):
        picture = axes.images[0].get_array()
        assert picture.shape == shape
        assert axes.images[0].origin == "lower"
        assert picture[-1, -1] == 2
        assert (picture == 2).sum() == 1


def test_the_cut_shows_every_scored_class() -> None:
    """The small class decides, and an edge is left for a slice that shows nearly as much."""
    label = np.ones((20, 9, 9), dtype=int)
    label[3:6, 4, 4] = 2
    assert viz.best_cut(label, [1, 2])[0] == 5
    assert viz.best_cut(label, [1]) == (10, 4, 4)
    assert viz.best_cut(np.zeros((4, 6, 8), dtype=int), [1]) == (2, 3, 4)


def test_slices_have_the_aspect_of_the_voxels_and_named_ends() -> None:
    volume = np.ones((10, 20, 30))
    figure = viz.slices(
        volume, volume.astype(int), volume.astype(int), ["out", "in"], voxel_size=(2.0, 1.0, 0.5)
    )
    coronal, sagittal, axial = (axes.bbox for axes in figure.axes[:3])
    assert coronal.height / coronal.width == pytest.approx(15 / 20)
    assert sagittal.height / sagittal.width == pytest.approx(15 / 20)
    assert axial.height / axial.width == pytest.approx(20 / 20)
    ends = [[text.get_text() for text in axes.texts] for axes in figure.axes[:3]]
    assert ends == [["L", "R", "S", "I"], ["P", "A", "S", "I"], ["L", "R", "A", "P"]]


def test_slices_leave_empty_surroundings_out() -> None:
    label = np.zeros((40, 40, 40), dtype=int)
    label[18:22, 18:22, 18:22] = 1
    nothing = np.zeros_like(label)
    figure = viz.slices(label.astype(float), label, nothing, ["out", "in"])
    assert figure.axes[0].images[0].get_array().shape == (10, 10)
    figure = viz.slices(label.astype(float), label, nothing, ["out", "in"], scored=[0, 1])
    assert figure.axes[0].images[0].get_array().shape == (40, 40)
    figure = viz.slices(label.astype(float), nothing, nothing, ["out", "in"])
    assert figure.axes[0].images[0].get_array().shape == (40, 40)


@pytest.mark.parametrize("shape", [(12,), (6, 9)])
def test_slices_of_signals_and_images(shape: tuple[int, ...]) -> None:
    image, label = np.zeros(shape), np.zeros(shape, dtype=int)
    assert len(viz.slices(image, label, label, ["a", "b"]).axes) == 3


def test_slices_refuse_different_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(shapes \(4, 4\), \(4, 5\), \(4, 4\)\) must have one shape"):
        viz.slices(np.zeros((4, 4)), np.zeros((4, 5), int), np.zeros((4, 4), int), ["a", "b"])


def test_svg_is_the_same_each_time_and_names_no_address() -> None:
    uris = [viz.svg_uri(viz.curve([0, 1], {"a": [1.0, 2.0]}, title="loss")) for _ in range(2)]
    assert uris[0] == uris[1]
    svg = base64.b64decode(uris[0].split(",", 1)[1]).decode()
    assert "<text" not in svg  # letters are outlines: no font is asked for


def test_drawing_changes_no_setting_and_warns_of_nothing() -> None:
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        viz.svg_uri(viz.confusion(np.eye(2, dtype=int), ["猫", "犬"]))
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_not_imported() -> None:
    code = "import sys; from nvsubq import viz; viz.svg_uri(viz.curve([0], {'a': [1.0]}, title='t')); "
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
