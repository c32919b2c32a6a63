"""Fixed inputs, and comparisons of outputs and gradients, for what every core promises."""

from __future__ import annotations

from collections.abc import Callable

import torch
from option_cases import WIDTH
from torch import Tensor

from nvsubq.cores import LTV_LRNN

C, L, B = WIDTH, 23, 3
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # fp32, against another way through the same arithmetic


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(actual: Tensor, expected: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, **(TOLERANCE | tolerance))


def gradients(core: LTV_LRNN, x: Tensor, run: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Output of `run(x)`, and the gradients of a fixed projection of it for x and all parameters."""
    x = x.detach().requires_grad_()
    y = run(x)
    names = [name for name, _ in core.named_parameters()]
    found = torch.autograd.grad(
        (y * draw(*y.shape, seed=99)).sum(), [x, *core.parameters()], allow_unused=True
    )
    return y.detach(), dict(zip(["x", *names], found, strict=True))


def close_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        assert (actual[name] is None) == (want is None), name
        if want is not None:
            scale = max(1.0, want.abs().max().item())  # sums over B and L: compare at their own scale
            torch.testing.assert_close(
                actual[name] / scale,
                want / scale,
                **(TOLERANCE | tolerance),
                msg=lambda m, n=name: f"{n}: {m}",
            )
