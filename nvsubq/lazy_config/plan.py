"""A config that has been read: calls to make, in order; and the errors of a config that cannot be read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvsubq.lazy_config.signature import ARGS, Signature, wrong_name


class ConfigError(ValueError):
    """A config that cannot be built: what is wrong, and where.

    Args:
        message: the target, its problems, its signature and the place, a line each.
        key: the place in the config, such as ``model.mixer.core``; the first place where several are wrong.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


ConfigError.__module__ = "nvsubq.lazy_config"  # where users import it from


@dataclass(frozen=True)
class Problem:
    """All that is wrong with one node."""

    name: str
    lines: tuple[str, ...]
    signature: str = ""
    key: str = ""
    written_at: str = ""

    def __str__(self) -> str:
        lines = [line for text in self.lines for line in text.splitlines()]
        if self.signature:
            lines.append(f"signature: {self.signature}")
        if self.key:
            elsewhere = self.written_at and self.written_at != self.key
            lines.append(f"at: {self.key}" + (f" (written at {self.written_at})" if elsewhere else ""))
        return "\n  ".join([self.name, *lines])


def error_of(problems: list[Problem]) -> ConfigError:
    """One error for all of them."""
    if len(problems) == 1:
        return ConfigError(str(problems[0]), problems[0].key)
    blocks = "\n\n".join(str(problem) for problem in problems)
    return ConfigError(f"{len(problems)} nodes have problems\n\n{blocks}", problems[0].key)


@dataclass(frozen=True)
class Call:
    """A node that has been read: a target and its arguments, whose values may contain further calls.

    The arguments are in the order of the config, `_args_` among them: the order in which children are built.
    """

    target: Callable[..., Any]
    path: str
    key: str
    partial: bool
    arguments: Mapping[str, Any]


class Factory(functools.partial):
    """What a `_partial_` node builds. A wrong call, and an exception from the constructor, name the node."""

    call: Call
    fresh: bool  # build the arguments anew in each call, so that two products share nothing

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if self.fresh:
            built, given = build_arguments(self.call, skip=kwargs)
        else:
            built, given = self.args, self.keywords
        args, kwargs = (*built, *args), {**given, **kwargs}
        signature = Signature(self.func)
        lines = [wrong_name(name, near) for name, near in signature.wrong_names(kwargs).items()]
        lines += signature.wrong_count(kwargs, len(args))
        lines += [f"missing argument {name!r}." for name in signature.missing(kwargs, len(args))]
        if lines:
            raise error_of([Problem(self.call.path, tuple(lines), str(signature), self.call.key)])
        return _invoke(self.call, args, kwargs)


def factory_of(call: Call) -> Factory:
    """A factory that builds the nodes among its arguments in each call, and not before."""
    given = dict(call.arguments)
    return _factory(call, given.pop(ARGS, ()), given, fresh=True)


def build(plan: Any, late: Mapping[str, Any] | None = None) -> Any:
    """The objects of a plan; `late` goes to the root target as it is."""
    if isinstance(plan, Call):
        args, kwargs = build_arguments(plan, skip=late or ())
        kwargs.update(late or {})
        return _factory(plan, args, kwargs, fresh=False) if plan.partial else _invoke(plan, args, kwargs)
    if isinstance(plan, dict):
        return {name: build(value) for name, value in plan.items()}
    if isinstance(plan, list):
        return [build(value) for value in plan]
    return plan


def build_arguments(call: Call, skip: Collection[str] = ()) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the named arguments of a call, built."""
    kwargs = {name: build(value) for name, value in call.arguments.items() if name not in skip}
    return tuple(kwargs.pop(ARGS, ())), kwargs


def _factory(call: Call, args: Sequence[Any], kwargs: Mapping[str, Any], *, fresh: bool) -> Factory:
    factory = Factory(call.target, *args, **kwargs)
    factory.call, factory.fresh = call, fresh
    return factory


def _invoke(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return call.target(*args, **kwargs)
    except Exception as error:
        _add_note(error, f"while building {call.path}" + (f" at {call.key}" if call.key else ""))
        raise


def _add_note(error: Exception, note: str) -> None:
    if hasattr(error, "add_note"):
        error.add_note(note)
        return
    # Python 3.10 prints no notes, so a plain message gets it as well (KeyError would show it quoted).
    error.__notes__ = [*getattr(error, "__notes__", ()), note]  # type: ignore[attr-defined]
    if len(error.args) == 1 and isinstance(error.args[0], str) and not isinstance(error, KeyError):
        error.args = (f"{error.args[0]}\n{note}",)
