"""Launches of the kernels of `selective_scan`: what they read and write, and sums over what they leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops.native.walking import Tables
from nvsubq.ops.triton.launch import PIECE, Cut, given_tables, on, power_of_two, type_of
from nvsubq.ops.triton.recurrence import Recurrence

NAMES = (
    "u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_a", "timesteps", "decay_gate",
    "initial_state",
)  # fmt: skip
KINDS = {"mamba": 0, "zoh": 1, "async": 1, "bilinear": 2, "dirac": 3, "no_discretization": 4}
INITIAL, KEEP, SOFTPLUS, OWN_STEPS, TIMED = 16, 32, 1 << 8, 1 << 12, 1 << 13
PRESENT = {"delta_bias": 1 << 9, "z": 1 << 10, "D": 1 << 11, "decay_gate": 1 << 14}
FIXED = {"B": 1 << 15, "C": 1 << 16, "decay_gate": 1 << 17}

MOST_CHANNELS = 128
CHUNK, MOST_UNCUT = 256, 512


@dataclass(frozen=True)
class Tiling:
    """What a program holds at a time.

    Args:
        steps: of a tile, T.
        elements: of a step: states by channels.
        per_thread: elements of a step that a thread has, where there are enough.
    """

    steps: int
    elements: int
    per_thread: int

    def channels(self, share: int, BN: int) -> int:
        """BD."""
        return min(power_of_two(share), MOST_CHANNELS, max(1, self.elements // BN))

    def warps(self, BN: int, BD: int) -> int:
        """Of a program."""
        return max(1, min(8, BN * BD // (32 * self.per_thread)))


FORWARD, BACKWARD = Tiling(4, 512, 8), Tiling(4, 256, 4)  # the fastest of eleven and nine on an H100


@dataclass
class SelectiveScan:
    """A call: its tensors by name, readable ones, and its options.

    Args:
        given: by the names of the public function.
        softplus: whether delta goes through it.
        discretization: as in the public function.
        tables: of the walk.
        dtype: fp32 or fp64, in which it runs.
    """

    given: Mapping[str, Any]
    softplus: bool
    discretization: str
    tables: Tables
    dtype: torch.dtype
    cut: Cut = field(init=False)

    def __post_init__(self) -> None:
        self.batch, self.length, self.width = self.given["u"].shape
        self.states = self.given["A"].shape[1]
        self.cut = Cut.of(self.length, CHUNK, MOST_UNCUT)
        over_states = [self.given[name] for name in FIXED]
        groups = max((t.shape[2] for t in over_states if t is not None and t.dim() == 4), default=1)
        self.parts = max(groups, self.tables.blocks)  # channels of a part share B, C and a walk
        self.share = self.width // self.parts
        self.BN = power_of_two(self.states)
        # Between walks, parameters and states lie as [N, D]: channels side by side, as the kernels' lanes.
        self.turned = {
            name: t.T.contiguous()
            if name != "A" or t.dtype == self.dtype
            else t.T.to(self.dtype).contiguous()
            for name in ("A", *FIXED)
            if (t := self.given[name]) is not None and t.dim() == 2
        }
        initial = self.given["initial_state"]
        self.initial = None if initial is None else initial.mT.to(self.dtype).contiguous()

    def per_part(self, tiling: Tiling) -> int:
        """How many programs the channels of a part take."""
        return -(-self.share // tiling.channels(self.share, self.BN))

    def forward(self, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Give y, the final state, and the states that are kept."""
        u = self.given["u"]
        y = u.new_empty(u.shape)
        saved = self._new(self.batch, self.cut.pieces if keep else 0, self.states, self.width)
        final = self._new(self.batch, self.states, self.width)
        if not y.numel():
            final = final.zero_() if self.initial is None else self.initial
            return y, final.mT.contiguous(), saved
        begins = final
        if self.cut.chunks > 1:
            decays, states = self._between(), self._between()
            self._launch_forward(final, final, y, final, saved, decays, states, 0, ends=True)
            begins = self._joined(decays, states, self.initial, flipped=False)
        flags = (KEEP if keep else 0) | (0 if self.initial is None else INITIAL)
        initial = final if self.initial is None else self.initial
        self._launch_forward(initial, begins, y, final, saved, final, final, flags, ends=False)
        return y, final.mT.contiguous(), saved

    def backward(self, d_y: Tensor, d_final: Tensor | None, saved: Tensor) -> dict[str, Tensor | None]:
        """Give the gradient of each tensor by name."""
        given = self.given
        d_initial = self._new(self.batch, self.states, self.width)
        d_final = torch.zeros_like(d_initial) if d_final is None else d_final.mT.to(self.dtype).contiguous()
        if not d_y.numel():
            zeros = {name: None if t is None else torch.zeros_like(t) for name, t in given.items()}
            if given["initial_state"] is not None:
                zeros["initial_state"] = d_final.mT.to(given["initial_state"].dtype)
            return zeros
        parts = self._new_parts()
        begins = d_initial
        if self.cut.chunks > 1:
            decays, grads = self._between(), self._between()
            self._launch_backward(d_y, d_final, begins, saved, decays, grads, parts, d_initial, ends=True)
            begins = self._joined(decays, grads, d_final, flipped=True)
        self._launch_backward(d_y, d_final, begins, saved, d_initial, d_initial, parts, d_initial, ends=False)
        found = self._sums(parts) | {"initial_state": d_initial.mT}
        return {
            name: None if t is None else found[name].to(t.dtype).reshape(t.shape) for name, t in given.items()
        }

    def _new(self, *shape: int) -> Tensor:
        return self.given["u"].new_empty(shape, dtype=self.dtype)

    def _between(self) -> Tensor:
        """One state for each chunk."""
        return self._new(self.batch, self.cut.chunks, self.states, self.width)

    def _joined(self, decays: Tensor, states: Tensor, first: Tensor | None, *, flipped: bool) -> Tensor:
        """The states that chunks leave, from those that they would leave had they begun with nothing."""
        first = None if first is None else first.flatten(1)
        scan = Recurrence(decays.flatten(2), states.flatten(2), self.dtype, flipped=flipped, uncut=True)
        return scan.forward(first, self.dtype, keep=False)[0]

    def _new_parts(self) -> dict[str, Tensor]:
        """What the backward kernel writes: gradients over cells, and parts of those that are sums."""
        given, none = self.given, self._new(0)
        over_channels = (self.batch, self.length, self.parts * self.per_part(BACKWARD))
        over_time = (self.batch, self.cut.chunks)
        timed = given["timesteps"] is not None
        parts = {
            "d_u": torch.empty_like(given["u"], memory_format=torch.contiguous_format),
            "d_A": self._new(*over_time, self.states, self.width),
            "d_timesteps": self._new(*over_channels) if timed else none,
            "d_rate": self._new(*over_time, self.width) if timed else none,
        }
        for name in ("delta", "z", "delta_a"):
            t = given[name]
            there = t is not None and t.dim() == 3
            parts[f"d_{name}"] = t.new_empty(t.shape) if there else none
        for name, key in (("D", "d_D"), ("delta_bias", "d_bias")):
            parts[key] = none if given[name] is None else self._new(*over_time, self.width)
        for name, key in (("B", "B"), ("C", "C"), ("decay_gate", "gate")):
            t = given[name]
            fixed = t is not None and t.dim() == 2
            parts[f"d_{key}"] = none if fixed or t is None else self._new(*over_channels, self.states)
            parts[f"d_fixed_{key}"] = self._new(*over_time, self.states, self.width) if fixed else none
        return parts

    def _sums(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients by the names of the tensors, summed in a fixed order."""
        found = {name: parts[f"d_{name}"] for name in ("u", "delta", "z", "delta_a")}
        found["A"] = parts["d_A"].sum((0, 1)).T
        for name, key in (("D", "d_D"), ("delta_bias", "d_bias")):
            found[name] = parts[key].sum((0, 1)) if self.given[name] is not None else parts[key]
        if self.given["timesteps"] is not None:
            found["delta_a"] = parts["d_rate"].sum((0, 1))
            found["timesteps"] = parts["d_timesteps"].sum(2)
        for name, key in (("B", "B"), ("C", "C"), ("decay_gate", "gate")):
            t = self.given[name]
            if t is None:
                continue
            if t.dim() == 2:
                found[name] = parts[f"d_fixed_{key}"].sum((0, 1)).T
            else:
                groups = t.shape[2] if t.dim() == 4 else 1
                split = parts[f"d_{key}"].unflatten(
                    2, (groups, self.parts * self.per_part(BACKWARD) // groups)
                )
                found[name] = split.sum(3)
        return found

    def _shared(self, tiling: Tiling) -> tuple[dict[str, Any], dict[str, Any], int]:
        """What both kernels take, the sizes of their tiles, and the number of programs."""
        given = self.given
        found, flags, index_row = given_tables(self.tables, given["u"].device)
        flags |= SOFTPLUS if self.softplus else 0
        flags |= sum(flag for name, flag in PRESENT.items() if given[name] is not None)
        flags |= sum(flag for name, flag in FIXED.items() if (t := given[name]) is not None and t.dim() == 2)
        if given["delta_a"] is not None:
            flags |= OWN_STEPS if given["timesteps"] is None else TIMED
        turned = self.turned
        # What is absent is never read: any tensor of the usual dtype stands for it.
        named: dict[str, Any] = {
            "A": turned["A"], **dict(zip(("index", "segment", "count"), found, strict=True)),
            "index_row": index_row, "length": self.length, "width": self.width, "states": self.states,
            "blocks": self.tables.blocks, "parts": self.parts, "per_part": self.per_part(tiling),
            "share": self.share, "chunks": self.cut.chunks, "pieces": self.cut.pieces, "flags": flags,
        }  # fmt: skip
        for name in ("u", "delta", "z", "delta_a", "timesteps"):
            t = given["u"] if given[name] is None else given[name]
            named[name] = t
            named[f"{name}_row"], named[f"{name}_cell"] = t.stride()[:2] if t.dim() > 1 else (0, 0)
        for name, key in (("D", "D"), ("delta_bias", "bias")):
            named[key] = turned["A"] if given[name] is None else given[name]
        for name, key in (("B", "B"), ("C", "C"), ("decay_gate", "gate")):
            t = given["u"] if given[name] is None else turned.get(name, given[name])
            row, cell, part = 0, 0, 0
            if t.dim() > 2:
                row, cell = t.stride()[:2]
                part = t.stride(2) if t.dim() == 4 and t.shape[2] > 1 else 0
            named |= {key: t, f"{key}_row": row, f"{key}_cell": cell, f"{key}_part": part}
        general = bool(flags & (TIMED | PRESENT["decay_gate"] | sum(FIXED.values())))
        BD = tiling.channels(self.share, self.BN)
        sizes = {
            "KIND": KINDS[self.discretization], "GENERAL": general, "WALKS": bool(self.tables.named),
            "ACC": type_of(self.dtype), "T": tiling.steps, "BN": self.BN, "BD": BD,
            "CHUNK": self.cut.chunk, "PIECE": PIECE, "num_warps": tiling.warps(self.BN, BD),
        }  # fmt: skip
        return named, sizes, self.batch * self.parts * self.per_part(tiling) * self.cut.chunks

    def _launch_forward(self, initial, begins, y, final, saved, decays, states, flags, *, ends: bool) -> None:
        from nvsubq.ops.triton.selective_forward import selective_forward

        named, sizes, programs = self._shared(FORWARD)
        named["flags"] |= flags
        with on(y.device):
            selective_forward[(programs,)](
                **named, initial=initial, begins=begins, y=y, final=final, saved=saved, end_decays=decays,
                end_states=states, **sizes, ENDS=ends,
            )  # fmt: skip

    def _launch_backward(
        self, d_y, d_final, begins, saved, decays, grads, parts, d_initial, *, ends: bool
    ) -> None:
        from nvsubq.ops.triton.selective_backward import selective_backward

        named, sizes, programs = self._shared(BACKWARD)
        tiles = PIECE // BACKWARD.steps * sizes["BN"] * sizes["BD"]
        with on(d_y.device):
            selective_backward[(programs,)](
                **named, d_y=d_y, d_final=d_final, begins=begins, saved=saved,
                scratch=self._new(0 if ends else programs * tiles), end_decays=decays, end_grads=grads,
                **parts, d_initial=d_initial, d_y_row=d_y.stride(0), d_y_cell=d_y.stride(1), **sizes,
                ENDS=ends,
            )  # fmt: skip
