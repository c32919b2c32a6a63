"""Laws of the portable backend: cuts do not show, repeats are equal, rows stand alone, no NaN."""

from __future__ import annotations

import pytest
import torch
from cases import SHAPES, UPDATES, Case, case_of, cases, check, outcome
from tolerances import assert_close
from torch import Tensor

from nvsubq import ops
from nvsubq.ops.portable import recurrence
from nvsubq.ops.portable.recurrence import Tiling, Tree, adjoint_, diagonal_recurrence, scan_

WALKED = [c for c in cases() if c.sizes["L"] in (19, 65, 196)]


@pytest.mark.parametrize("elements", [64, 700])
@pytest.mark.parametrize("case", [c for c in cases() if c.sizes["L"] in (63, 65, 196)], ids=str)
def test_blocks_and_tiles_do_not_show(case: Case, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrence, "_CPU_TILE", elements)
    check(case, "torch", torch.float64)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_repeats_are_bitwise_equal(case: Case) -> None:
    first, second = (outcome(case, "torch", torch.float32) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{case}, {name}"


@pytest.mark.parametrize("length", [49, 196])
@pytest.mark.parametrize("op", SHAPES)
def test_a_row_does_not_depend_on_the_batch_it_came_in(op: str, length: int) -> None:
    case = case_of(op, "all" if op != "linear_scan" else "complex-fixed")
    wide = {"D": 96, "N": 16} if op == "selective_scan" else {"D": 64}
    case = Case(
        op,
        "rows",
        {**case.sizes, "B": 33, "L": length, **wide},
        case.give,
        case.options,
        case.forms,
        case.complex,
    )
    tensors, options = case.build(torch.float32, requires_grad=True)
    whole = _by_row(case, tensors, options, slice(None))
    for rows in (slice(7, 8), slice(3, 20)):
        part = _by_row(case, tensors, options, rows)
        for name, value in part.items():
            if (
                op == "ssd_scan"
            ):  # the library behind its matrix products picks a kernel by the number of products
                assert_close(f"{op}, {name}, rows {rows}", value, whole[name][rows], tolerance=1e-6)
            else:
                assert torch.equal(value, whole[name][rows]), f"{op}, {name}, rows {rows}"


def _by_row(case: Case, tensors: dict[str, Tensor], options: dict, rows: slice) -> dict[str, Tensor]:
    """Outputs, final state and the gradients of what has a batch axis, for the same cotangents row by row."""
    taken = {n: t.detach()[rows] if "B" in case.pattern(n) else t.detach() for n, t in tensors.items()}
    taken = {n: t.clone().requires_grad_() for n, t in taken.items()}
    y, final = getattr(ops, case.op)(**taken, **options, return_final_state=True, backend="torch")
    found = {"y": y, "final_state": final}
    batched = [n for n in taken if "B" in case.pattern(n)]
    grads = torch.autograd.grad(
        (y, final), [taken[n] for n in batched], (torch.full_like(y, 0.7), torch.full_like(final, -0.3))
    )
    return found | dict(zip(batched, grads, strict=True))


@pytest.mark.parametrize(
    "case",
    [c for c in cases() if c.name in ("all", "real-fixed", "seq_idx", "complex", "bilinear-gate")],
    ids=str,
)
def test_gradcheck(case: Case) -> None:
    case = Case(
        case.op,
        "gradcheck",
        {**case.sizes, "B": 2, "L": 18},
        case.give,
        case.options,
        case.forms,
        case.complex,
    )
    tensors, options = case.build(torch.float64, requires_grad=True)
    names = list(tensors)

    def call(*values: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, values, strict=True))
        return getattr(ops, case.op)(**given, **options, return_final_state=True, backend="torch")

    assert torch.autograd.gradcheck(call, tuple(tensors.values()), fast_mode=True)


@pytest.mark.parametrize("discretization", ["mamba", "zoh", "bilinear", "dirac"])
def test_huge_steps_and_dead_decays_stay_finite(discretization: str) -> None:
    shape = (2, 70, 8)
    generator = torch.Generator().manual_seed(0)
    u, delta, z = (torch.randn(shape, generator=generator) for _ in range(3))
    delta[:, ::7] = 1e5
    delta[:, 3::7] = -1e5
    A = -torch.logspace(-8, 4, 8)[:, None].repeat(1, 4)
    B, C = (torch.randn(2, 70, 4, generator=generator) for _ in range(2))
    tensors = [t.requires_grad_() for t in (u, delta, A, B, C, z)]
    y = ops.selective_scan(
        u, delta, A, B, C, z=z, delta_softplus=True, discretization=discretization, backend="torch"
    )
    grads = torch.autograd.grad(y.square().mean(), tensors)
    assert all(torch.isfinite(t).all() for t in (y, *grads))


def test_long_gaps_between_events_give_no_nan() -> None:
    u = torch.randn(1, 40, 4, requires_grad=True)
    rate = torch.rand(4, requires_grad=True)
    gaps = torch.full((1, 40), 1e6)
    delta, B, C = torch.rand(1, 40, 4), torch.randn(1, 40, 3), torch.randn(1, 40, 3)
    y = ops.selective_scan(u, delta, -torch.ones(4, 3), B, C, delta_a=rate, timesteps=gaps, backend="torch")
    grads = torch.autograd.grad(y.sum(), (u, rate))
    assert all(torch.isfinite(t).all() for t in (y, *grads))
    assert torch.allclose(y, (delta * u).detach() * (B * C).sum(-1, keepdim=True))


def test_small_steps_after_a_huge_one_keep_their_digits_in_ssd() -> None:
    dt = torch.full((1, 64, 2), 1e-3)
    dt[:, 10] = 1e5
    x, B, C = torch.randn(1, 64, 2, 4), torch.randn(1, 64, 1, 4), torch.randn(1, 64, 1, 4)
    tensors = {"x": x, "dt": dt, "A": torch.tensor([-1.0, -16.0]), "B": B, "C": C}
    got = ops.ssd_scan(**tensors, backend="torch")
    assert_close("y", got, ops.ssd_scan(**{n: t.double() for n, t in tensors.items()}, backend="reference"))


@pytest.mark.parametrize("op", UPDATES)
@pytest.mark.parametrize("which", [0, 1, 2], ids=["plain", "all", "more"])
def test_updates_agree_with_the_reference(op: str, which: int) -> None:
    stepped = [c for c in cases(op) if c.sizes["L"] == 19 and "initial_state" in c.give and c.blocks == 1]
    stepped = [
        c for c in stepped if not {"seq_idx", "packed", "order"} & set(c.give) and "reverse" not in c.options
    ]
    case = stepped[which % len(stepped)]
    tensors, options = case.build(torch.float64)
    dropped = ("initial_state",)
    options = {k: v for k, v in options.items() if k not in ("chunk_size", "normalize_first")}
    state = tensors["initial_state"]
    given = {n: t[:, 0] if case.is_activation(n) else t for n, t in tensors.items() if n not in dropped}
    results = []
    for backend in ("torch", "reference"):
        changed = state.clone()
        y = getattr(ops, UPDATES[op])(changed, **given, **options, backend=backend)
        results.append((y, changed))
    assert_close("y", results[0][0], results[1][0])
    assert_close("state", results[0][1], results[1][1])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 15, 16, 17, 31, 49, 64, 100])
def test_the_tree_is_the_recurrence_and_its_adjoint(length: int, reverse: bool) -> None:
    decay, b, g = (torch.randn(2, length, 3, dtype=torch.float64) for _ in range(3))
    states, back = b.clone(), g.clone()
    tree = Tree(decay, reverse).multiply()
    scan_(tree.bind(states))
    adjoint_(tree.bind(back))
    cells = range(length)[::-1] if reverse else range(length)
    h, expected = torch.zeros(2, 3, dtype=torch.float64), torch.empty_like(b)
    for t in cells:
        h = decay[:, t] * h + b[:, t]
        expected[:, t] = h
    assert_close("states", states, expected)
    assert_close("adjoint", (back * b).sum(), (g * expected).sum())  # <A* g, b> = <g, A b>


def test_a_second_derivative_is_refused() -> None:
    b = torch.ones(1, 4, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(
        diagonal_recurrence(torch.full((2,), 0.5), b).square().sum(), b, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once-differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("length", [1, 15, 16, 49, 4096, 100_000])
@pytest.mark.parametrize("width", [1, 12288, 1 << 20])
def test_there_are_at_most_a_sixteenth_as_many_blocks_as_cells(length: int, width: int) -> None:
    tiling = Tiling.plan(4, length, width, 1 << 20)
    assert tiling.blocks <= max(1, length // 16)
    assert sum(cells.stop - cells.start for cells in tiling.cell_blocks()) == length
    assert sum(rows.stop - rows.start for rows in tiling.row_tiles()) == 4


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("case", WALKED, ids=str)
def test_autocast_does_not_reach_inside(case: Case, backend: str) -> None:
    expected = outcome(case, backend, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(case, backend, torch.float32)
    for name, value in expected.items():
        assert torch.equal(found[name], value), f"{case}, {name}"
