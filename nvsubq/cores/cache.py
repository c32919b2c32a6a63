"""Inference caches: dicts of states (tensors, or lists of tensors), batch first, and an offset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def check_cache(inference_cache: dict[str, Any], batch: int) -> None:
    """Raise ValueError unless the cache has an offset and states for `batch` sequences."""
    if "seqlen_offset" not in inference_cache:
        raise ValueError(
            f"`inference_cache` must come from `allocate_inference_cache`: it has no 'seqlen_offset', "
            f"only {sorted(inference_cache)}."
        )
    for key, states in inference_cache.items():
        for state in states if isinstance(states, list) else (states,):
            if isinstance(state, Tensor) and state.shape[0] != batch:
                raise ValueError(
                    f"`inference_cache[{key!r}]` holds {state.shape[0]} sequences, the input has {batch}."
                )


def write_cache(inference_cache: dict[str, Any], advance: int, **states: Tensor | list[Tensor]) -> None:
    """Store new states (a tensor, or a list of them as in the cache) and advance the offset.

    With grad the cache gets the new tensors, attached to the graph. Without, the old ones are overwritten
    at their addresses, unless a graph or an inference mode that has ended still owns them.
    The dtypes of the cache are kept.
    """
    for key, new in states.items():
        old = inference_cache[key]
        if isinstance(new, list):
            inference_cache[key] = [_stored(o, n) for o, n in zip(old, new, strict=True)]
        else:
            inference_cache[key] = _stored(old, new)
    _alias_state(inference_cache)
    inference_cache["seqlen_offset"] += advance


def _stored(old: Tensor, new: Tensor) -> Tensor:
    if torch.is_grad_enabled() or _is_owned(old):
        return new.to(old.dtype)
    if torch.compiler.is_compiling() or new.data_ptr() != old.data_ptr():
        old.copy_(new)
    return old


def _map_states(inference_cache: dict[str, Any], change: Callable[[Tensor], Tensor]) -> None:
    for key, state in inference_cache.items():
        if isinstance(state, Tensor):
            inference_cache[key] = change(state)
        elif isinstance(state, list):
            inference_cache[key] = [change(one) for one in state]
    _alias_state(inference_cache)


def _alias_state(inference_cache: dict[str, Any]) -> None:
    if "ssm_state" in inference_cache:
        inference_cache["ssm_state"] = inference_cache["lrnn_state"]


def _is_owned(state: Tensor) -> bool:
    """Whether a graph, or an inference mode that has ended, keeps a state from being changed in place."""
    if torch.compiler.is_compiling():  # which can't be asked about inference mode
        return state.requires_grad
    return state.requires_grad or (state.is_inference() and not torch.is_inference_mode_enabled())


def own_states(inference_cache: dict[str, Any]) -> None:
    """Before a step without grad: replace states that a graph or an ended inference mode owns by copies."""
    _map_states(inference_cache, lambda state: state.detach().clone() if _is_owned(state) else state)


def detach_cache(inference_cache: dict[str, Any]) -> dict[str, Any]:
    """Cut the cache's tensors from the graph, in the same dict, and return it (truncated backpropagation).

    Example:
        >>> import torch
        >>> from nvsubq.cores import Mamba, detach_cache
        >>> core = Mamba(d_model=8)
        >>> cache = core.allocate_inference_cache(1, 4)
        >>> _ = core(torch.randn(1, 4, 8), inference_cache=cache)
        >>> detach_cache(cache)["lrnn_state"].requires_grad
        False
    """
    _map_states(inference_cache, Tensor.detach)
    return inference_cache


def clone_cache(inference_cache: dict[str, Any]) -> dict[str, Any]:
    """Copy a cache, so that one prefix may be continued in several ways.

    Example:
        >>> from nvsubq.cores import RGLRU, clone_cache
        >>> cache = RGLRU(8).allocate_inference_cache(1, 4)
        >>> branch = clone_cache(cache)
        >>> branch["lrnn_state"] is cache["lrnn_state"], branch["ssm_state"] is branch["lrnn_state"]
        (False, True)
    """
    copy = dict(inference_cache)
    _map_states(copy, torch.clone)
    return copy


def move_cache(inference_cache: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Copy a cache to another device (what is there already is not copied)."""
    copy = dict(inference_cache)
    _map_states(copy, lambda state: state.to(device))
    return copy


def reorder_cache(inference_cache: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Choose rows of the batch, in any number and order, as a beam search does.

    Args:
        inference_cache: of `B` sequences; it is not changed.
        rows: integers `[B']` in 0 .. B-1.

    Returns:
        a cache of B' sequences with memory of its own.

    Raises:
        ValueError: `rows` that are no integers `[B']`, or outside the batch.

    Example:
        >>> import torch
        >>> from nvsubq.cores import RGLRU, reorder_cache
        >>> cache = RGLRU(8).allocate_inference_cache(2, 4)
        >>> reorder_cache(cache, torch.tensor([1, 1, 0]))["lrnn_state"].shape
        torch.Size([3, 8, 1])
    """
    if rows.dim() != 1 or rows.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"`rows` (shape {list(rows.shape)}, {rows.dtype}) must be integers of shape [B'].")
    batch = next(len(state) for state in _states(inference_cache))
    if rows.device.type == "cpu" and rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < batch:
        raise ValueError(f"`rows` (={rows.tolist()}) must be rows of the cache, 0 .. {batch - 1}.")
    copy = dict(inference_cache)
    _map_states(copy, lambda state: state.index_select(0, rows.to(state.device)))
    return copy


def _states(inference_cache: dict[str, Any]) -> Iterator[Tensor]:
    for value in inference_cache.values():
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, Tensor):
                yield one
