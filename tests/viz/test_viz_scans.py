"""Pictures of walks and of receptive fields: what is drawn, and what is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from nvsubq import NDBackbone, NDMixer, NDUNet, viz
from nvsubq.cores import Mamba
from nvsubq.nd import scan_order


def upside_down(shape: tuple[int, ...]) -> list[int]:
    return list(range(int(np.prod(shape))))[::-1]


def test_a_path_goes_through_the_cells_in_order() -> None:
    figure = viz.scan_paths(["hilbert", "snake", upside_down], (4, 6), columns=2)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["hilbert", "snake", "upside_down"]
    for axes, order in zip(figure.axes, ["hilbert", "snake", upside_down], strict=True):
        walk = scan_order(order, (4, 6)).numpy()
        wanted = np.stack([walk % 6, walk // 6], 1)
        (lines,) = axes.collections
        drawn = [segment[0] for segment in lines.get_segments()] + [lines.get_segments()[-1][-1]]
        np.testing.assert_array_equal(drawn, wanted)
        assert axes.yaxis_inverted(), "rows run downwards"
    assert viz.svg_uri(figure).startswith("data:image/svg+xml")


def test_a_path_in_a_volume() -> None:
    figure = viz.scan_paths(["morton"], (2, 3, 4))
    assert figure.axes[0].name == "3d"
    assert figure.axes[0].get_xlim()[1] > 3, "the last axis runs to the right"
    assert viz.png_uri(figure).startswith("data:image/png")


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 1, 1)], ids=str)
def test_paths_of_few_cells(shape: tuple[int, ...]) -> None:
    assert viz.png_uri(viz.scan_paths(["row_major"], shape))


@pytest.mark.parametrize(("orders", "shape"), [(["snake"], (4,)), (["snake"], (2, 2, 2, 2)), ([], (4, 4))])
def test_paths_that_cannot_be_drawn(orders: list, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must have rank 2 or 3, and `orders` at least one order"):
        viz.scan_paths(orders, shape)


def test_distances_by_hand() -> None:
    #  0 1 2
    #  5 4 3
    assert sorted(viz.distances("snake", (2, 3)).tolist()) == [1, 1, 1, 1, 1, 3, 5]
    assert viz.distances("row_major", (3, 4, 5)).tolist().count(20) == 2 * 4 * 5
    assert viz.distances("random", (1, 1)).size == 0


def test_neighbours_as_a_share_that_ends_at_one() -> None:
    figure = viz.neighbour_distances(["row_major", "hilbert", upside_down], (8, 8))
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["row_major", "hilbert", "upside_down"]
    x, y = lines[0].get_data()
    assert (x.tolist(), y.tolist()) == ([1, 1, 8, 8], [0, 0.5, 1, 1])
    assert all(line.get_ydata()[-1] == 1 for line in lines)
    assert lines[0].get_linestyle() == lines[1].get_linestyle() == "-"
    assert lines[2].get_linestyle() == "--", "it has the distances of row_major, which must be seen"
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["1", "2", "4", "8", "16", "32", "64"]
    with pytest.raises(ValueError, match=r"`orders` \(9 of them\) must be 1 to 8"):
        viz.neighbour_distances(["snake"] * 9, (4, 4))
    assert viz.svg_uri(viz.neighbour_distances(["snake"], (1, 1)))


class TestReceptiveField:
    def test_of_a_convolution(self) -> None:
        field = viz.receptive_field(nn.Conv2d(1, 3, 3, padding=1), (1, 9, 8), at=(2, 5))
        assert np.argwhere(field > 0).min(0).tolist() == [1, 4]
        assert np.argwhere(field > 0).max(0).tolist() == [3, 6]
        assert field.max() == 1

    def test_of_one_way_along_a_snake(self) -> None:
        torch.manual_seed(0)
        mixer = partial(NDMixer, partial(Mamba, d_state=2), scan="snake")
        model = NDBackbone(2, 1, 4, mixer=mixer, patch_size=1, depths=(1,), dims=(8,)).train()
        field = viz.receptive_field(model, (1, 5, 6))
        walk = scan_order("snake", (5, 6)).tolist()
        seen = walk[: walk.index(2 * 6 + 3) + 1]
        assert set(np.flatnonzero(field.ravel())) == set(seen)
        assert model.training

    def test_of_models_that_label_cells_or_have_a_token_or_one_answer(self) -> None:
        torch.manual_seed(0)
        mixer = partial(NDMixer, partial(Mamba, d_state=2), bidirectional=True)
        unet = NDUNet(3, 1, 4, mixer=mixer, depths=(1, 1), dims=(8, 8))
        assert viz.receptive_field(unet, (1, 8, 6, 7), samples=1).shape == (8, 6, 7)
        token = NDBackbone(2, 1, 4, mixer=mixer, depths=(1,), dims=(8,), class_token=True)
        assert (viz.receptive_field(token, (1, 8, 8), samples=1) > 0).all()
        plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        assert (viz.receptive_field(plain, (1, 12)) > 0).all()

    def test_the_same_each_time(self) -> None:
        model = nn.Conv1d(2, 2, 5, padding=2).double()
        first, again = (viz.receptive_field(model, (2, 16)) for _ in range(2))
        np.testing.assert_array_equal(first, again)

    def test_a_place_outside(self) -> None:
        with pytest.raises(ValueError, match=r"`at` \(=\(9,\)\) must be a cell of the input, .* is \(9,\)"):
            viz.receptive_field(nn.Identity(), (1, 9), at=(9,))


@pytest.mark.parametrize(("shape", "panels"), [((12,), 1), ((6, 8), 1), ((6, 8, 5), 3)], ids=str)
def test_a_map_of_any_rank(shape: tuple[int, ...], panels: int) -> None:
    field = np.random.default_rng(0).random(shape)
    figure = viz.receptive_map(field)
    assert len(figure.axes) == panels + 1
    shown = figure.axes[-2].images[0].get_array()
    plane = field[None] if len(shape) == 1 else field if len(shape) == 2 else field[3]
    np.testing.assert_allclose(shown, np.log10(np.maximum(plane, 1e-6)))
    with pytest.raises(ValueError, match="must have rank 1 to 3"):
        viz.receptive_map(np.ones((2, 2, 2, 2)))
