"""Input, target and answer of a regression, for every rank."""

from __future__ import annotations

import numpy as np
import pytest

from nvsubq import viz


def test_a_signal_is_folded_row_by_row() -> None:
    picture = viz.folded(np.arange(10.0)[None])
    assert picture.shape == (1, 3, 4)
    assert picture[0, 1].tolist() == [4, 5, 6, 7]
    assert np.isnan(picture[0, 2, 2:]).all()


def test_slices_of_a_volume_lie_beside_each_other() -> None:
    volume = np.stack([np.full((2, 3), i) for i in range(4)])[None]
    picture = viz.folded(volume)
    assert picture.shape == (1, 5, 7)
    assert [picture[0, y, x] for y in (0, 3) for x in (0, 4)] == [0, 1, 2, 3]
    assert np.isnan(picture[0, 2]).all()
    many = viz.folded(np.arange(20.0).reshape(1, 20, 1, 1))
    assert many[0, 0, 0] == 0
    assert many[0, -1, -1] == 19


@pytest.mark.parametrize("shape", [(2, 1, 16), (2, 2, 4, 5), (2, 3, 2, 4, 4)])
def test_three_pictures_for_each_item(shape: tuple[int, ...]) -> None:
    inputs = np.random.default_rng(0).random(shape)
    targets = inputs[:, :1]
    figure = viz.answer_grid(inputs, targets, targets, ["MSE 1", "MSE 2"])
    assert len(figure.axes) == 6
    notes = [text.get_text() for text in figure.texts]
    assert notes == ["input", "target", "answer", "MSE 1", "MSE 2"]


def test_colours_are_shown_as_they_are() -> None:
    red = np.zeros((1, 3, 2, 2))
    red[:, 0] = 2.0  # clipped
    figure = viz.answer_grid(red, red, red, [""])
    assert figure.axes[0].images[0].get_array()[0, 0].tolist() == [1, 0, 0]


def test_what_does_not_belong_together_is_refused() -> None:
    one = np.zeros((1, 1, 4))
    with pytest.raises(ValueError, match="must belong to the same items"):
        viz.answer_grid(one, one, one, [])
    with pytest.raises(ValueError, match=r"`targets`, `answers` \(shapes .* must belong"):
        viz.answer_grid(one, one, one[..., :2], [""])
    with pytest.raises(ValueError, match="1-D to 3-D"):
        viz.folded(np.zeros((1, 1, 1, 1, 1)))


def test_curve_on_a_logarithmic_scale_where_it_can_be() -> None:
    assert viz.curve([0, 1], {"a": [0.1, None]}, title="MSE", log=True).axes[0].get_yscale() == "log"
    assert viz.curve([0, 1], {"a": [0.1, 0.0]}, title="MSE", log=True).axes[0].get_yscale() == "linear"
