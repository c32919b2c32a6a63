"""Scan orders: permutations of any box, what each promises of neighbours, and small cases by hand."""

from __future__ import annotations

import math
import time

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from nvsubq.nd import scan_order
from nvsubq.nd.orders import parse_order

ANY_RANK = ["row_major", "column_major", "snake", "window", "window(3)", "morton", "random", "random(5)"]
shapes = st.lists(st.integers(1, 7), min_size=1, max_size=5).map(tuple)


def visited(order: object, shape: tuple[int, ...]) -> np.ndarray:
    """Coordinates `[L, rank]` along the walk."""
    return np.stack(np.unravel_index(scan_order(order, shape).numpy(), shape), 1)  # type: ignore[arg-type]


def jumps(order: str, shape: tuple[int, ...]) -> np.ndarray:
    """City-block distances from cell to cell along the walk."""
    return np.abs(np.diff(visited(order, shape), axis=0)).sum(1)


def assert_permutation(table: torch.Tensor, shape: tuple[int, ...]) -> None:
    assert table.dtype == torch.int64
    assert torch.equal(table.sort().values, torch.arange(math.prod(shape)))


@given(shape=shapes, order=st.sampled_from(ANY_RANK))
@settings(max_examples=200, deadline=None)
def test_every_order_visits_every_cell_once(shape: tuple[int, ...], order: str) -> None:
    assert_permutation(scan_order(order, shape), shape)


@given(shape=st.lists(st.integers(1, 19), min_size=2, max_size=3).map(tuple))
@settings(max_examples=100, deadline=None)
def test_hilbert_visits_every_cell_once(shape: tuple[int, ...]) -> None:
    assert_permutation(scan_order("hilbert", shape), shape)


@given(data=st.data(), shape=shapes)
@settings(max_examples=100, deadline=None)
def test_axes_is_row_major_of_the_permuted_field(data: st.DataObject, shape: tuple[int, ...]) -> None:
    permutation = data.draw(st.permutations(range(len(shape))))
    field = torch.arange(math.prod(shape)).reshape(shape)
    order = f"axes({', '.join(map(str, permutation))})"
    assert torch.equal(scan_order(order, shape), field.permute(permutation).flatten())


@given(shape=shapes)
@settings(max_examples=100, deadline=None)
def test_consecutive_cells_of_a_snake_touch(shape: tuple[int, ...]) -> None:
    assert (jumps("snake", shape) == 1).all()


@given(size=st.integers(0, 4), rank=st.integers(2, 3))
def test_consecutive_cells_of_a_hilbert_cube_touch(size: int, rank: int) -> None:
    assert (jumps("hilbert", (2**size,) * rank) == 1).all()


@pytest.mark.parametrize("shape", [(4, 32), (32, 4), (1, 8, 64), (8, 8, 32), (32, 8, 8)])
def test_consecutive_cells_of_a_row_of_hilbert_cubes_touch(shape: tuple[int, ...]) -> None:
    assert (jumps("hilbert", shape) == 1).all()


@pytest.mark.parametrize("shape", [(14, 20), (7, 7, 40), (13, 17, 11), (1, 9, 50), (31, 33, 30)])
@pytest.mark.parametrize("order", ["hilbert", "morton"])
def test_cells_near_in_the_walk_are_near_in_space(order: str, shape: tuple[int, ...]) -> None:
    """w cells in a row would fill a cube of side w^(1/rank); the boxes that hold them are thrice as long."""
    coordinates = visited(order, shape)
    rank = sum(n > 1 for n in shape)
    for width in (8, 32, 128):
        runs = np.lib.stride_tricks.sliding_window_view(coordinates, width, axis=0)
        extent = (runs.max(2) - runs.min(2)).max(1) + 1
        side = width ** (1 / rank)
        assert np.median(extent) <= 3 * side
        raster = np.lib.stride_tricks.sliding_window_view(visited("row_major", shape), width, axis=0)
        spread = (raster.max(2) - raster.min(2)).max(1) + 1
        assert extent.mean() <= max(spread.mean(), 3 * side)


def test_few_cells_of_a_hilbert_box_do_not_touch() -> None:
    for shape in ((14, 20), (13, 17, 11), (200, 210)):
        assert (jumps("hilbert", shape) > 1).mean() < 0.06


@pytest.mark.parametrize(
    ("order", "shape", "table"),
    [
        ("row_major", (2, 3), [0, 1, 2, 3, 4, 5]),
        ("column_major", (2, 3), [0, 3, 1, 4, 2, 5]),
        ("snake", (3, 3), [0, 1, 2, 5, 4, 3, 6, 7, 8]),
        ("snake", (2, 2, 2), [0, 1, 3, 2, 6, 7, 5, 4]),
        ("snake", (5,), [0, 1, 2, 3, 4]),
        ("window(2)", (3, 3), [0, 1, 3, 4, 2, 5, 6, 7, 8]),
        ("window(1, 2)", (2, 3), [0, 1, 2, 3, 4, 5]),
        ("window(2, 9)", (3, 2), [0, 1, 2, 3, 4, 5]),
        ("morton", (4, 4), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]),
        ("morton", (3, 2), [0, 1, 2, 3, 4, 5]),
        ("hilbert", (2, 2), [0, 1, 3, 2]),
        ("hilbert", (4, 4), [0, 4, 5, 1, 2, 3, 7, 6, 10, 11, 15, 14, 13, 9, 8, 12]),
        ("hilbert", (1, 1, 4), [0, 1, 2, 3]),
        ("window(2)", (0, 3), []),
    ],
)
def test_by_hand(order: str, shape: tuple[int, ...], table: list[int]) -> None:
    assert scan_order(order, shape).tolist() == table


def test_random_is_a_matter_of_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = scan_order("random(3)", (6, 6)).clone()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(scan_order("random(3)", (36,)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(scan_order("random(4)", (6, 6)), first)


def test_a_table_is_made_once() -> None:
    assert scan_order("hilbert", (6, 7)) is scan_order("hilbert", torch.Size((6, 7)))
    calls = []

    def spiral(shape: tuple[int, ...]) -> torch.Tensor:
        calls.append(shape)
        return torch.arange(math.prod(shape)).flip(0)

    assert scan_order(spiral, (2, 3)) is scan_order(spiral, (2, 3))
    assert calls == [(2, 3)]
    assert scan_order(spiral, (2, 3)).tolist() == [5, 4, 3, 2, 1, 0]


def test_inference_mode_leaves_tables_that_serve_training() -> None:
    with torch.inference_mode():
        assert not scan_order("random(77)", (3, 5)).is_inference()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["hilbert", "morton", "snake", "window(8)", "column_major", "random"])
def test_a_large_volume_takes_seconds(order: str) -> None:
    for side, seconds in ((256, 3.0), (250, 15.0)):
        start = time.process_time()
        scan_order(order, (side, side, side))
        assert time.process_time() - start < seconds


@pytest.mark.parametrize(
    ("order", "shape", "message"),
    [
        ("hilbert", (4,), r"`order` \(='hilbert'\) is for fields of rank 2 and 3, not for the shape \(4,\)"),
        ("hilbert", (2, 2, 2, 2), "rank 2 and 3"),
        ("spiral", (4, 4), r"`order` \(='spiral'\) must be one of row_major, .*, or a callable"),
        ("snake(2)", (4, 4), r"`order` \(='snake\(2\)'\) takes no arguments"),
        ("window(2, x)", (4, 4), r"must have integers in its parentheses"),
        ("window(2, 2, 2)", (4, 4), r"one positive size, or one for each axis of \(4, 4\)"),
        ("window(0)", (4, 4), "one positive size"),
        ("axes(0, 0)", (4, 4), r"must name each axis of the shape \(4, 4\) once, 0 to 1"),
        ("axes", (4, 4), "must name each axis"),
        ("random(1, 2)", (4, 4), "one seed"),
        ("random(-1)", (4, 4), "one seed from 0 up"),
        ("snake", (), r"`shape` \(=\(\)\) must be one or more sizes"),
        ("snake", (3, -1), "one or more sizes"),
        (3, (4, 4), r"`order` \(=3\) must be a name or a callable"),
        (lambda shape: [0, 0, 1, 2], (2, 2), r"must give a permutation of 0 .. 3 for the shape \(2, 2\)"),
        (lambda shape: [0, 1], (2, 2), r"must give integers of shape \[4\] for the shape \(2, 2\)"),
        (lambda shape: [0.0, 1, 2, 3], (2, 2), "not torch.float32 of shape"),
    ],
)
def test_what_is_no_order(order: object, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scan_order(order, shape)  # type: ignore[arg-type]


def test_names_are_parsed_with_spaces() -> None:
    assert parse_order(" window( 2 , 3 ) ") == ("window", (2, 3))
    assert parse_order("random()") == ("random", ())
