"""Walks: what `plan_walk` checks, how it caches, and what gather and scatter move."""

from __future__ import annotations

import gc

import pytest
import torch

from nvsubq.ops import causal_conv1d, walks
from nvsubq.ops.walks import plan_walk

ORDER = torch.tensor([[2, 0, 3, 1], [3, 2, 1, 0]])
SEQ_IDX = torch.tensor([[0, -1, 0, 1], [5, 5, 5, 5], [-1, -1, -2, -1]])


def naive(order: torch.Tensor, reverse: list[bool], seq_idx: torch.Tensor | None, rows: int):
    """Per row and block: the cells visited, present first, and the number of each step's sequence."""
    visited = []
    for row in range(rows):
        for block, back in enumerate(reverse):
            cells = order[block].tolist()[:: -1 if back else 1]
            there = [c for c in cells if seq_idx is None or seq_idx[row, c] >= 0]
            numbers = [0] * len(there)
            for k in range(1, len(there)):
                changed = seq_idx is not None and seq_idx[row, there[k]] != seq_idx[row, there[k - 1]]
                numbers[k] = numbers[k - 1] + int(changed)
            visited.append((there, numbers))
    return visited


@pytest.mark.parametrize("seq_idx", [None, SEQ_IDX, SEQ_IDX.abs()], ids=["whole", "absent", "packed"])
@pytest.mark.parametrize("reverse", [[False, False], [True, False]])
def test_gather_brings_cells_to_steps_and_scatter_back(
    reverse: list[bool], seq_idx: torch.Tensor | None
) -> None:
    walk = plan_walk(4, ORDER, reverse, seq_idx=seq_idx)
    x = torch.randn(3, 4, 6, 2)
    steps = walk.gather(x)
    shared = walk.spread(x[:, :, 0])
    assert shared.shape == (3, 4, 2, 2)
    for which, (cells, numbers) in enumerate(naive(ORDER, reverse, seq_idx, 3)):
        row, block = divmod(which, 2)
        own = slice(3 * block, 3 * block + 3)
        assert torch.equal(steps[row, : len(cells), own], x[row, cells, own])
        assert not steps[row, len(cells) :, own].any()
        assert torch.equal(shared[row, : len(cells), block], x[row, cells, 0])
        if walk.segment is not None:
            assert walk.segment[row, : len(cells), block].tolist() == numbers
            starts = [k for k in range(1, len(cells)) if numbers[k] != numbers[k - 1]]
            assert walk.starts[row, :, block].nonzero().flatten().tolist() == starts
        if walk.count is not None:
            assert int(walk.count[row]) == len(cells)
            assert int(walk.present[row].sum()) == len(cells)
    absent = torch.zeros(3, 4, dtype=torch.bool) if seq_idx is None else seq_idx < 0
    assert torch.equal(walk.scatter(steps), x.masked_fill(absent[..., None, None], 0))
    assert (walk.count is None) == (not absent.any())


@pytest.mark.parametrize("seq_idx", [None, SEQ_IDX])
def test_moves_are_differentiable_twice(seq_idx: torch.Tensor | None) -> None:
    walk = plan_walk(4, ORDER, seq_idx=seq_idx)
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    for move in (walk.gather, walk.scatter):
        assert torch.autograd.gradcheck(move, x)
        assert torch.autograd.gradgradcheck(lambda v, move=move: move(v).sin(), x)
    assert torch.autograd.gradcheck(walk.spread, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))


def test_row_major_moves_nothing() -> None:
    walk = plan_walk(4)
    x = torch.randn(2, 4, 3)
    assert walk.identity
    assert walk.blocks == 1
    assert walk.gather(x) is x
    assert walk.scatter(x) is x
    assert walk.starts is walk.present is None
    assert plan_walk(4, None, [False, False]).blocks == 2


def test_one_order_with_several_directions() -> None:
    walk = plan_walk(4, ORDER[0], [False, True])
    assert walk.index.T.tolist() == [[2, 0, 3, 1], [1, 3, 0, 2]]
    assert plan_walk(4, ORDER, True).index.T.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]


def test_a_plan_is_cached_until_the_order_changes() -> None:
    order = ORDER[0].clone()
    walk = plan_walk(4, order)
    assert plan_walk(4, order) is walk
    assert plan_walk(4, order, True) is not walk
    order.copy_(ORDER[1])
    assert plan_walk(4, order).index[:, 0].tolist() == [3, 2, 1, 0]
    order[0] = 2
    with pytest.raises(ValueError, match="must be a permutation"):
        plan_walk(4, order)


def test_a_plan_is_forgotten_with_its_order() -> None:
    before = len(walks._plans)
    order = torch.randperm(7)
    plan_walk(7, order)
    assert len(walks._plans) == before + 1
    del order
    gc.collect()
    assert len(walks._plans) == before


def test_plans_made_under_inference_mode_serve_training() -> None:
    order = torch.randperm(5)
    with torch.inference_mode():
        plan_walk(5, order, True)
        plan_walk(5, None, True)
        made_inside = torch.tensor([1, 0])
        assert plan_walk(2, made_inside).index[:, 0].tolist() == [1, 0]
        made_inside[0] = 0
        with pytest.raises(ValueError, match=r"`order` \(=\[0, 0\]\) must be a permutation of 0 \.\. 1"):
            plan_walk(2, made_inside)
    for walk in (plan_walk(5, order, True), plan_walk(5, None, True)):
        x = torch.randn(1, 5, 1, requires_grad=True)
        walk.gather(x).sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_sequences_seen_under_inference_mode_serve_training(backend: str) -> None:
    seq_idx = torch.tensor([[0, 0, 1, -1, 1, 2]])
    x, weight = torch.randn(1, 6, 4, requires_grad=True), torch.randn(4, 3)
    with torch.inference_mode():
        causal_conv1d(x, weight, seq_idx=seq_idx, backend=backend)
    causal_conv1d(x, weight, seq_idx=seq_idx, backend=backend).sum().backward()
    assert x.grad is not None


def test_an_order_of_inference_mode_leaves_no_plans_behind() -> None:
    with torch.inference_mode():
        order = torch.randperm(6)
    seq_idx = torch.zeros(1, 6, dtype=torch.int32)
    for _ in range(3):
        plan_walk(6, order, seq_idx=seq_idx)
    assert id(seq_idx) not in walks._plans


@pytest.mark.parametrize(
    ("order", "reverse", "message"),
    [
        ([0, 1, 1, 3], False, r"`order` \(=\[0, 1, 1, 3\]\) must be a permutation of 0 \.\. 3\."),
        ([1, 2, 3, 4], False, r"`order` \(=\[1, 2, 3, 4\]\) must be a permutation of 0 \.\. 3\."),
        (
            [[0, 1, 2, 3], [0, 1, 2, -1]],
            False,
            r"row 1 of `order` \(=\[0, 1, 2, -1\]\) must be a permutation",
        ),
        (
            [0, 1, 2],
            False,
            r"`order` \(shape \[3\]\) must have shape \[L\] or \[S, L\], here \[L\] = \[4\]\.",
        ),
        ([[0, 1, 2]], False, r"`order` \(shape \[1, 3\]\) must have shape \[S, L\] with L = 4\."),
        ([0.0, 1.0, 2.0, 3.0], False, r"`order` \(dtype float32\) must be int32 or int64\."),
        ([0, 1, 2, 3], 1, r"`reverse` \(=1\) must be a bool, or one bool for each of S blocks\."),
        ([0, 1, 2, 3], [], r"`reverse` \(=\[\]\) must be a bool"),
        (
            [[0, 1, 2, 3]] * 2,
            [True] * 3,
            r"`order` names 2 walks and `reverse` 3; `order` must name 1 or 3\.",
        ),
    ],
)
def test_what_a_walk_refuses(order: list, reverse: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_walk(4, torch.tensor(order), reverse)


def test_an_order_must_be_a_tensor() -> None:
    with pytest.raises(TypeError, match=r"`order` \(=\[0, 1\]\) must be a tensor, not list\."):
        plan_walk(2, [0, 1])
    with pytest.raises(ValueError, match=r"`order` \(shape \[0, 4\]\) must have at least one row\."):
        plan_walk(4, torch.zeros(0, 4, dtype=torch.int64))


def test_a_long_order_is_not_printed_in_full() -> None:
    with pytest.raises(
        ValueError, match=r"\(=\[0, 0, 0, 0, 0, 0, 0, 0, \.\.\.\]\) must be a permutation of 0 \.\. 99\."
    ):
        plan_walk(100, torch.zeros(100, dtype=torch.int32))


def test_no_cells() -> None:
    empty = torch.zeros(2, 0, 2)
    for walk in (plan_walk(0), plan_walk(0, torch.zeros(2, 0, dtype=torch.int64), seq_idx=torch.zeros(2, 0))):
        assert walk.scatter(walk.gather(empty)).shape == empty.shape
