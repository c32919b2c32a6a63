"""The effective receptive field of a model: how much each cell of the input moves one place of the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from nvsubq.viz.style import QUIET, bare, in_style, new_figure

HEAD = 26


def receptive_field(
    model: nn.Module,
    shape: Sequence[int],
    *,
    at: Sequence[int] | None = None,
    samples: int = 4,
    seed: int = 0,
) -> np.ndarray:
    """Mean absolute gradient, over inputs of noise, of one place of the output by each cell of the input.

    Luo et al. 2016 (arXiv:1701.04128). What is differentiated is the model's output at the place: of a model
    that labels cells the logits there; of one with `forward_features` the features there; of one that gives
    one answer for all, that answer.

    Args:
        model: maps `[B, C, *spatial]` to anything; it is run in evaluation mode and left as it was.
        shape: `[C, *spatial]` of its input.
        at: the place, in cells of the input; the middle without it.
        samples: inputs to average over.
        seed: of the noise.

    Returns:
        `[*spatial]`, the greatest 1.

    Example:
        >>> field = receptive_field(nn.Conv1d(1, 1, 3, padding=1), (1, 9))
        >>> (field > 0).astype(int).tolist()
        [0, 0, 0, 1, 1, 1, 0, 0, 0]
    """
    spatial = tuple(shape[1:])
    at = tuple(n // 2 for n in spatial) if at is None else tuple(at)
    if len(at) != len(spatial) or any(not 0 <= a < n for a, n in zip(at, spatial, strict=True)):
        raise ValueError(f"`at` (={at}) must be a cell of the input, whose spatial size is {spatial}.")
    like = next((p for p in model.parameters()), torch.zeros(()))
    noise = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(seed))
    x = noise.to(device=like.device, dtype=like.dtype).requires_grad_()
    training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            answer = _place(model, x, spatial, at)
            # A random mixture of the channels, so that none of them cancel by a norm over the channels.
            weights = torch.randn(answer.shape[1:], generator=torch.Generator().manual_seed(seed + 1))
            (gradient,) = torch.autograd.grad((answer * weights.to(answer)).sum(), x)
    finally:
        model.train(training)
    field = gradient.abs().double().mean((0, 1)).cpu().numpy()
    return field / max(field.max(), np.finfo(float).tiny)


def _place(model: nn.Module, x: Tensor, spatial: tuple[int, ...], at: tuple[int, ...]) -> Tensor:
    """The output at a place, `[B, channels]`."""
    y = model(x)
    if y.dim() == 2:
        if not hasattr(model, "forward_features"):
            return y
        features: Any = model.forward_features
        y = features(x).movedim(-1, 1)
        if y.dim() != x.dim():  # a class token lies beside the cells
            return y[..., -1]
    place = tuple(a * m // n for a, m, n in zip(at, y.shape[2:], spatial, strict=True))
    return y[(slice(None), slice(None), *place)]


@in_style
def receptive_map(
    field: np.ndarray, *, at: Sequence[int] | None = None, decades: int = 6, size: float = 260
) -> Figure:
    """A receptive field as a heat map on a logarithmic scale.

    Of a volume the three planes through the place are shown, of a signal a strip.

    Args:
        field: `[*spatial]`, rank 1 to 3, the greatest 1 (`receptive_field`).
        at: the place that was asked for, marked by a cross; the middle without it.
        decades: the scale goes from 1 down to 10 to the minus so many; what is less is black.
        size: of the longest side of a panel, in CSS pixels.

    Raises:
        ValueError: another rank.

    Example:
        >>> len(receptive_map(np.ones((6, 8))).axes)
        2
    """
    field = np.asarray(field, float)
    if not 1 <= field.ndim <= 3:
        raise ValueError(f"`field` (shape {field.shape}) must have rank 1 to 3.")
    at = tuple(n // 2 for n in field.shape) if at is None else tuple(at)
    panels: list[tuple[np.ndarray, tuple[int, ...], str]]
    if field.ndim == 3:
        planes = [(a, b) for a, b in ((0, 1), (0, 2), (1, 2))]
        panels = [
            (field.take(at[3 - a - b], axis=3 - a - b), (at[a], at[b]), f"axes {a} and {b}")
            for a, b in planes
        ]
    elif field.ndim == 2:
        panels = [(field, at, "")]
    else:
        panels = [(field[None], (0, at[0]), "")]
    width, height = len(panels) * (size + 16) + 62, size + HEAD if field.ndim > 1 else 90
    figure = new_figure(width, height)
    image: Any = None
    for i, (data, place, title) in enumerate(panels):
        side = height - HEAD
        axes = figure.add_axes((i * (size + 16) / width, 0.02, size / width, side / height - 0.02))
        bare(axes)
        axes.set_title(title, loc="left")
        shown = np.log10(np.maximum(data, 10.0**-decades))
        aspect: Any = "equal" if field.ndim > 1 else "auto"
        image = axes.imshow(
            shown, cmap="magma", vmin=-decades, vmax=0, interpolation="nearest", aspect=aspect
        )
        for colour, thickness in (("black", 3.4), ("white", 1.4)):  # seen on the bright and on the dark
            axes.plot(place[1], place[0], "+", color=colour, markersize=9, markeredgewidth=thickness)
    bar_axes = figure.add_axes((1 - 56 / width, 0.08, 12 / width, (height - HEAD) / height - 0.12))
    ticks = [-decades, 0] if field.ndim == 1 else list(range(-decades, 1, max(1, decades // 3)))
    bar = figure.colorbar(image, cax=bar_axes, ticks=ticks)
    bar.ax.set_yticklabels([f"1e{tick}" if tick else "1" for tick in ticks], color=QUIET)
    bar.outline.set_visible(False)
    return figure
