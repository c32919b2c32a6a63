"""NDMixer: a 1-D core walked over the cells of an N-dimensional field."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from nvsubq.nd.factory import ModuleFactory

__all__ = ["MambaND", "NDMixer"]

SCANS = ("row_major",)
FUSIONS = ("sum", "mean")
SHARINGS = ("none",)


class NDMixer(nn.Module):
    """Walk the cells of a field in row-major order with a 1-D core, in one direction or in both.

    The spatial axes are flattened into one sequence whose last axis is the fastest: in `[H, W]` the walk
    visits (0, 0), (0, 1), ..., so cells that touch vertically are `W` steps apart. With `bidirectional` a
    second core, with weights of its own, walks the same list from its end, and the two outputs are fused. A
    core that is not causal (it has an attribute ``causal = False``, as attention may) sees the whole field
    anyway and is built once.

    Args:
        core: a factory or a lazy config of a module that maps `[B, L, C]` to `[B, L, C]`; called once for
            each direction.
        d_model: width `C`, passed on to the factory if its signature takes it and it is not bound there.
        layer_idx: index of the layer in its network, passed on likewise.
        bidirectional: walk in both directions.
        scan: order of the walk; "row_major".
        fuse: how two directions become one: "sum", or "mean" (the sum doubles the variance at each layer).
        share: what the two directions share; "none".

    Raises:
        TypeError: `core` is a built module, or builds something that is no module.
        ValueError: `d_model` differs from the width bound in the core; an option has an unknown value; in
            `forward`, a shape that does not fit. Errors of the core's constructor reach the caller as they
            are.

    Example:
        >>> import torch
        >>> from nvsubq import NDMixer
        >>> from nvsubq.cores import Mamba
        >>> mixer = NDMixer(Mamba, d_model=16, bidirectional=True)
        >>> mixer(torch.randn(2, 5, 7, 16)).shape
        torch.Size([2, 5, 7, 16])
    """

    def __init__(
        self,
        core: Any,
        *,
        d_model: int | None = None,
        layer_idx: int | None = None,
        bidirectional: bool = False,
        scan: str = "row_major",
        fuse: str = "sum",
        share: str = "none",
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("scan", scan, SCANS),
            ("fuse", fuse, FUSIONS),
            ("share", share, SHARINGS),
        ):
            if value not in choices:
                raise ValueError(f"`{name}` (={value!r}) must be one of {', '.join(map(repr, choices))}.")
        if not isinstance(bidirectional, bool):
            raise TypeError(f"`bidirectional` (={bidirectional!r}) must be True or False.")
        build = ModuleFactory(core, "core")
        _check_width(d_model, build.bound.get("d_model"))

        self.core_layer = build(d_model=d_model, layer_idx=layer_idx)
        _check_width(d_model, getattr(self.core_layer, "d_model", None))
        self.causal = getattr(self.core_layer, "causal", True) is not False
        if bidirectional and self.causal:
            self.core_layer_rev = build(d_model=d_model, layer_idx=layer_idx)
            if self.core_layer_rev is self.core_layer:
                raise ValueError(
                    "`core` must build a fresh module at each call: both directions got the same one."
                )
        self.bidirectional = bidirectional
        self.scan, self.fuse, self.share = scan, fuse, share
        known = (d_model, build.bound.get("d_model"), getattr(self.core_layer, "d_model", None))
        self.d_model = next((width for width in known if isinstance(width, int)), None)
        self._walks_both_ways = "core_layer_rev" in self._modules
        self._core_reverses = _takes_walk(self.core_layer)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the cells of `x` `[B, *spatial, C]`, of any rank from 1 up and any layout in memory."""
        if x.dim() < 3:
            raise ValueError(
                f"`x` has shape {tuple(x.shape)}; [B, *spatial, C] with at least one spatial axis is needed."
            )
        if self.d_model is not None and x.shape[-1] != self.d_model:
            raise ValueError(
                f"`x` has shape {tuple(x.shape)}, so its channels, the last axis, are {x.shape[-1]}; "
                f"`d_model` is {self.d_model}."
            )
        cells = x.flatten(1, -2)  # (B, L, C), a view where memory allows
        out = _checked(self.core_layer, self.core_layer(cells), cells)
        if self._walks_both_ways:
            back = _checked(self.core_layer_rev, self._walk_back(cells), cells)
            out = out + back
            if self.fuse == "mean":
                out = out.mul_(0.5)  # in place: the tensor is our own, and no backward reads the sum
        return out.reshape(x.shape)

    def _walk_back(self, cells: Tensor) -> Tensor:
        if self._core_reverses:
            return self.core_layer_rev(cells, reverse=True)
        out = self.core_layer_rev(cells.flip(1))
        return _checked(self.core_layer_rev, out, cells).flip(1)

    def extra_repr(self) -> str:
        parts = [f"bidirectional={self.bidirectional}", f"scan={self.scan!r}", f"fuse={self.fuse!r}"]
        if self.bidirectional and not self.causal:
            parts.append("core is not causal: built once")
        return ", ".join(parts)


class MambaND(NDMixer):
    """The class that nvSubquadratic calls ``Mamba``: `NDMixer` under its signature and parameter names.

    Args:
        mamba_layer_cfg: a lazy config (or a factory) of a module that maps `[B, L, C]` to `[B, L, C]`.
        bidirectional: add a second core that walks the flattened field from its end; the outputs are summed.

    Raises:
        Exception: whatever the core's constructor raises.

    Example:
        >>> import torch
        >>> from nvsubq import LazyConfig, MambaND
        >>> from nvsubq.cores import Mamba
        >>> mixer = MambaND(LazyConfig(Mamba)(d_model=16), bidirectional=True)
        >>> mixer(torch.randn(2, 4, 4, 16)).shape
        torch.Size([2, 4, 4, 16])
    """

    def __init__(self, mamba_layer_cfg: Any, bidirectional: bool = False) -> None:
        super().__init__(mamba_layer_cfg, bidirectional=bidirectional)


def _check_width(d_model: int | None, other: Any) -> None:
    if d_model is not None and isinstance(other, int) and other != d_model:
        raise ValueError(
            f"`d_model` (={d_model}) differs from the `d_model` (={other}) that is bound in `core`; "
            f"leave the core's out, or make them equal."
        )


def _takes_walk(core: nn.Module) -> bool:
    """Whether `core.forward` names both `order` and `reverse`; a bare ``**kwargs`` might swallow them."""
    try:
        parameters = inspect.signature(core.forward).parameters
    except (TypeError, ValueError):
        return False
    return "order" in parameters and "reverse" in parameters


def _checked(core: nn.Module, out: Any, cells: Tensor) -> Tensor:
    if not isinstance(out, Tensor):
        raise TypeError(f"`core` ({type(core).__name__}) must return a tensor, not {type(out).__name__}.")
    if out.shape != cells.shape:
        raise ValueError(
            f"`core` ({type(core).__name__}) must return the shape it is given, {tuple(cells.shape)}, "
            f"not {tuple(out.shape)}."
        )
    return out
