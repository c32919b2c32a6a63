"""Which order and direction a layer gets."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from nvsubq.nd.schedule import choose_scan

TWO = {"alternate": ["snake", "hilbert"]}


def test_one_order_is_every_layers() -> None:
    assert choose_scan("snake", None, False) == ("snake", False)
    assert choose_scan(len, 3, True) == (len, False)


def test_every_pair_is_met_before_one_comes_again() -> None:
    for count in (1, 2, 3, 4):
        orders = ["snake", "hilbert", "morton", "window(2)"][:count]
        met = [choose_scan({"alternate": orders}, i, False) for i in range(4 * count)]
        assert len(set(met[: 2 * count])) == 2 * count
        assert met[: 2 * count] == met[2 * count :]


def test_layers_that_walk_both_ways_alternate_orders_alone() -> None:
    met = [choose_scan(TWO, i, True) for i in range(4)]
    assert met == [("snake", False), ("hilbert", False)] * 2


def test_as_it_comes_from_yaml() -> None:
    scan = OmegaConf.create("scan: {alternate: [snake, hilbert]}").scan
    assert choose_scan(scan, 1, False) == ("hilbert", False)


@pytest.mark.parametrize(
    ("scan", "layer_idx", "message"),
    [
        ("spiral", 0, "must be one of row_major"),
        (3, 0, r"`scan` \(=3\) must be one of row_major, .* a callable of the shape, or {'alternate'"),
        ({"alternate": ["snake", "spiral"]}, 0, "must be one of row_major"),
        ({"alternate": []}, 0, r"must be an order, or {'alternate': \[order, ...\]}"),
        ({"alternate": "snake"}, 0, "must be an order, or"),
        ({"every": ["snake"]}, 0, "must be an order, or"),
        (TWO, None, r"`layer_idx` \(=None\) must be the layer's number"),
        (TWO, -1, r"`layer_idx` \(=-1\) must be the layer's number"),
    ],
)
def test_what_is_no_scan(scan: Any, layer_idx: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_scan(scan, layer_idx, False)
