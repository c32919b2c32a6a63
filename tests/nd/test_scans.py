"""NDMixer along other orders: the whole core sees the permuted cells, and its outputs go back to them."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from nd_helpers import ForeignGRU, PlainCore, WalkingCore
from torch import Tensor

from nvsubq import NDMixer
from nvsubq.cores import RGLRU, S5, S7, Attention, Mamba, Mamba2
from nvsubq.models import NDBackbone
from nvsubq.nd import scan_order
from nvsubq.nd.schedule import Path

WIDTH = 8
CORES: dict[str, Callable[..., Any]] = {
    "mamba": partial(Mamba, d_state=4),
    "mamba2": partial(Mamba2, d_state=8, headdim=8),
    "s5": partial(S5, d_state=8),
    "s7": partial(S7, d_state=4),
    "rglru": partial(RGLRU),
    "attention": partial(Attention, causal=True),
    "plain": PlainCore,
    "walking": WalkingCore,
    "gru": partial(ForeignGRU, WIDTH),
}
SHAPES = [(9,), (5, 4), (3, 2, 5), (2, 3, 1, 2)]


def inside_out(shape: tuple[int, ...]) -> list[int]:
    """A user's own order."""
    length = math.prod(shape)
    return sorted(range(length), key=lambda cell: (abs(2 * cell - length), cell))


ORDERS: list[Any] = ["column_major", "snake", "window(2)", "morton", "random(1)", "hilbert", inside_out]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def by_hand(mixer: NDMixer, x: Tensor, order: Any) -> Tensor:
    """`P^-1(core(P x))`, with explicit indexing."""
    cells = x.flatten(1, -2)
    walk = scan_order(order, x.shape[1:-1])
    back = torch.empty_like(walk)
    back[walk] = torch.arange(len(walk))
    out = mixer.core_layer(cells[:, walk])[:, back]
    if hasattr(mixer, "core_layer_rev"):
        out = out + mixer.core_layer_rev(cells[:, walk.flip(0)])[:, back.max() - back]
    return out.reshape(x.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: getattr(order, "__name__", order))
@pytest.mark.parametrize("core", CORES.values(), ids=CORES)
def test_law(core: Any, order: Any, shape: tuple[int, ...]) -> None:
    if order == "hilbert" and len(shape) not in (2, 3):
        with pytest.raises(ValueError, match="rank 2 and 3"):
            NDMixer(core, d_model=WIDTH, scan=order)(torch.randn(1, *shape, WIDTH))
        return
    mixer = NDMixer(core, d_model=WIDTH, scan=order, bidirectional=True).double()
    x = torch.randn(2, *shape, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_hand(mixer, x, order))


@pytest.mark.parametrize("core", CORES.values(), ids=CORES)
def test_gradients_are_those_of_plain_indexing(core: Any) -> None:
    mixer = NDMixer(core, d_model=WIDTH, scan="hilbert", bidirectional=True).double()
    x = torch.randn(2, 5, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    weight, wanted = torch.randn_like(x), [x, *mixer.parameters()]
    found = [
        torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True, materialize_grads=True)
        for y in (mixer(x), by_hand(mixer, x, "hilbert"))
    ]
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("core", [CORES["mamba"], CORES["gru"]], ids=["mamba", "gru"])
def test_a_flipped_field_is_walked_as_its_flipped_orders_are(core: Any) -> None:
    """To mirror the input is to mirror the order: what the layer sees is the walk, not the grid."""
    mixer = NDMixer(core, d_model=WIDTH, scan="row_major").double()
    other = copy.deepcopy(mixer)
    mirrored = lambda shape: torch.arange(math.prod(shape)).reshape(shape).flip(1).flatten()  # noqa: E731
    other.paths = (Path(mirrored, False),)
    x = torch.randn(2, 4, 5, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(mixer(x.flip(2)).flip(2), other(x))
    turned = copy.deepcopy(mixer)
    turned.paths = (Path("column_major", False),)
    torch.testing.assert_close(mixer(x.transpose(1, 2)).transpose(1, 2), turned(x))


def test_layers_alternate() -> None:
    """Orders and directions by the number of the layer, through a backbone too."""
    scan = {"alternate": ["row_major", "column_major"]}
    x = torch.randn(1, 3, 4, WIDTH, dtype=torch.float64)
    for i in range(4):
        mixer = NDMixer(CORES["mamba"], d_model=WIDTH, layer_idx=i, scan=scan).double()
        cells = x if i % 2 == 0 else x.transpose(1, 2)
        flat = cells.flatten(1, 2)
        want = mixer.core_layer(flat) if i < 2 else mixer.core_layer(flat.flip(1)).flip(1)
        want = want.reshape(cells.shape)
        torch.testing.assert_close(mixer(x), want if i % 2 == 0 else want.transpose(1, 2))
    model = NDBackbone(
        2, 1, 3, mixer=partial(NDMixer, CORES["mamba"], scan=scan), dims=(8,), depths=(4,), patch_size=2
    )
    orders = [m.paths[0][:2] for m in model.modules() if isinstance(m, NDMixer)]
    assert orders == [
        ("row_major", False), ("column_major", False), ("row_major", True), ("column_major", True)
    ]  # fmt: skip
    assert model(torch.randn(2, 1, 8, 6)).shape == (2, 3)


def test_no_order_matters_to_a_core_that_sees_everything() -> None:
    mixer = NDMixer(partial(Attention, causal=False), d_model=WIDTH, scan="random", bidirectional=True)
    x = torch.randn(2, 3, 4, WIDTH)
    torch.testing.assert_close(mixer(x), mixer.core_layer(x.flatten(1, 2)).reshape(x.shape))


def test_tables_are_no_part_of_the_state() -> None:
    mixer = NDMixer(CORES["mamba"], d_model=WIDTH, scan="hilbert")
    mixer(torch.randn(1, 4, 4, WIDTH))
    assert not list(mixer.buffers())
    mixer.load_state_dict(NDMixer(CORES["mamba"], d_model=WIDTH).state_dict())
    assert "scan='hilbert'" in repr(mixer)


def test_an_order_is_copied_and_pickled_with_its_layer(tmp_path: Any) -> None:
    mixer = NDMixer(CORES["mamba"], d_model=WIDTH, scan="morton", bidirectional=True)
    x = torch.randn(1, 4, 3, WIDTH)
    torch.save(mixer, tmp_path / "mixer.pt")
    for other in (copy.deepcopy(mixer), torch.load(tmp_path / "mixer.pt", weights_only=False)):
        assert torch.equal(other(x), mixer(x))


def test_the_signature_is_documented() -> None:
    assert list(inspect.signature(NDMixer).parameters) == [
        "core", "d_model", "layer_idx", "bidirectional", "scan", "fuse", "share"
    ]  # fmt: skip
