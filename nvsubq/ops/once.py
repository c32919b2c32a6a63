"""A backward that says so when its gradients are differentiated."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

_MESSAGE = (
    "the backward of nvsubq's ops is once-differentiable: gradients of gradients (create_graph=True, then a "
    "second backward) are not there; backend='reference' has them."
)


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the `backward` of an `autograd.Function`: differentiating its result raises RuntimeError.

    Unlike torch's wrapper of this name it does so too where only the inputs, not the cotangents, depend on
    what is differentiated: there torch's gives a gradient that silently lacks a term.
    """

    @wraps(backward)
    def once(ctx: Any, *cotangents: Any) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *cotangents)
        with torch.no_grad():
            gradients = backward(ctx, *cotangents)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        tensors = [g.detach().requires_grad_() for g in gradients if isinstance(g, Tensor)]
        guarded = torch._C._functions.DelayedError(_MESSAGE, len(tensors))(*tensors)
        guards = iter(guarded if isinstance(guarded, tuple) else (guarded,))
        return tuple(next(guards) if isinstance(g, Tensor) else g for g in gradients)

    return once
