"""A core that can walk together with the one of the other direction is asked for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nvsubq import NDMixer
from nvsubq.cores import Mamba


class Core(nn.Module):
    """Scales its input; `together` says whether it can walk with another."""

    together = True

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.scale = nn.Parameter(torch.rand(()))
        self.asked: list[tuple[Tensor | None, tuple[bool, bool]]] = []

    def forward(self, hidden_states: Tensor, *, order: Tensor | None = None, reverse: bool = False) -> Tensor:
        return self.scale * hidden_states

    def walk_with(
        self, other: Core, hidden_states: Tensor, order: Tensor | None, reverse: tuple[bool, bool]
    ) -> Tensor | None:
        self.asked.append((order, reverse))
        return (self.scale + other.scale) * hidden_states if self.together else None


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


def test_one_direction_asks_for_nothing() -> None:
    mixer = NDMixer(Core, d_model=3)
    mixer(torch.randn(2, 4, 3))
    assert not mixer.core_layer.asked


def test_mamba_declines_on_a_cpu() -> None:
    core, other = Mamba(8), Mamba(8)
    assert core.walk_with(other, torch.randn(1, 4, 8), None, (False, True)) is None
