"""Cores that can walk together, over the same channels or over shares of them, are asked for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nvsubq import NDMixer
from nvsubq.cores import Mamba
from nvsubq.nd import scan_order
from nvsubq.ops import backends


class Core(nn.Module):
    """Scales its input; `together` says whether it can walk with others."""

    together = True

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.scale = nn.Parameter(torch.rand(()))
        self.asked: list[Any] = []

    def forward(self, hidden_states: Tensor, *, order: Tensor | None = None, reverse: bool = False) -> Tensor:
        return self.scale * hidden_states

    def walk_with(
        self, other: Core, hidden_states: Tensor, order: Tensor | None, reverse: tuple[bool, bool]
    ) -> Tensor | None:
        self.asked.append((order, reverse))
        return (self.scale + other.scale) * hidden_states if self.together else None

    def walk_apart(
        self, others: list[Core], hidden_states: Tensor, orders: list[Tensor | None], reverse: list[bool]
    ) -> Tensor | None:
        self.asked.append((orders, reverse))
        cores = [self, *others]
        parts = hidden_states.chunk(len(cores), -1)
        scaled = [core.scale * part for core, part in zip(cores, parts, strict=True)]
        return torch.cat(scaled, -1) if self.together else None


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("fuse", ["sum", "mean"])
def test_both_directions_in_one_call(together: bool, fuse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Core, "together", together)
    mixer = NDMixer(Core, d_model=3, bidirectional=True, fuse=fuse, scan="column_major")
    x = torch.randn(2, 4, 5, 3)
    factor = (mixer.core_layer.scale + mixer.core_layer_rev.scale) * (0.5 if fuse == "mean" else 1)
    torch.testing.assert_close(mixer(x), factor * x)
    ((order, reverse),) = mixer.core_layer.asked
    assert order is not None
    assert reverse == (False, True)
    assert not mixer.core_layer_rev.asked


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("fuse", ["sum", "concat"])
def test_all_shares_in_one_call(together: bool, fuse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Core, "together", together)
    split = {"split_channels": ["row_major", "column_major"]}
    mixer = NDMixer(Core, d_model=8, bidirectional=True, fuse=fuse, scan=split)
    x = torch.randn(2, 4, 5, 8)
    scales = torch.stack([getattr(mixer, path.core).scale for path in mixer.paths])
    wanted = scales.repeat_interleave(2) * x
    torch.testing.assert_close(mixer(x), mixer.fusion.proj(wanted) if fuse == "concat" else wanted)
    ((orders, reverse),) = mixer.core_layer.asked
    assert [order is None for order in orders] == [True, True, False, False]
    assert torch.equal(orders[2], scan_order("column_major", (4, 5)))
    assert reverse == [False, True, False, True]


def test_shares_that_are_told_their_direction_walk_alone() -> None:
    split = {"split_channels": ["row_major", "column_major"]}
    mixer = NDMixer(Core, d_model=8, scan=split, share="all+direction")
    mixer(torch.randn(2, 4, 5, 8))
    assert not mixer.core_layer.asked


def test_one_direction_asks_for_nothing() -> None:
    mixer = NDMixer(Core, d_model=3)
    mixer(torch.randn(2, 4, 3))
    assert not mixer.core_layer.asked


def test_mamba_declines_on_a_cpu() -> None:
    core, other = Mamba(8), Mamba(8)
    assert core.walk_with(other, torch.randn(1, 4, 8), None, (False, True)) is None


def test_mamba_on_shares_declines_what_is_not_plain_mamba() -> None:
    core, others, x = Mamba(8), [Mamba(8), Mamba(8)], torch.randn(1, 4, 24)
    walk: Any = ([None] * 3, [False, True, False])
    native = next(b for b in backends() if b.name == "native").active
    assert (core.walk_apart(others, x, *walk) is not None) == native
    assert core.walk_apart([others[0], nn.Identity()], x, *walk) is None
    assert core.walk_apart([others[0], Mamba(8, bias=True)], x, *walk) is None
    assert core.walk_apart([others[0], Mamba(8, discretization="zoh")], x, *walk) is None
    assert core.walk_apart(others, x.to("meta"), *walk) is None
    others[1].out_proj.register_forward_hook(lambda *_: None)
    assert core.walk_apart(others, x, *walk) is None
