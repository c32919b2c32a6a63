"""Spatial recall: what is drawn where, that workers change nothing, and what the trivial predictors reach."""

from __future__ import annotations

import itertools
import math
import time
import zlib

import numpy as np
import pytest
import torch

from nvsubq.data import DataError, MNIST5k, SpatialRecall
from nvsubq.data.recall_draw import COLOURS, RECALLS
from nvsubq.data.recall_layout import SIZES, Layout

CASES = list(itertools.product((1, 2, 3), RECALLS))


def make(**options) -> SpatialRecall:
    return SpatialRecall(**{"val_items": 8, "test_items": 8, "batch_size": 4, **options})


def at(data: SpatialRecall) -> tuple:
    return (slice(None), *data.layout.readout)


@pytest.mark.parametrize(("dims", "recall"), CASES)
@pytest.mark.parametrize("size", SIZES)
def test_shapes_and_the_target_is_on_the_canvas(dims, recall, size):
    data = make(spatial_dims=dims, recall=recall, size=size)
    side = {"small": 8, "original": 16}[size]
    canvas, answer = data.dataset("test")[3]
    assert canvas.shape == (data.in_channels, *data.spatial_size)
    assert answer.shape == (data.num_classes, *data.layout.item)
    assert answer.numel() == data.num_classes * side * side
    digit = data.dataset("test").digits[3]
    inner = np.zeros_like(digit)
    inner[1:-1, 1:-1] = digit[1:-1, 1:-1]
    wanted = inner if recall.startswith("color") else digit
    assert np.allclose(answer.amax(0).reshape(side, side), wanted)
    assert wanted.max() > 0.5


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_mask_marks_the_target(dims):
    data = make(spatial_dims=dims, recall="mask_selection")
    for index in range(8):
        canvas, answer = data.dataset("test")[index]
        assert torch.equal(canvas[0][canvas[1] == 1], answer.flatten())
        assert not canvas[1][data.layout.readout].any()


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("recall", ["color_selection", "color_conditioning"])
def test_the_readout_frame_has_the_colour_of_the_target_and_of_no_other(dims, recall):
    data = make(spatial_dims=dims, recall=recall)
    for index in range(8):
        canvas, answer = data.dataset("test")[index]
        frame = canvas[at(data)].reshape(3, 8, 8)[:, 0, 0]
        assert any(np.array_equal(frame, colour) for colour in COLOURS)
        found = []
        for corner in itertools.product(*(range(n + 1) for n in data.layout.last)):
            patch = canvas[(slice(None), *data.layout.at(corner))].reshape(3, 8, 8)
            ring = torch.cat([patch[:, 0], patch[:, -1], patch[:, :, 0], patch[:, :, -1]], 1)
            if (ring == frame[:, None]).all() and corner != data.layout.last:
                found.append(patch)
        assert len(found) == 1
        tint = frame if recall == "color_conditioning" else torch.ones(1)
        inside = found[0][:1, 1:-1, 1:-1] * tint[:, None, None]
        assert torch.equal(answer.reshape(-1, 8, 8)[:, 1:-1, 1:-1], inside)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("value", [0, -1])
def test_readout_value_and_mask(dims, value):
    data = make(spatial_dims=dims, readout_value=value)
    canvas, _ = data.dataset("train")[(0, 0)]
    assert (canvas[0][data.readout_mask] == value).all()
    assert (canvas[0][~data.readout_mask] >= 0).all()
    assert int(data.readout_mask.sum()) == 64
    # The region is the end of the scan: its last cell is the canvas's.
    assert data.readout_mask.flatten()[-1]
    assert data.readout == [[part.start, part.stop] for part in data.layout.readout]


@pytest.mark.parametrize(
    ("direction", "corner"), [("vertical", (4, 16)), ("horizontal", (16, 4)), (None, (0, 0))]
)
def test_lag(direction, corner):
    lag = {} if direction is None else {"lag": 12, "direction": direction}
    data = make(**lag)
    canvas, answer = data.dataset("val")[2]
    assert torch.equal(canvas[(slice(None), *data.layout.at(corner))], answer)
    canvas[(slice(None), *data.layout.at(corner))] = 0
    assert not canvas.any()


# The machine may have fewer cores: what is asked is whether the data is the same.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("dims", "recall"), [(1, "simple_copy"), (2, "color_selection"), (3, "mask_selection")]
)
def test_workers_change_nothing(dims, recall):
    """0, 1 and 4 workers give the same data, in training and in evaluation, in two epochs."""
    seen = []
    for workers in (0, 1, 4):
        data = make(spatial_dims=dims, recall=recall, batch_size=500, num_workers=workers, seed=3)
        batches = []
        train = data.train_dataloader()
        for epoch in range(2):
            train.sampler.set_epoch(epoch)
            batches += list(itertools.islice(train, 2))
        batches += list(data.val_dataloader()) + list(data.test_dataloader())
        seen.append(batches)
    for other in seen[1:]:
        for (inputs, answers), (inputs_, answers_) in zip(seen[0], other, strict=True):
            assert torch.equal(inputs, inputs_)
            assert torch.equal(answers, answers_)
    # ... and it is not one batch again and again.
    assert not torch.equal(seen[0][0][0], seen[0][2][0])


def test_draws_follow_split_epoch_index_and_seed():
    data = make(recall="mask_selection")
    train = data.dataset("train")
    assert torch.equal(train[(1, 5)][0], train[(1, 5)][0])
    assert not torch.equal(train[(1, 5)][0], train[(2, 5)][0])
    assert torch.equal(train[(1, 5)][1], train[(2, 5)][1])
    other = make(recall="mask_selection", seed=1)
    assert not torch.equal(train[(1, 5)][0], other.dataset("train")[(1, 5)][0])
    assert torch.equal(data.dataset("test")[5][0], other.dataset("test")[5][0])


def test_places_overlap_nothing():
    layout = Layout((24, 24), 8)
    random = np.random.default_rng(0)
    for _ in range(50):
        count = np.zeros(layout.canvas, dtype=int)
        for corner in [*layout.places(4, random), layout.last]:
            count[layout.at(corner)] += 1
        assert count.max() == 1
        assert count.sum() == 5 * 64


def test_trivial_predictors():
    data = make(recall="simple_copy", test_items=1000)
    train, test = (data.dataset(split).digits for split in ("train", "test"))
    mse = {name: scores["mse"] for name, scores in data.baselines().items()}
    assert mse["constant"] == pytest.approx(float(((test - train.mean()) ** 2).mean()), rel=1e-5)
    assert mse["per-pixel mean"] == pytest.approx(float(((test - train.mean(0)) ** 2).mean()), rel=1e-5)
    assert 0.02 < mse["per-pixel mean"] < mse["constant"] < 0.2


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_to_know_the_colour_alone(spatial_dims):
    """The frame in the readout says the colour: the mean item in it is what can be said without a walk."""
    data = make(spatial_dims=spatial_dims, recall="color_conditioning", test_items=50)
    train, test = data.dataset("train").answers(), data.dataset("test").answers()
    mean = train.max(axis=1).mean(axis=0)
    expected = []
    for index, answer in enumerate(test):
        canvas, _ = data.dataset("test")[index]
        corner = canvas[(slice(None), *([-1] * spatial_dims))].numpy()  # of the frame
        expected.append(np.mean([(a - c * mean) ** 2 for a, c in zip(answer, corner, strict=True)]))
    mse = {name: scores["mse"] for name, scores in data.baselines().items()}
    assert mse["mean in its colour"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert mse["mean in its colour"] < mse["per-pixel mean"] < mse["constant"]


def test_a_limit_leaves_no_class_out():
    """Digits are stored by class, and the first of a split would all be zeros."""
    pixels, labels = MNIST5k().load()
    data = make(
        canvas=[64, 64], item=28, test_items=50, val_items=50
    )  # at their own size, so that they are found again
    by_pixels = {picture.tobytes(): int(label) for picture, label in zip(pixels, labels, strict=True)}
    for split in ("val", "test"):
        digits = np.rint(255 * data.dataset(split).digits).astype(pixels.dtype)
        found = [by_pixels[digit.tobytes()] for digit in digits]
        assert len(found) == 50
        assert set(found) == set(range(10)), split


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 4}, r"`spatial_dims` \(=4\) must be 1, 2 or 3"),
        ({"recall": "copy"}, r"`recall` \(='copy'\) must be one of simple_copy, mask_selection"),
        ({"size": "huge"}, r"`size` \(='huge'\) must be one of small, original"),
        ({"canvas": [24]}, r"`canvas` \(=\[24\]\) must be null or 2 positive integers"),
        ({"canvas": [4, 24]}, r"`canvas` \(=\[4, 24\]\) must hold an item of 8 x 8 cells"),
        ({"canvas": [16, 16], "recall": "mask_selection"}, "must have room for 4 items of 8 x 8 cells"),
        ({"item": 3}, r"`item` \(=3\) must be null or an integer from 4 to 28"),
        ({"items": 7}, r"`items` \(=7\) must be an integer from 1 to 6"),
        ({"lag": 7}, r"`lag` \(=7\) must be null or an integer from 8 .* to 16"),
        ({"lag": 17}, r"`lag` \(=17\) must be null or an integer"),
        ({"lag": 64, "spatial_dims": 1}, r"`direction` \(='vertical'\) needs at least two dimensions"),
        ({"lag": 9, "direction": "up"}, r"`direction` \(='up'\) must be one of vertical, horizontal"),
        ({"lag": 9, "recall": "mask_selection"}, r"`lag` \(=9\) needs `recall` simple_copy"),
        ({"readout_value": 1}, r"`readout_value` \(=1\) must be 0 or -1"),
        ({"test_items": 1001}, r"`test_items` \(=1001\) must be an integer from 1 to 1000"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_reads_no_files():
    with pytest.raises(DataError, match=r"a\.png: spatial recall draws its own canvases"):
        make().read_input("a.png")


TIGHT = [
    ((448,), 8, 6),
    ((320,), 8, 4),
    ((331,), 8, 4),
    ((24, 24), 8, 8),
    ((16, 33), 8, 7),
    ((3, 17, 16), 8, 11),
]


@pytest.mark.parametrize(("canvas", "side", "count"), TIGHT)
def test_tight_canvases_are_filled_at_once(canvas, side, count):
    layout = Layout(canvas, side)
    assert layout.room >= count
    start = time.perf_counter()
    found = [layout.places(count, np.random.default_rng(seed)) for seed in range(20)]
    assert time.perf_counter() - start < 10  # of a second, on a machine that has nothing else to do
    for places in found:
        taken = layout.mask.astype(int)
        for corner in places:
            assert all(0 <= c <= n for c, n in zip(corner, layout.last, strict=True))
            taken[layout.at(corner)] += 1
        assert len(places) == count
        assert taken.max() == 1
    assert len({tuple(places) for places in found}) > 1
    assert found[3] == layout.places(count, np.random.default_rng(3))


def test_tight_signals_have_their_items_anywhere():
    """Three items of 16 cells before a readout, and 8 cells between them: each layout comes."""
    layout = Layout((72,), 4)
    found = {tuple(sorted(layout._tight(3, np.random.default_rng(seed)))) for seed in range(4000)}
    assert len(found) == math.comb(8 + 3, 3)


OLD = [
    ((576,), 4, 2725925375),
    ((576,), 6, 339961685),
    ((24, 24), 4, 3106456763),
    ((24, 24), 5, 433392898),
    ((2, 16, 16), 4, 2245089795),
    ((2, 16, 16), 5, 10091525),
]
"""Canvas, items, and the digest of 50 layouts, from before tight canvases had a way of their own."""


def test_layouts_are_those_of_old():
    for canvas, count, digest in OLD:
        places = [Layout(canvas, 8).places(count, np.random.default_rng(seed)) for seed in range(50)]
        assert zlib.crc32(repr(places).encode()) == digest


def test_a_tight_set_is_served():
    data = make(recall="mask_selection", spatial_dims=1, canvas=[448], items=6).dataset("test")
    start = time.perf_counter()
    canvas, answer = data[0]
    assert time.perf_counter() - start < 10
    assert torch.equal(canvas[0][canvas[1] == 1], answer.flatten())
    assert torch.equal(data[0][0], canvas)
