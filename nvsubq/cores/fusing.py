"""Whether a core's parts are as the core made them, so that their weights say all that they do."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as _global


def untouched(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `part` is `kind.forward` and nothing else: no hook, no subclass, no other forward.

    Example:
        >>> linear = nn.Linear(2, 3)
        >>> untouched(linear, nn.Linear)
        True
        >>> _ = linear.register_forward_hook(lambda *_: None)
        >>> untouched(linear, nn.Linear)
        False
    """
    return (
        type(part) is kind
        and not (part._forward_hooks or part._forward_pre_hooks)
        and "forward" not in vars(part)
        and not (_global._global_forward_hooks or _global._global_forward_pre_hooks)
    )
