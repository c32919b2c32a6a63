"""Recurrences run in the dtype of their states, whatever autocast does to the products around them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def autocast_off(device: torch.device) -> AbstractContextManager:
    """A context in which autocast leaves matrix products on `device` alone."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def backward_without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the `backward` of an `autograd.Function`, which may be called while autocast is on."""

    @wraps(backward)
    def outside(ctx: Any, *cotangents: Any) -> Any:
        given = next(g for g in cotangents if isinstance(g, Tensor))
        with autocast_off(given.device):
            return backward(ctx, *cotangents)

    return outside
