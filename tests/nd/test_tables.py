"""Tables of callables: in compiled and in exported code, in copies, and their names."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nvsubq import NDMixer
from nvsubq.cores import Mamba
from nvsubq.nd.tables import order_name, order_table

# Dynamo itself makes an instance of every `autograd.Function` that it traces.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

CPU = torch.device("cpu")


def backwards(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(math.prod(shape) - 1, -1, -1)


def rolled(by: int) -> Callable[[tuple[int, ...]], Tensor]:
    return lambda shape: backwards(shape).roll(by)


class Unhashable:
    __slots__ = ("by",)  # nor can it be referred to weakly
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, by: int = 3) -> None:
        self.by = by

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return rolled(self.by)(shape)


SCANS: dict[str, Any] = {
    "function": backwards,
    "object, both ways": [Unhashable(), "snake"],
    "on shares": {"split_channels": [rolled(2), "snake"]},
    "in turn": {"alternate": ["snake", partial(backwards)]},
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
def test_compiles_whole(scan: Any) -> None:
    mixer = NDMixer(Mamba, d_model=8, layer_idx=1, scan=scan, bidirectional=isinstance(scan, list))
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    wanted = list(mixer.parameters())
    for shape in ((3, 5), (4, 6)):  # the second one with sizes that are symbols
        x = torch.randn(1, *shape, 8)
        results = compiled(x), mixer(x)
        torch.testing.assert_close(*results)
        found = [torch.autograd.grad(y.square().sum(), wanted) for y in results]
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want)


def test_compiles_with_a_class_token() -> None:
    mixer, x = NDMixer(Mamba, d_model=8, scan=backwards), torch.randn(2, 16, 8)
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, (3, 5)), mixer(x, (3, 5)))


@torch.no_grad()
def test_exported_it_is_a_constant(tmp_path: Path) -> None:
    mixer, x = NDMixer(Mamba, d_model=8, scan=[rolled(1), "snake"]).eval(), torch.randn(2, 3, 5, 8)
    torch.export.save(torch.export.export(mixer, (x,), strict=False), tmp_path / "mixer.pt2")
    wanted = mixer(x)
    torch.testing.assert_close(torch.export.load(tmp_path / "mixer.pt2").module()(x), wanted)


def test_copies_have_callables_of_their_own() -> None:
    mixer, x = NDMixer(Mamba, d_model=8, scan=[Unhashable(1), backwards]), torch.randn(1, 3, 5, 8)
    wanted = mixer(x)
    for twin in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))):
        twin.paths[0].order.by = 2
        torch.testing.assert_close(mixer(x), wanted)
        torch.testing.assert_close(torch.compile(twin, backend="aot_eager")(x), twin(x))
        assert not torch.allclose(twin(x), wanted)


def test_a_name_is_that_of_one_callable_while_it_lives() -> None:
    first, second = rolled(1), rolled(1)
    name = order_name(first)
    assert order_name("snake") == "snake"
    assert name == order_name(first) != order_name(second)
    assert order_table(name, torch.Size((2, 2)), CPU).tolist() == [0, 3, 2, 1]
    with pytest.raises(
        RuntimeError, match=r"walks by `scan` \(='callable -1'\), which is not in this process"
    ):
        order_table("callable -1", torch.Size((3, 2)), CPU)
