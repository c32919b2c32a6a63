"""How the outputs of a layer's walks become one field."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

FUSIONS = ("sum", "mean", "concat", "gate")


class Fusion(nn.Module):
    """Join the outputs of P walks, each `[B, L, C]`.

    * "sum" adds them, which multiplies the variance by P. * "mean" divides that by P.
    * "concat" maps them, one after another, to `[B, L, C]` by a learned linear map.
    * "gate" adds them by weights that each cell of the layer's input chooses, a softmax over the walks of a
      linear map of the cell; it starts as the mean.

    With shares (`split_channels`) each channel has one walk: the outputs, `[B, L, C / P]`, lie side by side;
    "sum" and "mean" leave it at that, and "concat" maps them.

    Args:
        kind: one of those.
        walks: P; one walk needs no fusion and has no parameters.
        d_model: `C`; "concat" and "gate" need it.
        split: the walks have shares of the channels.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: an unknown `kind`, no `d_model` where it is needed, or a gate over shares.

    Example:
        >>> Fusion("gate", 4, 16)(torch.randn(2, 9, 16), [torch.ones(2, 9, 16)] * 4).mean().item()
        1.0
    """

    def __init__(
        self,
        kind: str,
        walks: int,
        d_model: int | None,
        split: bool = False,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in FUSIONS:
            raise ValueError(f"`fuse` (={kind!r}) must be one of {', '.join(map(repr, FUSIONS))}.")
        if kind == "gate" and split:
            raise ValueError(
                f"`fuse` (={kind!r}) must be 'sum', 'mean' or 'concat' where `scan` splits the channels: "
                "each of them has one walk, and nothing to choose from."
            )
        self.kind, self.walks, self.split = kind, walks, split
        if walks == 1 or kind in ("sum", "mean"):
            return
        if d_model is None:
            raise ValueError(f"`fuse` (={kind!r}) needs `d_model`: the core does not tell its width.")
        if kind == "concat":
            self.proj = nn.Linear(d_model if split else walks * d_model, d_model, device=device, dtype=dtype)
        else:
            self.gate = nn.Linear(d_model, walks, device=device, dtype=dtype)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor, outputs: Iterable[Tensor]) -> Tensor:
        """Join `outputs`, the walks of the layer's input `x` `[B, L, C]`, taking one after another."""
        if self.walks == 1:
            return next(iter(outputs))
        if self.kind == "concat":
            return self.proj(torch.cat(list(outputs), -1))
        if self.split:
            return torch.cat(list(outputs), -1)
        if self.kind == "gate":
            weights = self.gate(x).softmax(-1)  # (B, L, P)
            return _sum(y * weights[..., i : i + 1].to(y.dtype) for i, y in enumerate(outputs))
        total = _sum(outputs)
        return total.mul_(1 / self.walks) if self.kind == "mean" else total

    def extra_repr(self) -> str:
        return f"{self.kind!r}, walks={self.walks}"


def _sum(outputs: Iterable[Tensor]) -> Tensor:
    """The sum of two or more tensors, which are needed one at a time."""
    rest = iter(outputs)
    total = next(rest) + next(rest)
    for y in rest:
        total.add_(y)  # in place: the tensor is our own, and no backward reads it
    return total
