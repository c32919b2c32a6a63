"""The first-order recurrence h = a h + b and its gradients, by the kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.native.walking import NO_TABLES, Tables
from nvsubq.ops.numerics import complex_of
from nvsubq.ops.triton.launch import PIECE, Cut, given_tables, on, power_of_two, type_of

TILE, MOST_CHANNELS = 8, 128
CHUNK, MOST_UNCUT = 256, 512
FLIPPED, INITIAL, KEEP, FIXED_A, COMPLEX_A, COMPLEX_B = 8, 16, 32, 256, 512, 1024


@dataclass
class Recurrence:
    """h = a h + b over the steps of a walk.

    Args:
        a: `[B, L, D]` or `[D]`, readable, real or complex.
        b: `[B, L, D]`, readable, real or complex.
        dtype: fp32 or fp64, in which it runs.
        tables: of the walk.
        flipped: walk from the last cell to the first; then there are no tables.
        uncut: one program walks all steps.
    """

    a: Tensor
    b: Tensor
    dtype: torch.dtype
    tables: Tables = NO_TABLES
    flipped: bool = False
    uncut: bool = False
    cut: Cut = field(init=False)

    def __post_init__(self) -> None:
        length = self.b.shape[1]
        self.cut = Cut.of(length, CHUNK, max(MOST_UNCUT, length if self.uncut else 0))

    @property
    def is_complex(self) -> bool:
        return self.a.is_complex() or self.b.is_complex()

    @property
    def kind(self) -> torch.dtype:
        """Of states."""
        return complex_of(self.dtype) if self.is_complex else self.dtype

    def forward(
        self, initial: Tensor | None, y_dtype: torch.dtype, *, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give h in `y_dtype`, the final state, and the states that are kept."""
        batch, _, width = self.b.shape
        y = self.b.new_empty(self.b.shape, dtype=y_dtype)
        saved = self.b.new_empty(batch, self.cut.pieces if keep else 0, width, dtype=self.kind)
        final = self.b.new_empty(batch, width, dtype=self.kind)
        if not y.numel():
            return y, final.zero_() if initial is None else final.copy_(initial), saved
        initial = None if initial is None else initial.to(self.kind).contiguous()
        begins = final
        if self.cut.chunks > 1:
            decays, states = (self._between() for _ in range(2))
            self._launch_forward(final, final, y, final, saved, decays, states, 0, ends=True)
            begins = Recurrence(decays, states, self.dtype, uncut=True).forward(
                initial, self.kind, keep=False
            )[0]
        flags = (KEEP if keep else 0) | (0 if initial is None else INITIAL)
        given = final if initial is None else initial
        self._launch_forward(given, begins, y, final, saved, final, final, flags, ends=False)
        return y, final, saved

    def backward(self, d_y: Tensor, d_final: Tensor | None, saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give the gradients of a, b and the initial state; the last in the dtype of states."""
        batch, _, width = self.b.shape
        fixed = self.a.dim() == 1
        d_b = self.b.new_empty(self.b.shape)
        d_a = self.a.new_empty(self.a.shape)
        d_initial = self.b.new_empty(batch, width, dtype=self.kind)
        d_final = torch.zeros_like(d_initial) if d_final is None else d_final.to(self.kind).contiguous()
        if not d_b.numel():
            return d_a.zero_(), d_b, d_final.clone()
        part = complex_of(self.dtype) if self.a.is_complex() else self.dtype
        d_fixed = self._between(part) if fixed else d_a
        begins = d_initial
        if self.cut.chunks > 1:
            decays, grads = (self._between() for _ in range(2))
            self._launch_backward(
                d_y, d_final, begins, saved, decays, grads, d_a, d_b, d_fixed, d_initial, ends=True
            )
            begins = Recurrence(decays, grads, self.dtype, flipped=True, uncut=True).forward(
                d_final, self.kind, keep=False
            )[0]
        self._launch_backward(
            d_y, d_final, begins, saved, d_initial, d_initial, d_a, d_b, d_fixed, d_initial, ends=False
        )
        return d_fixed.sum((0, 1)).to(self.a.dtype) if fixed else d_a, d_b, d_initial

    def _between(self, dtype: torch.dtype | None = None) -> Tensor:
        batch, _, width = self.b.shape
        return self.b.new_empty(batch, self.cut.chunks, width, dtype=dtype or self.kind)

    def _shared(self) -> tuple[dict[str, Any], dict[str, Any], int]:
        """What both kernels take, the sizes of their tiles, and the number of programs."""
        batch, length, width = self.b.shape
        found, flags, index_row = given_tables(self.tables, self.b.device)
        flags |= FLIPPED if self.flipped else 0
        flags |= COMPLEX_A if self.a.is_complex() else 0
        flags |= COMPLEX_B if self.b.is_complex() else 0
        flags |= FIXED_A if self.a.dim() == 1 else 0
        blocks = self.tables.blocks
        share = width // blocks
        BD = min(power_of_two(share), MOST_CHANNELS)
        per_part = -(-share // BD)
        a_row, a_cell = (0, 0) if self.a.dim() == 1 else self.a.stride()[:2]
        named = {
            "a": _parts(self.a), "b": _parts(self.b),
            "index": found[0], "segment": found[1], "count": found[2], "index_row": index_row,
            "a_row": a_row, "a_cell": a_cell, "b_row": self.b.stride(0), "b_cell": self.b.stride(1),
            "length": length, "width": width, "blocks": blocks, "per_part": per_part, "share": share,
            "chunks": self.cut.chunks, "pieces": self.cut.pieces, "flags": flags,
        }  # fmt: skip
        sizes = {
            "ACC": type_of(self.dtype), "COMPLEX": self.is_complex, "WALKS": bool(self.tables.named),
            "T": TILE, "BD": BD,
            "CHUNK": self.cut.chunk, "PIECE": PIECE, "num_warps": max(1, BD // 32),
        }  # fmt: skip
        return named, sizes, batch * blocks * per_part * self.cut.chunks

    def _launch_forward(self, initial, begins, y, final, saved, decays, states, flags, *, ends: bool) -> None:
        from nvsubq.ops.triton.linear_forward import linear_forward

        named, sizes, programs = self._shared()
        named["flags"] |= flags
        outputs = {
            "initial": initial, "begins": begins, "y": y, "final": final, "saved": saved,
            "end_decays": decays, "end_states": states,
        }  # fmt: skip
        with on(self.b.device):
            linear_forward[(programs,)](
                **named, **{name: _parts(t) for name, t in outputs.items()}, **sizes, ENDS=ends
            )

    def _launch_backward(
        self, d_y, d_final, begins, saved, decays, grads, d_a, d_b, d_fixed_a, d_initial, *, ends: bool
    ) -> None:
        from nvsubq.ops.triton.linear_backward import linear_backward

        named, sizes, programs = self._shared()
        tiles = PIECE // TILE * sizes["BD"]
        scratch = self.b.new_empty(0 if ends else programs * tiles, dtype=self.kind)
        others = {
            "d_y": d_y, "d_final": d_final, "begins": begins, "saved": saved, "scratch": scratch,
            "end_decays": decays, "end_grads": grads, "d_a": d_a, "d_b": d_b, "d_fixed_a": d_fixed_a,
            "d_initial": d_initial,
        }  # fmt: skip
        with on(self.b.device):
            linear_backward[(programs,)](
                **named, **{name: _parts(t) for name, t in others.items()},
                d_y_row=d_y.stride(0), d_y_cell=d_y.stride(1), **sizes, ENDS=ends,
            )  # fmt: skip


def _parts(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
