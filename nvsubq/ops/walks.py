"""Walks: the order in which an op visits the cells, parsed and checked once, then used as an index table.

A walk visits L steps. Without `order` step k visits cell k; with it cell `order[k]`; `reverse` runs the same
list from its end. With S > 1 the channels (heads, groups) are S equal blocks, each with a walk of its own.

    walk = plan_walk(L, order, reverse, seq_idx=seq_idx, device=x.device)
    x = walk.gather(x)       # [B, L, D, ...] cells -> steps; axis 2 holds the S blocks, absent steps are 0
    dt = walk.spread(dt)     # [B, L, ...] cells -> [B, L, S, ...] steps, for what all blocks share
    ...                      # scan over steps 0 .. L-1; see `starts`, `present`, `segment`, `count`
    y = walk.scatter(y)      # [B, L, D, ...] steps -> cells, 0 at absent cells

With `seq_idx` the steps of a row are compacted: its present cells come first, in walk order, its absent ones
last. So step k - 1 is always the present cell walked before step k, for convolution taps too. The tables then
have a batch axis. All moves are differentiable, any number of times, without float atomics.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.arguments import Arguments, integers


@dataclass(frozen=True, eq=False)
class Walk:
    """A checked walk over L cells by S blocks of channels.

    Args:
        length: L.
        blocks: S.
        index: int64, the cell visited at each step: `[L, S]`, or `[B, L, S]` where rows differ; None: cell k.
        inverse: int64, the step at which each cell is visited, shaped like `index`.
        segment: int32 `[B, L, S]`, the number of the sequence that a step belongs to, counted along the walk
            from 0; absent steps carry the last number. None without `seq_idx`: one sequence.
        count: int64 `[B]`, how many cells of a row are present; None: all L.
    """

    length: int
    blocks: int
    index: Tensor | None = None
    inverse: Tensor | None = None
    segment: Tensor | None = None
    count: Tensor | None = None

    @property
    def identity(self) -> bool:
        """Whether step k is cell k, everywhere."""
        return self.index is None

    @property
    def starts(self) -> Tensor | None:
        """bool `[B, L, S]`: drop the state before this step. Never true at step 0. None without `seq_idx`."""
        if self.segment is None:
            return None
        changed = self.segment[:, 1:] != self.segment[:, :-1]
        return torch.cat([torch.zeros_like(self.segment[:, :1], dtype=torch.bool), changed], 1)

    @property
    def present(self) -> Tensor | None:
        """bool `[B, L]`: the step visits a cell that is there (the same for all blocks). None: all are."""
        if self.count is None:
            return None
        return torch.arange(self.length, device=self.count.device) < self.count[:, None]

    def gather(self, x: Tensor) -> Tensor:
        """Bring `[B, L, D, ...]` from cells to steps; axis 2 (D, H or G) holds the S blocks.

        Absent steps are 0. With one block `[B, L]` will do as well.
        """
        if self.index is not None and self.inverse is not None:
            x = _Permute.apply(x, self.index, self.inverse)
        return self._clear(x)

    def spread(self, x: Tensor) -> Tensor:
        """Bring `[B, L, ...]`, which all blocks share, to the steps of each block: `[B, L, S, ...]`.

        Its gradient is a sum over the blocks, so cast to the accumulation dtype first.
        """
        return self.gather(x.unsqueeze(2).expand(*x.shape[:2], self.blocks, *x.shape[2:]))

    def scatter(self, y: Tensor) -> Tensor:
        """Bring `[B, L, D, ...]` from steps back to cells, with 0 at absent cells."""
        y = self._clear(y)
        if self.index is not None and self.inverse is not None:
            y = _Permute.apply(y, self.inverse, self.index)
        return y

    def _clear(self, x: Tensor) -> Tensor:
        present = self.present
        if present is None:
            return x
        return x.masked_fill(~present.reshape(*present.shape, *[1] * (x.dim() - 2)), 0)


def plan_walk(
    length: int,
    order: Tensor | None = None,
    reverse: bool | Sequence[bool] = False,
    *,
    seq_idx: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Walk:
    """Check `order` and `reverse` and turn them into a `Walk` on `device`.

    The plan is cached per `order` and `seq_idx` tensor until one is changed or freed; asking again is cheap.

    Args:
        length: number of cells L.
        order: int32 or int64 `[L]` or `[S, L]`, each row a permutation of 0 .. L-1; None: 0, 1, ..., L-1.
        reverse: one bool for all blocks, or S of them.
        seq_idx: integers `[B, L]` by cell; where it changes along the walk a sequence starts; < 0: not there.
        device: where the tables live; by default that of `seq_idx` or `order`, else the CPU.

    Raises:
        ValueError: `order` is no permutation, or S differs between `order` and `reverse`.

    Example:
        >>> walk = plan_walk(3, torch.tensor([2, 0, 1]), reverse=True)
        >>> walk.gather(torch.tensor([[10.0, 11.0, 12.0]])).tolist()
        [[11.0, 10.0, 12.0]]
    """
    if device is None:
        device = next((t.device for t in (seq_idx, order) if isinstance(t, Tensor)), "cpu")
    # The tables become part of the graph, or are fake; there no value can be checked, and none remembered.
    if torch.compiler.is_compiling() or torch._C._get_dispatch_mode(_FAKE) is not None:
        walk = _fresh(length, order, _directions(reverse), torch.device(device))
        return walk if seq_idx is None else _with_sequences(walk, seq_idx)
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _captured(length, order, _directions(reverse), seq_idx, device)
    walk = _cached(length, order, _directions(reverse), device)
    if seq_idx is None:
        return walk
    if any(t is not None and t.is_inference() for t in (order, seq_idx)):  # a change would go unseen
        return _with_sequences(walk, seq_idx)
    return _cached_sequences(walk, seq_idx)


def check_walk(check: Arguments, given: Mapping[str, Any], of: str) -> int:
    """Check a call's `seq_idx`, `order` and `reverse` for S blocks of the axis with letter `of`; give S."""
    check.table("seq_idx", given["seq_idx"])
    walk = plan_walk(check.sizes["L"], given["order"], given["reverse"], device=check.device)
    check.blocks(walk.blocks, of)
    return walk.blocks


def _directions(reverse: bool | Sequence[bool]) -> tuple[bool, ...]:
    if reverse is False or reverse is True:
        return (reverse,)
    directions = (
        (reverse,) if isinstance(reverse, bool) else tuple(reverse) if isinstance(reverse, Sequence) else ()
    )
    if not directions or not all(isinstance(direction, bool) for direction in directions):
        raise ValueError(f"`reverse` (={reverse!r}) must be a bool, or one bool for each of S blocks.")
    return directions


class _Plans:
    """The plans of one table, `order` or `seq_idx`, valid for one version of its memory."""

    def __init__(self, table: Tensor, forget) -> None:
        self.table = weakref.ref(table, forget)
        self.stamp = _stamp(table)
        self.walks: dict[tuple, Walk] = {}


_plans: dict[int, _Plans] = {}
_FAKE = torch._C._TorchDispatchModeKey.FAKE  # type: ignore[attr-defined]


def _stamp(table: Tensor) -> tuple[int, int]:
    return table.data_ptr(), table._version


def _plans_of(table: Tensor, check: Callable[[], None]) -> _Plans:
    """The plans of a table, none yet where it is new or has changed; then it is checked first."""
    plans = _plans.get(id(table))
    if plans is None or plans.table() is not table or plans.stamp != _stamp(table):
        check()
        identity = id(table)
        plans = _plans[identity] = _Plans(table, lambda _: _plans.pop(identity, None))
    return plans


def _cached(length: int, order: Tensor | None, directions: tuple[bool, ...], device: torch.device) -> Walk:
    if order is None:
        return _plan_row_major(length, directions, device)
    if isinstance(order, Tensor) and order.is_inference():  # carries no version: a change would go unseen
        _check_order(length, order)
        return _fresh(length, order, directions, device)
    plans = _plans_of(order, lambda: _check_order(length, order))
    key = (length, directions, device)
    if key not in plans.walks:
        plans.walks[key] = _lasting(length, order, directions, device)
    return plans.walks[key]


def _cached_sequences(walk: Walk, seq_idx: Tensor) -> Walk:
    plans = _plans_of(seq_idx, lambda: None)
    key = (walk,)  # by identity, and kept alive by being the key
    if key not in plans.walks:
        with torch.inference_mode(False), torch.no_grad():  # what is cached must serve training as well
            plans.walks[key] = _stamped(_with_sequences(walk, seq_idx), seq_idx.device)
    return plans.walks[key]


_row_major: dict[tuple, Walk] = {}
_MOST_ROW_MAJOR = 256


def _plan_row_major(length: int, directions: tuple[bool, ...], device: torch.device) -> Walk:
    key = (length, directions, device)
    walk = _row_major.get(key)
    if walk is None:
        if len(_row_major) >= _MOST_ROW_MAJOR:
            _row_major.clear()
        walk = _row_major[key] = _lasting(length, None, directions, device)
    return walk


def _lasting(length: int, order: Tensor | None, directions: tuple[bool, ...], device: torch.device) -> Walk:
    with torch.inference_mode(False), torch.no_grad():  # what is cached must serve training as well
        return _stamped(_fresh(length, order, directions, device), device)


def _stamped(walk: Walk, device: torch.device) -> Walk:
    """Note when a walk's tables are made, for other streams that read them (`made`)."""
    if device.type == "cuda" and not walk.identity:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        vars(walk)["_made"] = event
    return walk


def made(walk: Walk) -> torch.cuda.Event | None:
    """What a stream has to wait for before it reads the tables of a cached walk on a CUDA device."""
    event: torch.cuda.Event | None = vars(walk).get("_made")
    return event


# Walks that graphs have captured: a replay reads their tables, whatever becomes of what they came from.
_in_graphs: dict[int, Walk] = {}


def _captured(
    length: int,
    order: Tensor | None,
    directions: tuple[bool, ...],
    seq_idx: Tensor | None,
    device: torch.device,
) -> Walk:
    """Plan a walk while a CUDA graph is captured: `order` stays as it is now, replays read `seq_idx` anew."""
    key = (length, directions, device)
    if order is None:
        walk = _row_major.get(key)
    else:
        plans = _plans.get(id(order))
        known = plans is not None and plans.table() is order and plans.stamp == _stamp(order)
        walk = plans.walks.get(key) if plans is not None and known else None
    if (
        walk is None
    ):  # nothing was run before: the tables become part of the graph, and no value can be checked
        walk = _fresh(length, order, directions, device)
    elif not walk.identity:
        _in_graphs[id(walk)] = walk
    return walk if seq_idx is None else _with_sequences(walk, seq_idx)


def _check_order(length: int, order: Tensor) -> None:
    if isinstance(order, Tensor) and order.dim() == 2:
        integers("order", order, (None, length), f"[S, L] with L = {length}")
    else:
        integers("order", order, (length,), "[L] or [S, L], here [L]")
    rows = _rows(order)
    if not len(rows):
        raise ValueError(f"`order` (shape {list(order.shape)}) must have at least one row.")
    cells = torch.arange(length, device=order.device, dtype=order.dtype)
    wrong = (rows.sort(dim=1).values != cells).any(1).nonzero().flatten()
    if len(wrong):
        row = rows[int(wrong[0])]
        what = f"row {int(wrong[0])} of `order`" if order.dim() == 2 else "`order`"
        raise ValueError(f"{what} (={_preview(row)}) must be a permutation of 0 .. {length - 1}.")


def _rows(order: Tensor) -> Tensor:
    return order.detach() if order.dim() == 2 else order.detach()[None]


def _preview(row: Tensor) -> str:
    head = ", ".join(str(value) for value in row[:8].tolist())
    return f"[{head}{', ...' if len(row) > 8 else ''}]"


def _fresh(length: int, order: Tensor | None, directions: tuple[bool, ...], device: torch.device) -> Walk:
    if order is None and not any(directions):
        return Walk(length, len(directions))
    rows = _rows(torch.arange(length, device=device) if order is None else order)
    blocks = max(len(rows), len(directions))
    for name, count in (("order", len(rows)), ("reverse", len(directions))):
        if count not in (1, blocks):
            raise ValueError(
                f"`order` names {len(rows)} walks and `reverse` {len(directions)}; "
                f"`{name}` must name 1 or {blocks}."
            )
    rows = rows.to(device=device, dtype=torch.int64, copy=True).expand(blocks, length)
    steps = [rows[s].flip(0) if directions[s % len(directions)] else rows[s] for s in range(blocks)]
    index = torch.stack(steps, 1)
    return Walk(length, blocks, index, _invert(index, 0))


def _invert(index: Tensor, axis: int) -> Tensor:
    shape = [1] * index.dim()
    shape[axis] = -1
    steps = torch.arange(index.shape[axis], device=index.device).reshape(shape).expand_as(index)
    return torch.empty_like(index).scatter_(axis, index, steps)


def _with_sequences(walk: Walk, seq_idx: Tensor) -> Walk:
    batch, length = seq_idx.shape
    index = walk.index
    steps = seq_idx[:, :, None].expand(batch, length, walk.blocks)
    if index is not None:
        steps = steps.gather(1, index.expand(batch, length, walk.blocks))
    # Reading the table back would stall a GPU, so only the CPU looks whether any cell is absent at all.
    # So does compiled code, which may not branch on values.
    readable = seq_idx.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and not bool((seq_idx < 0).any()):
        return Walk(length, walk.blocks, index, walk.inverse, _number(steps, None))
    first_present = (steps < 0).to(torch.int8).argsort(dim=1, stable=True)
    steps = steps.gather(1, first_present)
    if index is not None:
        first_present = index.expand_as(first_present).gather(1, first_present)
    count = (seq_idx >= 0).sum(1)
    return Walk(length, walk.blocks, first_present, _invert(first_present, 1), _number(steps, count), count)


def _number(steps: Tensor, count: Tensor | None) -> Tensor:
    changed = steps[:, 1:] != steps[:, :-1]
    if count is not None:
        changed = changed & (steps[:, 1:] >= 0)
    first = torch.zeros_like(steps[:, :1], dtype=torch.int32)
    return torch.cat([first, changed.cumsum(1, dtype=torch.int32)], 1)


class _Permute(torch.autograd.Function):
    """A permutation of the steps; its backward is the inverse permutation, a gather again."""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(index, inverse)
        return _take(x, index)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        index, inverse = ctx.saved_tensors
        return _Permute.apply(grad, inverse, index), None, None


def _take(x: Tensor, index: Tensor) -> Tensor:
    blocks = index.shape[-1]
    if index.dim() == 2 and blocks == 1:
        return x.index_select(1, index[:, 0])
    if blocks == 1:
        return x[torch.arange(len(x), device=x.device)[:, None], index[..., 0]]
    block = torch.arange(blocks, device=x.device)
    split = x.unflatten(2, (blocks, x.shape[2] // blocks))
    if index.dim() == 2:
        return split[:, index, block].flatten(2, 3)
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    return split[rows, index, block].flatten(2, 3)
