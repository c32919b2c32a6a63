"""Softmax attention as a core: the baseline that users would pick instead of a recurrence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvsubq.cores.base import (
    DISCRETIZATIONS,
    LTV_LRNN,
    check_at_least,
    check_bool,
    check_step_input,
    parse_dtype,
)
from nvsubq.cores.cache import own_states
from nvsubq.ops.walks import Walk, plan_walk

_HEAD_WIDTH = 64


class Attention(LTV_LRNN):
    """Multi-head softmax attention along the walk (Vaswani et al., arXiv:1706.03762).

    `(q, k, v) = W_in h; y_k = sum_j softmax_j(q_k . k_j / sqrt(P)) v_j; out = W_out y`, with j up to k when
    causal, and within the sequence of cell k. There is no position code: positions are the backbone's.

    Args:
        d_model: width `C` of input and output.
        num_heads: heads `H`; by default as many as divide `d_model` into widths of at least 64, or one.
        causal: a cell sees those walked before it and itself; else all of its sequence. Caches need it.
        bias: biases of `in_proj` and `out_proj`.
        layer_idx: number of the layer, kept for those who cache by layer.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: `num_heads` does not divide `d_model`.

    Example:
        >>> import torch
        >>> from nvsubq.cores import Attention
        >>> core = Attention(d_model=8, num_heads=2)
        >>> core(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    discretizations = DISCRETIZATIONS["Attention"]
    capturable = False  # each step attends to one more key

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        *,
        causal: bool = True,
        bias: bool = False,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        super().__init__(None)
        check_bool(causal=causal, bias=bias)
        check_at_least(1, d_model=d_model)
        if num_heads is None:
            most = max(1, d_model // _HEAD_WIDTH)
            num_heads = next(heads for heads in range(most, 0, -1) if d_model % heads == 0)
        check_at_least(1, num_heads=num_heads)
        if d_model % num_heads:
            raise ValueError(f"`d_model` (={d_model}) must be divisible by `num_heads` (={num_heads}).")
        self.d_model, self.num_heads, self.causal = d_model, num_heads, causal
        self.head_width = d_model // num_heads
        self.layer_idx = layer_idx
        made: dict[str, Any] = {"device": device, "dtype": parse_dtype(dtype)}
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias, **made)  # rows: q, k, v
        self.out_proj = nn.Linear(d_model, d_model, bias=bias, **made)

    def reset_parameters(self) -> None:
        """Draw all parameters anew from torch's generator."""
        self.in_proj.reset_parameters()
        self.out_proj.reset_parameters()

    def forward(
        self,
        hidden_states: Tensor,
        integration_timesteps: Tensor | None = None,
        lengths: Tensor | None = None,
        inference_cache: dict[str, Any] | None = None,
        *,
        seq_idx: Tensor | None = None,
        order: Tensor | None = None,
        reverse: bool = False,
    ) -> Tensor:
        """Attend along the walk.

        Args:
            hidden_states: input `[B, L, C]`.
            integration_timesteps: must be None; attention has no clock.
            lengths: `[B]`, cells that are there, counted in memory order.
            inference_cache: cache to continue from; it is changed in place.
            seq_idx: `[B, L]`, the sequence of each cell; negative where there is none.
            order: `[L]`, the cells in the order of the walk.
            reverse: walk from the end.

        Returns:
            output `[B, L, C]`.

        Raises:
            ValueError: a wrong shape, timesteps, `reverse` with a cache, or a cache that is full or useless
                because the core is not causal.
        """
        self.refuse_timesteps(integration_timesteps)
        if inference_cache is not None:
            self._check_causal()
        options = self.parse_walk(hidden_states, lengths, inference_cache, seq_idx, order, reverse)
        options.pop("backend")
        walk = plan_walk(hidden_states.shape[1], device=hidden_states.device, **options)
        if not self.causal and walk.segment is None:
            walk = Walk(walk.length, 1)  # every cell sees every cell, in whichever order they are walked

        # From here on in steps of the walk: those of absent cells come last in their row and hold zeros.
        q, k, v = self.in_proj(walk.gather(hidden_states)).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.num_heads, self.head_width)) for t in (q, k, v))  # (B, L, H, P)
        if inference_cache is None:
            y = self._attend(q, k, v, None if walk.segment is None else self._mask(walk))
        else:
            y = self._attend_cached(q, k, v, walk, inference_cache)
        return walk.scatter(self.out_proj(y.flatten(2)))

    def step(
        self,
        hidden_states: Tensor,
        inference_cache: dict[str, Any],
        integration_timesteps: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Advance by one cell.

        Args:
            hidden_states: the cell `[B, 1, C]`.
            inference_cache: from `allocate_inference_cache`, changed in place.
            integration_timesteps: must be None.

        Returns:
            output `[B, 1, C]` and the cache.

        Raises:
            ValueError: a wrong shape, timesteps, a full cache, or not `causal`.
        """
        check_step_input(hidden_states, self.d_model, "hidden_states")
        return self.forward(hidden_states, integration_timesteps, None, inference_cache), inference_cache

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> dict[str, Any]:
        """Make the cache of a walk that has not begun.

        Args:
            batch_size: `B`.
            max_seqlen: cells `S` that it has room for.
            dtype: of keys and values (default: the weights').

        Returns:
            `key_cache` and `value_cache` `[B, S, H, P]`, `visible` `[B, S]`, true where a cached cell belongs
            to the sequence that goes on, and `seqlen_offset`.

        Raises:
            ValueError: not `causal`.
        """
        self._check_causal()
        weight = self.in_proj.weight
        dtype = weight.dtype if dtype is None else parse_dtype(dtype)
        shape = (batch_size, max_seqlen, self.num_heads, self.head_width)
        return {
            "key_cache": torch.zeros(shape, dtype=dtype, device=weight.device),
            "value_cache": torch.zeros(shape, dtype=dtype, device=weight.device),
            "visible": torch.zeros(batch_size, max_seqlen, dtype=torch.bool, device=weight.device),
            "seqlen_offset": 0,
        }

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attend with `q` `[B, L, H, P]` to `k`, `v` `[B, S, H, P]`; `mask` `[B, L, S]` true where seen."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if mask is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
        return y.transpose(1, 2)

    def _mask(self, walk: Walk) -> Tensor:
        """Which steps each step sees, `[B, L, L]`."""
        assert walk.segment is not None
        segment = walk.segment[..., 0]
        mask = segment[:, :, None] == segment[:, None, :]
        if self.causal:  # absent steps come last: none that is there sees them
            return mask.tril()
        if walk.present is not None:
            # An absent step sees itself: a softmax over nothing would be NaN.
            itself = torch.eye(walk.length, dtype=torch.bool, device=mask.device)
            mask = mask & walk.present[:, None, :] | itself
        return mask

    def _attend_cached(self, q: Tensor, k: Tensor, v: Tensor, walk: Walk, cache: dict[str, Any]) -> Tensor:
        """Append keys and values to the cache, advance it, and attend to all of it that is visible."""
        batch, length = q.shape[:2]
        start, room = cache["seqlen_offset"], cache["visible"].shape[1]
        end = start + length
        if end > room:
            raise ValueError(
                f"`inference_cache` has room for `max_seqlen` (={room}) cells: "
                f"its `seqlen_offset` (={start}) and L (={length}) need {end}."
            )
        if not torch.is_grad_enabled():
            own_states(cache)
        for key, new in (("key_cache", k), ("value_cache", v)):
            cache[key] = _store(cache[key], new, start)
        past, cache["seqlen_offset"] = cache["visible"][:, :start], end
        if walk.segment is None:
            cache["visible"] = _store(cache["visible"], past.new_ones(batch, length), start)
            if start == 0:
                return self._attend(q, k, v, None)
            within = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
            seen = past[:, None].expand(-1, length, -1)
            mask = torch.cat([seen, within.expand(batch, -1, -1)], 2)
        else:
            # The cache belongs to the first sequence of this walk, and is left to the last one.
            segment = walk.segment[..., 0]
            mask = torch.cat([past[:, None] & (segment == 0)[..., None], self._mask(walk)], 2)
            last = segment[:, -1:]
            goes_on = segment == last
            if walk.present is not None:
                goes_on = goes_on & walk.present
            cache["visible"] = _store(cache["visible"], torch.cat([past & (last == 0), goes_on], 1), 0)
        k, v = (cache[key][:, :end].to(q.dtype) for key in ("key_cache", "value_cache"))
        return self._attend(q, k, v, mask)

    def _check_causal(self) -> None:
        if not self.causal:
            raise ValueError(
                "`causal` (=False) must be True for caches and `step`: "
                "attention that is not causal sees cells to come."
            )

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, num_heads={self.num_heads}, causal={self.causal}"


def _store(old: Tensor, new: Tensor, start: int) -> Tensor:
    """Put `new` `[B, L, ...]` into `old` at `start`: in place without grad, else into a copy in the graph."""
    new = new.to(old.dtype)
    if torch.is_grad_enabled():
        return torch.slice_scatter(old, new, dim=1, start=start, end=start + new.shape[1])
    old[:, start : start + new.shape[1]] = new
    return old
