"""What a model costs: its parameters, and the floating-point operations of a forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import nvsubq.ops  # noqa: F401  (defines the operators)

__all__ = ["Cost", "cost"]

_COMPLEX_PRODUCT = 6  # four products, two sums


class Cost(NamedTuple):
    """Parameters of a model, and operations of one forward, all and by operator."""

    parameters: int
    flops: int
    by_op: dict[str, int]


def cost(model: nn.Module, input_shape: Sequence[int]) -> Cost:
    """Count the parameters of `model` and the operations of a forward; nothing is computed for it.

    A multiply-add is two operations. Counted are matrix products, convolutions and recurrences, as their
    definitions write them (a chunked kernel may do more), and nothing that is elementwise outside of those.
    A complex product is 6, a sum 2, an exponential 5 (exp, sin, cos, 2 products):

    | operator | operations |
    |---|---|
    | matrix product, convolution | 2 for each weight and output |
    | attention of S keys | 4 B L S C (q k 2, weights v 2), also where a mask hides a key |
    | `causal_conv1d` | 2 B L D K |
    | `selective_scan` | 7 B L D N (exp(delta A) 2, B delta u 1, state 2, C s 2), 3 B L D (delta u, D u) |
    | complex A | 17 B L D N (exp(delta A) 7, B delta u 1, state 7, C s 2; 21 if B, C too), 4 B L D |
    | `ssd_scan` | 5 B L H P N (B x 1, state 2, C s 2), 2 B L H P (D x) |
    | `linear_scan` | 2 B L D, complex 8 B L D |
    | `rglru_scan` | 10 B L D (two gates' biases 2, decay 3, normaliser 2, gated input 1, state 2) |

    Args:
        model: a module of one tensor.
        input_shape: of that tensor, with the batch.

    Example:
        >>> cost(nn.Linear(4, 3), (2, 4))[:2]
        (15, 48)
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton where it is installed

    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = torch.float32 if parameter is None else parameter.dtype
    training = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    model.eval()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            x = torch.empty(*input_shape, dtype=dtype, device=device)
            with counter:
                model(x)
    finally:
        for module, mode in training.items():  # each its own: a part may be frozen
            module.training = mode
    by_op = {
        str(op).removeprefix("aten."): n for op, n in counter.get_flop_counts().get("Global", {}).items()
    }
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops(), by_op)


def _conv(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[-1]


def _attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _selective(u: Sequence[int], delta: Any, A: Sequence[int], *rest: Any, **__: Any) -> int:
    is_complex, _backend = rest[-2:]
    _, _, complex_A, complex_B = (is_complex >> i & 1 for i in range(4))
    if not complex_A:
        return math.prod(u) * (7 * A[1] + 3)
    return math.prod(u) * ((21 if complex_B else 17) * A[1] + 4)  # 2 Re(C s): one product more


def _ssd(x: Sequence[int], dt: Any, A: Any, B: Sequence[int], *_: Any, **__: Any) -> int:
    return math.prod(x) * (5 * B[-1] + 2)


def _linear(
    a: Any, b: Sequence[int], dt: Any, state: Any, seq: Any, order: Any, reverse: Any, *rest: Any, **__: Any
) -> int:
    _discretization, _input_scale, is_complex, _backend = rest
    cells = math.prod(b) // (2 if is_complex >> 1 & 1 else 1)  # complex tensors are real pairs
    return cells * (_COMPLEX_PRODUCT + 2 if is_complex else 2)


def _rglru(x: Sequence[int], *_: Any, **__: Any) -> int:
    return 10 * math.prod(x)


_FORMULAS: Any = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # torch itself counts CUDA's
    torch.ops.nvsubq.causal_conv1d: _conv,
    torch.ops.nvsubq.selective_scan: _selective,
    torch.ops.nvsubq.ssd_scan: _ssd,
    torch.ops.nvsubq.linear_scan: _linear,
    torch.ops.nvsubq.rglru_scan: _rglru,
}
