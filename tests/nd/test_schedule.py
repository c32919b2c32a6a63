"""Which order and direction a layer gets."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from nvsubq.nd.schedule import Path, plan_scan

TWO = {"alternate": ["snake", "hilbert"]}
FORMS = r"must be an order, a list of orders, {'alternate': \[order, ...\]} or {'split_channels': \[order, "


def walks(scan: Any, layer_idx: int | None, bidirectional: bool) -> list[tuple[Any, bool]]:
    return [(path.order, path.reverse) for path in plan_scan(scan, layer_idx, bidirectional).paths]


def test_one_order_is_every_layers() -> None:
    assert plan_scan("snake", None, False) == ((Path("snake", False),), False)
    assert walks(len, 3, True) == [(len, False), (len, True)]


def test_several_orders_both_ways_and_their_cores() -> None:
    plan = plan_scan(["snake", len], 3, True)
    assert [tuple(path) for path in plan.paths] == [
        ("snake", False, "core_layer"),
        ("snake", True, "core_layer_rev"),
        (len, False, "core_layer_1"),
        (len, True, "core_layer_1_rev"),
    ]
    assert not plan.split
    assert plan_scan({"split_channels": ["snake", len]}, 3, True) == (plan.paths, True)
    assert walks(["snake", "snake"], None, False) == [("snake", False)] * 2


def test_every_pair_is_met_before_one_comes_again() -> None:
    for count in (1, 2, 3, 4):
        orders = ["snake", "hilbert", "morton", "window(2)"][:count]
        met = [walks({"alternate": orders}, i, False)[0] for i in range(4 * count)]
        assert len(set(met[: 2 * count])) == 2 * count
        assert met[: 2 * count] == met[2 * count :]


def test_layers_that_walk_both_ways_alternate_orders_alone() -> None:
    met = [walks(TWO, i, True) for i in range(4)]
    assert met == [[(order, False), (order, True)] for order in ("snake", "hilbert")] * 2


def test_as_it_comes_from_yaml() -> None:
    scans = OmegaConf.create(
        "{a: {alternate: [snake, hilbert]}, b: [snake, hilbert], c: {split_channels: [snake]}}"
    )
    assert walks(scans.a, 1, False) == [("hilbert", False)]
    assert walks(scans.b, 1, False) == [("snake", False), ("hilbert", False)]
    assert plan_scan(scans.c, 1, False).split


@pytest.mark.parametrize(
    ("scan", "layer_idx", "message"),
    [
        ("spiral", 0, "must be one of row_major"),
        (
            3,
            0,
            r"`scan` \(=3\) must be one of row_major, .* a callable of the shape, a list of these, {",
        ),
        ({"alternate": ["snake", "spiral"]}, 0, "must be one of row_major"),
        (["snake", 3], 0, r"`scan` \(=3\) must be one of row_major"),
        ([["snake"]], 0, r"`scan` \(=\['snake'\]\) must be one of row_major"),
        ([], 0, r"`scan` \(=\[\]\) " + FORMS),
        ({"alternate": []}, 0, FORMS),
        ({"alternate": "snake"}, 0, FORMS),
        ({"split_channels": "snake"}, 0, FORMS),
        ({"every": ["snake"]}, 0, r"`scan` \(={'every': \['snake'\]}\) " + FORMS),
        (TWO, None, r"`layer_idx` \(=None\) must be the layer's number"),
        (TWO, -1, r"`layer_idx` \(=-1\) must be the layer's number"),
    ],
)
def test_what_is_no_scan(scan: Any, layer_idx: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_scan(scan, layer_idx, False)
