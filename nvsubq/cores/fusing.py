"""Whether a core's parts are as the core made them, so that their weights say all that they do."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as _global

Weights = dict[str, Tensor]


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
    if type(part) is not kind:
        return None
    own = vars(part)
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own:
        return None
    if _global._global_forward_hooks or _global._global_forward_pre_hooks:
        return None
    found = own["_parameters"]
    return found if "weight" in found else None
