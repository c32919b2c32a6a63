"""Whether a core's parts are as the core made them, so that their weights say all that they do."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _global

from nvsubq.cores.block_linear import BlockLinear

Weights = dict[str, Any]


def weights_of(part: nn.Module | None, kind: type[nn.Module]) -> Weights | None:
    """The parameters of `part` if calling it is `kind.forward` on them and nothing else.

    None where there is a hook, a subclass (a parametrization makes one) or another forward.

    Example:
        >>> linear = nn.Linear(2, 3)
        >>> sorted(weights_of(linear, nn.Linear))
        ['bias', 'weight']
        >>> _ = linear.register_forward_hook(lambda *_: None)
        >>> weights_of(linear, nn.Linear)
    """
    if not is_plain(part, kind):
        return None
    found: Weights = vars(part)["_parameters"]
    return found if "weight" in found else None


def is_plain(part: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether calling `part` is `kind.forward` and nothing else, in both passes."""
    if type(part) is not kind:
        return False
    own = vars(part)
    return not (  # written out: it is asked a dozen times for each forward
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or _global._global_forward_hooks
        or _global._global_forward_pre_hooks
        or _global._global_backward_hooks
        or _global._global_backward_pre_hooks
    )


def linears_of(core: nn.Module, *names: str) -> list[Weights] | None:
    """The parameters of linear layers of a core, or None where one is not as the core made it."""
    parts, found = vars(core)["_modules"], []
    for name in names:
        weights = weights_of(parts[name], nn.Linear)
        if weights is None:
            return None
        found.append(weights)
    return found


def product(layer: nn.Module, x: Tensor) -> Tensor:
    """What a linear layer makes of `x` without its bias, which an op adds: see `bias_beside`.

    A layer that is not as the core made it is called, and adds its bias itself.

    Example:
        >>> import torch
        >>> linear, x = nn.Linear(2, 3), torch.randn(4, 2)
        >>> torch.allclose(product(linear, x) + bias_beside(linear), linear(x))
        True
        >>> _ = linear.register_forward_hook(lambda *_: None)
        >>> torch.equal(product(linear, x), linear(x)), bias_beside(linear)
        (True, None)
    """
    if is_plain(layer, nn.Linear):
        return F.linear(x, layer.weight)  # type: ignore[arg-type]
    y: Tensor = layer.logits(x) if is_plain(layer, BlockLinear) else layer(x)  # type: ignore[operator]
    return y


def bias_beside(layer: nn.Module) -> Tensor | None:
    """The bias that `product` leaves out."""
    apart = is_plain(layer, nn.Linear) or is_plain(layer, BlockLinear)
    return layer.bias if apart else None  # type: ignore[return-value]


def own_of(core: nn.Module, *names: str) -> Weights | None:
    """A core's own parameters, or None where one is not in its place (a parametrization moves it)."""
    found: Weights = vars(core)["_parameters"]
    return found if all(name in found for name in names) else None
