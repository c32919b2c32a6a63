"""NDMixer: a 1-D core walked over the cells of an N-dimensional field."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nvsubq.nd.building import builders_of, built, directions, made_like, one_each, share_of
from nvsubq.nd.fusion import Fusion
from nvsubq.nd.schedule import Path, Schedule, plan_scan
from nvsubq.nd.streams import Beside
from nvsubq.nd.tables import order_name, order_table, slab_table
from nvsubq.ops.carry import Carry, carried
from nvsubq.ops.slabs import Slabs
from nvsubq.ops.tracing import exporting
from nvsubq.ops.walks import plan_walk

__all__ = ["MambaND", "NDMixer"]

SHARINGS = ("none", "all", "all+direction")


class NDMixer(nn.Module):
    """Walk the cells of a field with a 1-D core, in one order or several, in one direction or in both.

    In row-major order the last axis is the fastest: in `[H, W]` the walk visits (0, 0), (0, 1), ..., so cells
    that touch vertically are `W` steps apart. With another `scan` the core sees the cells in that order, and
    its outputs go back to their cells; our cores read through a table for that, without a copy, a foreign
    core gets a permuted one. Several walks, of several orders or both ways along them, have a core each, and
    their outputs are fused. A core that is not causal (it has an attribute ``causal = False``, as attention
    may) sees the whole field anyway: it is built once and no order matters.

    The cores are `core_layer` and, both ways, `core_layer_rev`, which walks from the end; those of further
    orders `core_layer_1`, `core_layer_1_rev`, and so on.

    Args:
        core: a factory or a lazy config of a module that maps `[B, L, C]` to `[B, L, C]`; called once for
            each walk. Or a list with one for each walk: the first order, the first from its end (both ways),
            the second, and so on.
        d_model: width `C`, passed on to the factory if its signature takes it and it is not bound there.
        layer_idx: index of the layer in its network, passed on likewise.
        bidirectional: walk each order in both directions.
        scan: an order, as `scan_order` takes it, "hilbert" or "window(4)" for two; a list of several for one
            layer; `{"split_channels": [order, ...]}`, several, each walk on its share of the channels, about
            as costly as one; or `{"alternate": [order, ...]}`, one for each layer by its `layer_idx`, both
            ways in turn.
        fuse: how several walks become one (`Fusion`): "sum", "mean" (the sum multiplies the variance at each
            layer), "concat" (a linear map of all) or "gate" (weights that each cell chooses).
        share: what the walks share: "none", "all" (one core), or "all+direction" (one core, which gets a
            learned vector for each walk added to its input).

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
        >>> cross = {"split_channels": ["row_major", "column_major"]}
        >>> NDMixer(Mamba, d_model=16, bidirectional=True, scan=cross).core_layer_1_rev.d_model
        4
    """

    slabs: Slabs | None = None
    """The processes that have a slab each of the field along its first axis (`nvsubq.parallel`)."""

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
        if share not in SHARINGS:
            raise ValueError(f"`share` (={share!r}) must be one of {', '.join(map(repr, SHARINGS))}.")
        if not isinstance(bidirectional, bool):
            raise TypeError(f"`bidirectional` (={bidirectional!r}) must be True or False.")
        self.bidirectional, self.scan, self.fuse, self.share = bidirectional, scan, fuse, share
        plan = plan_scan(scan, layer_idx, bidirectional)
        builders = builders_of(core, plan, share)
        width = share_of(d_model, len(plan.paths)) if plan.split else d_model

        first = built(builders[0], width, layer_idx, plan.split)
        self.causal = len(builders) > 1 or getattr(first, "causal", True) is not False
        if not self.causal:  # every walk would see the same cells: one does, and sees all channels
            if plan.split:
                first = built(builders[0], d_model, layer_idx)
            plan, builders, width = Schedule((Path("row_major", False),)), builders[:1], d_model
        shared = share != "none"
        self.paths = tuple(path._replace(core="core_layer") for path in plan.paths) if shared else plan.paths
        cores = [first]
        for build in one_each(builders, 1 if shared else len(self.paths))[1:]:
            cores.append(built(build, width, layer_idx, plan.split))
        if len({id(module) for module in cores}) < len(cores):
            raise ValueError("`core` must build a fresh module at each call: two walks got the same one.")
        for path, module in zip(self.paths, cores, strict=False):
            self.add_module(path.core, module)

        known = (width, builders[0].bound.get("d_model"), getattr(first, "d_model", None))
        width = next((value for value in known if isinstance(value, int)), None)
        self.split = plan.split
        self.d_model = width * len(self.paths) if width is not None and self.split else width
        made = made_like(first)
        self.fusion = Fusion(fuse, len(self.paths), self.d_model, self.split, **made)
        self.direction = directions(len(self.paths), width, made) if share == "all+direction" else None
        self._walking = {path.core: _takes_walk(getattr(self, path.core)) for path in self.paths}

    @property
    def paths(self) -> tuple[Path, ...]:
        """The walks of the layer."""
        return self._paths

    @paths.setter
    def paths(self, paths: tuple[Path, ...]) -> None:
        self._paths = paths
        self._orders = tuple(order_name(path.order) for path in paths)

    def forward(self, x: Tensor, spatial: Sequence[int] | None = None) -> Tensor:
        """Mix the cells of `x` `[B, *spatial, C]`, of any rank from 1 up and any layout in memory.

        With `spatial`, `x` is `[B, L + 1, C]`: the cells of that field, and last one more, a class token,
        which each walk visits in its middle.
        """
        if x.dim() < 3:
            raise ValueError(
                f"`x` has shape {tuple(x.shape)}; [B, *spatial, C] with at least one spatial axis is needed."
            )
        if self.d_model is not None and x.shape[-1] != self.d_model:
            raise ValueError(
                f"`x` has shape {tuple(x.shape)}, so its channels, the last axis, are {x.shape[-1]}; "
                f"`d_model` is {self.d_model}."
            )
        token = spatial is not None
        if spatial is not None and (x.dim() != 3 or x.shape[1] != math.prod(spatial) + 1):
            raise ValueError(
                f"`x` has shape {tuple(x.shape)}; with `spatial` (={tuple(spatial)}) it must be "
                f"[B, L + 1, C], here [B, {math.prod(spatial) + 1}, C]."
            )
        if self.slabs is not None and self.slabs.count > 1:
            return self._on_slab(x, self.slabs, token)
        shape = x.shape[1:-1] if spatial is None else torch.Size(spatial)
        cells = x.flatten(1, -2)  # (B, L, C), a view where memory allows
        out = (self._apart if self.split else self._together)(cells, shape, token)
        if out is None:
            out = self.fusion(cells, self._walks(cells, shape, token))
        return out.reshape(x.shape)

    def _on_slab(self, x: Tensor, slabs: Slabs, token: bool) -> Tensor:
        """Mix the cells of one slab of a field; what its walks carry goes on in the other processes."""
        if token or torch.compiler.is_compiling():
            what = "a class token" if token else "torch.compile"
            raise ValueError(f"{what} does not go with a field in slabs.")
        sizes = slabs.layout(x.shape)
        shape = x.shape[1:-1]
        plane = math.prod(shape[1:])
        tables: dict[str, Tensor | None] = {
            name: slab_table(path.order, shape, sizes, slabs.rank, x.device)
            for path, name in zip(self.paths, self._orders, strict=True)
            if name != "row_major"
        }
        cells = x.flatten(1, -2)
        # A shared core's weights may be cast for one walk and used by the next: these follow each other.
        overlap = slabs.overlap and cells.is_cuda and self.share == "none"
        beside = Beside(cells) if overlap else None
        with carried(Carry(slabs, [size * plane for size in sizes])):
            walks = self._walks(cells, shape, False, tables, beside)
            return self.fusion(cells, walks).reshape(x.shape)

    def _together(self, cells: Tensor, spatial: torch.Size, token: bool) -> Tensor | None:
        """Two walks along one order as one call, where the core knows how; else None."""
        if (
            len(self.paths) != 2
            or exporting()  # an exported program has one walk in each op
            or self.direction is not None
            or self.fuse not in ("sum", "mean")
        ):
            return None
        (one, other), core = self.paths, getattr(self, self.paths[0].core)
        walk_with = getattr(core, "walk_with", None)
        if walk_with is None or self._orders[0] != self._orders[1]:
            return None
        order = self._table(0, spatial, cells.device, token)
        out: Tensor | None = walk_with(getattr(self, other.core), cells, order, (one.reverse, other.reverse))
        return out.mul_(0.5) if out is not None and self.fuse == "mean" else out

    def _apart(self, cells: Tensor, spatial: torch.Size, token: bool) -> Tensor | None:
        """All walks over their shares of the channels as one call, where the core knows how; else None."""
        walk_apart = getattr(getattr(self, self.paths[0].core), "walk_apart", None)
        if walk_apart is None or self.direction is not None or exporting():
            return None
        _shares(cells, len(self.paths))  # checks the width
        orders = [self._table(i, spatial, cells.device, token) for i in range(len(self.paths))]
        others = [getattr(self, path.core) for path in self.paths[1:]]
        out: Tensor | None = walk_apart(others, cells, orders, [path.reverse for path in self.paths])
        return self.fusion.proj(out) if out is not None and self.fuse == "concat" else out

    def _walks(
        self,
        cells: Tensor,
        spatial: torch.Size,
        token: bool,
        tables: dict[str, Tensor | None] | None = None,
        beside: Beside | None = None,
    ) -> Iterator[Tensor]:
        """The outputs of the walks, one after another.

        `tables` has those of orders that are known; walks from the end run on the stream of `beside`.
        """
        count = len(self.paths)
        shares = _shares(cells, count) if self.split else [cells] * count
        tables = {} if tables is None else tables  # one table for an order's two ways
        for i, path in enumerate(self.paths):
            order, name = None, self._orders[i]
            if self.causal:
                if name not in tables:
                    tables[name] = self._table(i, spatial, cells.device, token)
                order = tables[name]
            if beside is None or not path.reverse:
                yield self._walk(path.core, self._told(shares[i], i), order, path.reverse)
                continue
            with beside:
                out = self._walk(path.core, self._told(shares[i], i), order, path.reverse)
            yield beside.joined(out)

    def _table(self, walk: int, spatial: torch.Size, device: torch.device, token: bool) -> Tensor | None:
        """The table of a walk's order; None where the cells lie in it."""
        if self._orders[walk] == "row_major" and not token:
            return None
        order = self._orders[walk] if torch.compiler.is_dynamo_compiling() else self.paths[walk].order
        return order_table(order, spatial, device, token)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.paths = vars(self).pop("paths", None) or self._paths  # a copied callable is another one

    def _told(self, cells: Tensor, walk: int) -> Tensor:
        """The cells as one walk's core gets them."""
        return cells if self.direction is None else cells + self.direction[walk].to(cells.dtype)

    def _walk(self, name: str, cells: Tensor, order: Tensor | None, reverse: bool) -> Tensor:
        core = getattr(self, name)
        if order is None and not reverse:
            return _checked(core, core(cells), cells)
        if self._walking[name]:
            walk = {"reverse": reverse} if order is None else {"order": order, "reverse": reverse}
            return _checked(core, core(cells, **walk), cells)
        if order is None:
            return _checked(core, core(cells.flip(1)), cells).flip(1)
        plan = plan_walk(cells.shape[1], order, reverse, device=cells.device)
        return plan.scatter(_checked(core, core(plan.gather(cells)), cells))

    def extra_repr(self) -> str:
        parts = [f"bidirectional={self.bidirectional}", f"scan={self.scan!r}", f"share={self.share!r}"]
        if not self.causal:
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


def _shares(cells: Tensor, walks: int) -> Sequence[Tensor]:
    if cells.shape[-1] % walks:
        raise ValueError(
            f"`x` has {cells.shape[-1]} channels, which must be divisible by the {walks} walks "
            "that split them."
        )
    return cells.chunk(walks, -1)


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
