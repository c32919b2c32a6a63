"""The ops as operators of torch: opcheck, and the same bits as the eager short-cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES, Case, case_of
from torch import Tensor

from nvsubq import ops
from nvsubq.ops import conv, dispatch, linear, rglru, selective, ssd
from nvsubq.ops.call import Op

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        selective.SELECTIVE_SCAN,
        linear.LINEAR_SCAN,
        rglru.RGLRU_SCAN,
        ssd.SSD_SCAN,
        conv.CAUSAL_CONV1D,
    )
}
DEFAULTS: dict[str, Any] = {
    "delta_softplus": False,
    "discretization": "mamba",
    "input_scale": "none",
    "c": 8.0,
    "normalize_first": True,
    "gelu": "erf",
    "dt_softplus": False,
    "dt_limit": (0.0, float("inf")),
    "chunk_size": None,
    "activation": None,
    "dilation": 1,
}
NAMES = (
    "all",
    "complex",
    "plain",
    "L0",
    "L65",
    "seq_idx-order-reverse",
    "blocks",
    "complex-BC",
    "complex-packed",
)
CHOSEN = [case for case in CASES if case.name in NAMES]


def call_of(case: Case, backend: str | None = None) -> tuple[Any, ...]:
    """The arguments of `Op.operate` and `Op.prepared`."""
    tensors, options = case.build(torch.float32, requires_grad=True)
    op = OPS[case.op]
    defaults = DEFAULTS | ({"discretization": "zoh"} if case.op == "linear_scan" else {})
    given = tuple(options.get(name, defaults[name]) for name in op.options)
    walk = options.get("seq_idx"), options.get("order"), options.get("reverse", False)
    return tuple(tensors.get(name) for name in op.tensors), given, *walk, backend


def pairs_of(case: Case, backend: str | None) -> tuple[Any, ...]:
    """The arguments of the forward operator."""
    tensors, options, seq_idx, order, reverse, backend = call_of(case, backend)
    is_complex = sum(1 << i for i, t in enumerate(tensors) if t is not None and t.is_complex())
    pairs = [
        torch.view_as_real(t.detach()).requires_grad_() if t is not None and t.is_complex() else t
        for t in tensors
    ]
    directions = [reverse] if isinstance(reverse, bool) else list(reverse)
    options = [list(o) if isinstance(o, tuple) else o for o in options]
    name = dispatch.concrete(case.op, backend, "cpu")
    return *pairs, seq_idx, order, directions, *options, is_complex, name


@pytest.mark.parametrize("case", [c for c in CHOSEN if c.name in ("all", "complex", "blocks", "L0")], ids=str)
@pytest.mark.parametrize("backend", [None, "torch"])
def test_opcheck(case: Case, backend: str | None) -> None:
    done = torch.library.opcheck(getattr(torch.ops.nvsubq, case.op).default, pairs_of(case, backend))
    assert set(done.values()) == {"SUCCESS"}
    assert len(done) == 4


def outcome(case: Case, run: Any, arguments: tuple[Any, ...]) -> list[Tensor]:
    """y, the final state and the gradients of all tensors."""
    outputs = run(arguments)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    leaves = [t for t in arguments[0] if t is not None]
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    grads = torch.autograd.grad([o for o, _ in pairs], leaves, [c for _, c in pairs], allow_unused=True)
    return [
        *(o.detach() for o in outputs),
        *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)),
    ]


@pytest.mark.parametrize("case", CHOSEN, ids=str)
@pytest.mark.parametrize("backend", [None, "torch"])
def test_the_operator_gives_the_bits_of_the_short_cut(case: Case, backend: str | None) -> None:
    op = OPS[case.op]
    eager = outcome(case, lambda a: op.prepared(*a)(a[0], a[2], a[3], True), call_of(case, backend))
    operated = outcome(case, lambda a: op.operate(*a), call_of(case, backend))
    for i, (got, want) in enumerate(zip(operated, eager, strict=True)):
        assert torch.equal(got, want), i


def test_a_mode_takes_the_operator() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    seen: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x, weight = torch.randn(1, 5, 3), torch.randn(3, 2)
    with Watch(), FlopCounterMode(display=False):
        y = ops.causal_conv1d(x, weight)
    assert seen.count("nvsubq.causal_conv1d.default") == 1
    assert torch.equal(y, ops.causal_conv1d(x, weight))


def test_fake_tensors_have_the_shapes_of_real_ones() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    tensors, options = case_of("ssd_scan", "all").build(torch.bfloat16)
    real, state = ops.ssd_scan(**tensors, **options, return_final_state=True)
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(t) for name, t in tensors.items()}
        fake, fake_state = ops.ssd_scan(**fakes, **options, return_final_state=True)
    assert (fake.shape, fake.dtype, fake_state.shape, fake_state.dtype) == (
        real.shape, real.dtype, state.shape, state.dtype,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's forward mode imports what it deprecates
def test_forward_mode_and_double_backward_are_refused() -> None:
    x = torch.randn(1, 4, 2, requires_grad=True)
    weight = torch.randn(2, 3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x))
        with pytest.raises(RuntimeError, match="forward mode AD"):
            ops.causal_conv1d(dual, weight)
    (grad,) = torch.autograd.grad(ops.causal_conv1d(x, weight, activation="silu").sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once-differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("name", ["selective_scan", "causal_conv1d"])
def test_a_call_is_checked_once_and_remembered_by_signature(name: str) -> None:
    case = case_of(name, "all")
    arguments = call_of(case)
    op = OPS[name]
    prepared = op.prepared(*arguments)
    assert op.prepared(*call_of(case)) is prepared
    other = tuple(None if t is None else t.detach().double() for t in arguments[0])
    assert op.prepared(other, *arguments[1:]) is not prepared
    assert op.prepared(*arguments[:5], "reference") is not prepared
    with ops.use_backend("torch"):
        assert op.prepared(*arguments) is not prepared
    dispatch.forget()
    assert op.prepared(*arguments) is not prepared


def test_a_table_that_changes_is_seen() -> None:
    """Plans are remembered by the table's memory and version."""
    x, weight = torch.arange(4.0).reshape(1, 4, 1), torch.tensor([[1.0, 10.0]])
    order, seq_idx = torch.tensor([0, 1, 2, 3]), torch.zeros(1, 4, dtype=torch.int32)
    first = ops.causal_conv1d(x, weight, order=order, seq_idx=seq_idx).flatten().tolist()
    assert first == [0, 10, 21, 32]
    seq_idx[0, 2:] = 1
    assert ops.causal_conv1d(x, weight, order=order, seq_idx=seq_idx).flatten().tolist() == [0, 10, 20, 32]
    order.copy_(torch.tensor([3, 2, 1, 0]))
    assert ops.causal_conv1d(x, weight, order=order, seq_idx=seq_idx).flatten().tolist() == [1, 10, 23, 30]
    order[0] = 2
    with pytest.raises(ValueError, match=r"`order` \(=\[2, 2, 1, 0\]\) must be a permutation"):
        ops.causal_conv1d(x, weight, order=order)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_jit_trace_is_refused() -> None:
    """It would record the memory that a kernel is about to fill."""
    x, weight = torch.randn(2, 5, 4), torch.randn(4, 3)
    with pytest.raises(
        RuntimeError, match=r"`torch\.jit\.trace` cannot record `causal_conv1d`; `torch\.export`"
    ):
        torch.jit.trace(lambda x: ops.causal_conv1d(x, weight), x, check_trace=False)
