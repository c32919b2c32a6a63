"""The call of a constructor as the node of a config: what `Pretrained` writes beside its weights."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nvsubq.lazy_config import ConfigError
from nvsubq.lazy_config.plain import create
from nvsubq.lazy_config.plan import Call, Factory
from nvsubq.lazy_config.signature import ARGS, FOREIGN_TARGET, PARTIAL, RECURSIVE, TARGET, Signature
from nvsubq.lazy_config.targets import TargetError, public_path

__all__ = ["recorded"]


def recorded(
    target: Callable[..., Any], build: Any, args: tuple, arguments: Mapping[str, Any]
) -> dict[str, Any] | str:
    """The node of a call as plain containers, or why there is none.

    Classes, functions and nodes among the arguments are what the target makes factories of. They become nodes
    with `_partial_`, so that a loader builds nothing of them before the target does.

    Args:
        target: what the node names.
        build: what was called, with `self` as its first argument.
        args: by position, with `self`.
        arguments: by name.
    """
    try:
        bound = inspect.signature(build).bind(*args, **arguments)
        kinds = {name: parameter.kind for name, parameter in bound.signature.parameters.items()}
        _, *given = bound.arguments.items()
        named: dict[str, Any] = {}
        for name, value in given:
            named |= value if kinds[name] is inspect.Parameter.VAR_KEYWORD else {name: value}
        return _node(public_path(target), named, "")
    except (TargetError, ConfigError, OmegaConfBaseException) as error:
        return str(error)


def _node(path: str, given: Mapping[str, Any], prefix: str, **special: Any) -> dict[str, Any]:
    if any(map(_builds_inside, given.values())):
        # `as_factory` builds the nodes inside a node anew in each call, a loader once for all calls: what is
        # built would be shared. So the loader hands all nodes over as they are.
        if any(map(_has_callable, given.values())):
            raise ConfigError(
                f"an argument of {path} is a node with a node inside that builds an object; a config can't "
                "hold it beside a class or a function: give that as a node, too."
            )
        special[RECURSIVE] = False
    return {TARGET: path, **special, **{key: _plain(value, f"{prefix}{key}") for key, value in given.items()}}


def _plain(value: Any, name: str) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    node = _given_node(value)
    if node is not None:
        return {TARGET: node.pop(TARGET), **node, PARTIAL: True}
    if isinstance(value, functools.partial):
        return _partial(value, name)
    if callable(value):
        return {TARGET: public_path(value), PARTIAL: True}
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    raise ConfigError(f"`{name}` is a {type(value).__name__}, which a config cannot hold.")


def _partial(value: functools.partial, name: str) -> dict[str, Any]:
    given = dict(value.keywords)
    if value.args:
        signature = Signature(value.func)
        names = signature.positional[: len(value.args)]
        fit = len(names) == len(value.args) and set(names) <= set(signature.names)
        given |= dict(zip(names, value.args, strict=True)) if fit else {ARGS: list(value.args)}
    if not isinstance(value.func, Factory):
        return _node(public_path(value.func), given, f"{name}.", **{PARTIAL: True})
    if ARGS in given or any(map(_builds_inside, given.values())):
        raise ConfigError(f"`{name}` binds to a factory what a config cannot hold: give it with the node.")
    bound = {key: _plain(item, f"{name}.{key}") for key, item in given.items()}
    return {**_plain(value.func, name), **bound}


def _given_node(value: Any) -> dict[str, Any] | None:
    """The node that a target got as it is, or that a factory was made of; None for all else."""
    if isinstance(value, Factory) and value.fresh:
        return _unread(value.call)  # type: ignore[no-any-return]
    if not isinstance(value, (DictConfig, dict)) or not {TARGET, FOREIGN_TARGET} & set(value):
        return None
    if isinstance(value, DictConfig):
        value = OmegaConf.to_container(value, resolve=True)
    return OmegaConf.to_container(create(value, "save_pretrained"), resolve=True)  # type: ignore[return-value]


def _unread(plan: Any) -> Any:
    """The containers that a plan was read from."""
    if isinstance(plan, Call):
        node: dict[str, Any] = {TARGET: plan.path}
        if plan.partial:
            node[PARTIAL] = True
        if any(map(_has_node, plan.arguments.values())):  # else these would have been read as well
            node[RECURSIVE] = False
        return node | {key: _unread(value) for key, value in plan.arguments.items()}
    if isinstance(plan, dict):
        return {key: _unread(value) for key, value in plan.items()}
    return [_unread(value) for value in plan] if isinstance(plan, (list, tuple)) else plan


def _builds_inside(value: Any) -> bool:
    """Whether nodes inside a node build objects."""
    node = _given_node(value)
    if node is not None:
        return bool(node.get(RECURSIVE, True)) and any(map(_builds, node.values()))
    return any(map(_builds_inside, _items(value)))


def _builds(data: Any) -> bool:
    if isinstance(data, dict) and TARGET in data:
        if not data.get(PARTIAL, False):
            return True
        if not data.get(RECURSIVE, True):
            return False
    return any(map(_builds, _items(data)))


def _has_node(data: Any) -> bool:
    return (isinstance(data, dict) and TARGET in data) or any(map(_has_node, _items(data)))


def _has_callable(value: Any) -> bool:
    if callable(value):
        return not (isinstance(value, Factory) and value.fresh)
    return _given_node(value) is None and any(map(_has_callable, _items(value)))


def _items(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
