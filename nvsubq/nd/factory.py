"""How a wrapper calls the factory it was given: late arguments go on only where they are wanted."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig
from torch import nn

from nvsubq.lazy_config import as_factory

__all__ = ["ModuleFactory"]


class ModuleFactory:
    """A callable that builds one fresh module a call, from a factory or a lazy config, with late arguments.

    Late arguments are those that only the caller of the factory knows (a width, a layer index). Each is
    passed on if the factory's signature takes it and the user has not bound it; a bound value wins.

    Args:
        source: a class, a function, a ``functools.partial`` or a lazy config (a node with ``_target_``).
        argument: the name under which the user gave it, for error messages.

    Raises:
        TypeError: `source` is a built module, or nothing that could build one.

    Example:
        >>> from functools import partial
        >>> from torch import nn
        >>> build = ModuleFactory(partial(nn.LayerNorm, 8), "core")
        >>> build(layer_idx=3)
        LayerNorm((8,), eps=1e-05, elementwise_affine=True, bias=True)
    """

    def __init__(self, source: Any, argument: str) -> None:
        if isinstance(source, nn.Module):
            raise TypeError(
                f"`{argument}` is a built {type(source).__name__}, but a factory is needed: "
                f"one fresh module is built for each place. In a config, add `_partial_: true`; "
                "in Python, pass the class or a functools.partial."
            )
        if not callable(source) and not isinstance(source, (Mapping, DictConfig)):
            raise TypeError(
                f"`{argument}` (={source!r}) must be a class, a function, "
                "a functools.partial or a lazy config."
            )
        self.argument = argument
        self.factory: Callable[..., Any] = as_factory(source)
        self.bound = _bound_arguments(self.factory)

    def takes(self, name: str) -> bool:
        """Whether the factory has a keyword `name` (or ``**kwargs``) that the user has not bound."""
        if name in self.bound:
            return False
        try:
            parameters = inspect.signature(self.factory).parameters
        except (TypeError, ValueError):  # builtins without a signature
            return False
        kinds = {parameter.kind for parameter in parameters.values()}
        if name in parameters:
            return parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY
        return inspect.Parameter.VAR_KEYWORD in kinds

    def __call__(self, **late: Any) -> nn.Module:
        """Build one module; those of `late` that are None, bound, or not taken stay behind."""
        module = self.factory(**{k: v for k, v in late.items() if v is not None and self.takes(k)})
        if not isinstance(module, nn.Module):
            raise TypeError(f"`{self.argument}` must build a torch.nn.Module, not {type(module).__name__}.")
        return module


def _bound_arguments(factory: Callable[..., Any]) -> dict[str, Any]:
    if not isinstance(factory, functools.partial):
        return {}
    try:
        return dict(inspect.signature(factory.func).bind_partial(*factory.args, **factory.keywords).arguments)
    except (TypeError, ValueError):  # the call itself will say what is wrong
        return dict(factory.keywords)
