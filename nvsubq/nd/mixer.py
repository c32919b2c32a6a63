"""NDMixer: a 1-D core walked over the cells of an N-dimensional field."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from nvsubq.nd.factory import ModuleFactory
from nvsubq.nd.orders import scan_order
from nvsubq.nd.schedule import choose_scan
from nvsubq.ops.walks import plan_walk

__all__ = ["MambaND", "NDMixer"]

FUSIONS = ("sum", "mean")
SHARINGS = ("none",)


class NDMixer(nn.Module):
    """Walk the cells of a field in some order with a 1-D core, in one direction or in both.

    In row-major order the last axis is the fastest: in `[H, W]` the walk visits (0, 0), (0, 1), ..., so cells
    that touch vertically are `W` steps apart. With another `scan` the core sees the cells in that order, and
    its outputs go back to their cells; our cores read through a table for that, without a copy, a foreign
    core gets a permuted one. With `bidirectional` a second core, with weights of its own, walks the same list
    from its end, and the two outputs are fused. A core that is not causal (it has an attribute
    ``causal = False``, as attention may) sees the whole field anyway: it is built once and no order matters.

    Args:
        core: a factory or a lazy config of a module that maps `[B, L, C]` to `[B, L, C]`; called once for
            each direction.
        d_model: width `C`, passed on to the factory if its signature takes it and it is not bound there.
        layer_idx: index of the layer in its network, passed on likewise.
        bidirectional: walk in both directions.
        scan: order of the walk, as `scan_order` takes it, "hilbert" or "window(4)" for two; or
            `{"alternate": [order, ...]}`, one for each layer by its `layer_idx`, both ways in turn.
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
        scan: Any = "row_major",
        fuse: str = "sum",
        share: str = "none",
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("fuse", fuse, FUSIONS),
            ("share", share, SHARINGS),
        ):
            if value not in choices:
                raise ValueError(f"`{name}` (={value!r}) must be one of {', '.join(map(repr, choices))}.")
        if not isinstance(bidirectional, bool):
            raise TypeError(f"`bidirectional` (={bidirectional!r}) must be True or False.")
        self._order, self._from_end = choose_scan(scan, layer_idx, bidirectional)
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
        self._core_walks = _takes_walk(self.core_layer)

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
        order = None
        if self.causal and self._order != "row_major":
            order = scan_order(self._order, x.shape[1:-1], device=x.device)
        if self._walks_both_ways:
            out = self._both_ways(cells, order)
        else:
            out = self._walk(self.core_layer, cells, order, self._from_end)
        return out.reshape(x.shape)

    def _both_ways(self, cells: Tensor, order: Tensor | None) -> Tensor:
        together = getattr(self.core_layer, "walk_with", None)
        out = None
        if together is not None:
            out = together(self.core_layer_rev, cells, order, (self._from_end, True))
        if out is None:
            out = self._walk(self.core_layer, cells, order, self._from_end)
            out = out + self._walk(self.core_layer_rev, cells, order, True)
        if self.fuse == "mean":
            out = out.mul_(0.5)  # in place: the tensor is our own, and no backward reads the sum
        return out

    def _walk(self, core: nn.Module, cells: Tensor, order: Tensor | None, reverse: bool) -> Tensor:
        if order is None and not reverse:
            return _checked(core, core(cells), cells)
        if self._core_walks:
            walk = {"reverse": reverse} if order is None else {"order": order, "reverse": reverse}
            return _checked(core, core(cells, **walk), cells)
        if order is None:
            return _checked(core, core(cells.flip(1)), cells).flip(1)
        plan = plan_walk(cells.shape[1], order, reverse, device=cells.device)
        return plan.scatter(_checked(core, core(plan.gather(cells)), cells))

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
