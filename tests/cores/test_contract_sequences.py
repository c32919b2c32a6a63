"""What every core promises of several sequences in one row: separate calls, and nothing that leaks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from comparing import B, C, L, close, close_gradients, draw, gradients
from option_cases import every_case, every_core
from torch import Tensor

from nvsubq.ops import segments_of


def same_to_rounding(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Output and gradient of x to 1e-6 of the whole, in fp32; those of parameters add up in another order."""
    for name in ("y", "x"):
        assert (actual[name] - expected[name]).norm() <= 1e-6 * expected[name].norm(), name
    close_gradients(actual, expected)


class TestSequences:
    lengths = torch.tensor([L, 9, 0])

    @pytest.mark.column("varlen")
    @every_case
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("timed", [False, True])
    def test_lengths_equal_separate_calls(self, case, timed, reverse):
        """Fault 5: `lengths` accepted and ignored. What lies in the padding does not matter, NaN included."""
        if timed and not case.timesteps:
            return
        core, x, dt = case.make(), draw(B, L, C), draw(B, L, seed=3).abs()
        padded, padded_dt = x.clone(), dt.clone()
        for row, length in enumerate(self.lengths.tolist()):
            padded[row, length:] = float("nan")
            padded_dt[row, length:] = float("nan")
            padded_dt[row, length + 1 :: 2] = float("inf")

        def together(x: Tensor) -> Tensor:
            return core(x, padded_dt if timed else None, lengths=self.lengths, reverse=reverse)

        def separately(x: Tensor) -> Tensor:
            rows = []
            for row, length in enumerate(self.lengths.tolist()):
                own = dt[row : row + 1, :length] if timed else None
                y = core(x[row : row + 1, :length], own, reverse=reverse)
                rows.append(torch.nn.functional.pad(y, (0, 0, 0, L - length)))
            return torch.cat(rows)

        y, found = gradients(core, padded, together)
        want_y, want = gradients(core, x, separately)
        same_to_rounding({"y": y} | found, {"y": want_y} | want)
        assert (y[1, 9:] == 0).all()
        assert (found["x"][1, 9:] == 0).all()

    @pytest.mark.column("varlen")
    @every_case
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("ordered", [False, True])
    def test_packed_sequences_equal_separate_calls(self, case, ordered, reverse):
        core, x = case.make(), draw(1, L, C)
        borders = [0, 1, 8, 9, 9, 20, L]
        pieces = [range(a, b) for a, b in pairwise(borders)]
        inside = [
            torch.randperm(len(piece), generator=torch.Generator().manual_seed(len(piece)))
            if ordered
            else torch.arange(len(piece))
            for piece in pieces
        ]
        order = torch.cat([piece.start + order for piece, order in zip(pieces, inside, strict=True)])
        by_borders = segments_of(1, L, cu_seqlens=torch.tensor(borders))
        for seq_idx in (by_borders, 7 - by_borders):
            walk = {"seq_idx": seq_idx, "reverse": reverse, "order": order if ordered else None}
            y, found = gradients(core, x, lambda x, walk=walk: core(x, **walk))
            want_y, want = gradients(
                core,
                x,
                lambda x: torch.cat(
                    [
                        core(x[:, piece.start : piece.stop], reverse=reverse, order=order)
                        for piece, order in zip(pieces, inside, strict=True)
                    ],
                    1,
                ),
            )
            same_to_rounding({"y": y} | found, {"y": want_y} | want)

    @pytest.mark.column("varlen")
    @every_case
    @pytest.mark.parametrize("way", ["forwards", "reverse", "order"])
    def test_no_leak(self, case, way):
        """Changing one sequence leaves the outputs and gradients of the others as they are, bit for bit."""
        core, x = case.make(), draw(2, L, C)
        cuts = torch.tensor([0, 6, 6, 13, L])
        seq_idx = torch.cat([segments_of(1, L, cu_seqlens=cuts), torch.arange(L)[None] // 8]).int()
        changed = x.clone()
        changed[0, 6:13] = -3e3 * x[0, 6:13]
        changed[1, 8:16] = 0.0
        others = torch.ones(2, L, dtype=torch.bool)
        others[0, 6:13] = others[1, 8:16] = False
        walk = {
            "forwards": {},
            "reverse": {"reverse": True},
            "order": {"order": torch.randperm(L, generator=torch.Generator().manual_seed(4)).sort()[1]},
        }[way]
        # A random order walks from one sequence to another and back: each return begins anew.
        outcomes = []
        for inputs in (x, changed):
            y, found = gradients(core, inputs, lambda x: core(x, seq_idx=seq_idx, **walk))
            outcomes.append((y[others], found["x"][others]))
        for one, other in zip(*outcomes, strict=True):
            assert torch.equal(one, other)

    @every_core
    def test_holes_are_skipped(self, case):
        """Absent cells in the middle neither read nor change the state, nor the convolution's taps."""
        core, x = case.make(), draw(1, L, C)
        there = torch.tensor([k % 3 != 1 and k > 0 for k in range(L)])
        seq_idx = torch.where(there, 4, -1)[None].int()
        y, found = gradients(core, x, lambda x: core(x, seq_idx=seq_idx))

        def compacted(x: Tensor) -> Tensor:
            out = torch.zeros(1, L, C)
            out[:, there] = core(x[:, there])
            return out

        want_y, want = gradients(core, x, compacted)
        close(y, want_y)
        close_gradients(found, want)

    @every_core
    def test_rows_are_independent(self, case):
        core, x = case.make(), draw(B, L, C)
        close(core(x)[1:2], core(x[1:2]))
