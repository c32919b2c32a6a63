"""`segments_of`: one table from `seq_idx`, `lengths`, `cu_seqlens`."""

from __future__ import annotations

import pytest
import torch

from nvsubq.cores import Mamba
from nvsubq.ops import segments_of

INT = torch.int32


def test_nothing_given_is_no_table() -> None:
    assert segments_of(2, 3) is None


def test_lengths_cut_rows() -> None:
    table = segments_of(3, 4, lengths=torch.tensor([4, 2, 0]))
    assert table.dtype == INT
    assert table.tolist() == [[0, 0, 0, 0], [0, 0, -1, -1], [-1, -1, -1, -1]]


def test_lengths_apply_on_top_of_a_table() -> None:
    seq_idx = torch.tensor([[3, 3, 1, 1], [-1, 0, 0, 0]])
    table = segments_of(2, 4, seq_idx=seq_idx, lengths=torch.tensor([3, 4]))
    assert table.tolist() == [[3, 3, 1, -1], [-1, 0, 0, 0]]
    assert seq_idx[0, 3] == 1  # the caller's table is left alone
    packed = segments_of(1, 4, cu_seqlens=torch.tensor([0, 2, 4]), lengths=torch.tensor([3]))
    assert packed.tolist() == [[0, 0, 1, -1]]


def test_packed_borders() -> None:
    table = segments_of(1, 6, cu_seqlens=torch.tensor([0, 1, 1, 4, 6], dtype=INT))
    assert table.dtype == INT
    assert table.tolist() == [[0, 2, 2, 2, 3, 3]]
    assert segments_of(1, 3, cu_seqlens=torch.tensor([0, 3])).tolist() == [[0, 0, 0]]
    assert segments_of(1, 0, cu_seqlens=torch.tensor([0, 0])).shape == (1, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lengths": [1, 5]}, r"`lengths` \(=\[1, 5\]\) must lie between 0 and L \(=4\)\."),
        ({"lengths": [1, -1]}, r"`lengths` \(=\[1, -1\]\) must lie between 0 and L \(=4\)\."),
        ({"lengths": [1]}, r"`lengths` \(shape \[1\]\) must have shape \[B\] = \[2\]\."),
        ({"lengths": [1.0, 2.0]}, r"`lengths` \(dtype float32\) must be int32 or int64\."),
        ({"seq_idx": [[0, 0, 0]] * 2}, r"`seq_idx` \(shape \[2, 3\]\) must have shape \[B, L\] = \[2, 4\]\."),
        (
            {"cu_seqlens": [0, 4]},
            r"`cu_seqlens` packs sequences into one row, but the batch has B \(=2\) rows\.",
        ),
        ({"cu_seqlens": [[0, 4]]}, r"`cu_seqlens` \(shape \[1, 2\]\) must have shape \[n \+ 1\]\."),
        ({"cu_seqlens": [0, 4], "seq_idx": [[0] * 4] * 2}, r"`seq_idx` and `cu_seqlens` are both given"),
    ],
)
def test_what_is_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segments_of(2, 4, **{name: torch.tensor(value) for name, value in given.items()})


@pytest.mark.parametrize("borders", [[0, 3], [1, 4], [0, 3, 2, 4], [0, 5]])
def test_borders_must_rise_from_zero_to_the_length(borders: list[int]) -> None:
    with pytest.raises(ValueError, match=r"`cu_seqlens` \(=\[.*\]\) must rise from 0 to L \(=4\)\."):
        segments_of(1, 4, cu_seqlens=torch.tensor(borders))


def test_wide_numbers_of_sequences_stay_apart() -> None:
    narrow = torch.tensor([[0, 0, 1, 1, 2, -1]])
    core, x = Mamba(4), torch.randn(1, 6, 4)
    expected = core(x, seq_idx=narrow)
    for shift in (narrow << 32, torch.where(narrow < 0, -1, narrow + (1 << 31))):
        assert torch.equal(core(x, seq_idx=shift), expected)


def test_not_a_tensor() -> None:
    with pytest.raises(TypeError, match=r"`lengths` \(=\[1, 2\]\) must be a tensor, not list\."):
        segments_of(2, 4, lengths=[1, 2])
