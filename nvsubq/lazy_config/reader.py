"""Read a config into a plan.

Every node is checked (allow-list, argument names, missing values, interpolations) and all problems are
collected, so that nothing is built before the whole config has been read without one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from nvsubq.lazy_config import targets
from nvsubq.lazy_config.plan import Call, Problem, error_of
from nvsubq.lazy_config.signature import (
    ARGS,
    CONVERT,
    FOREIGN_TARGET,
    PARTIAL,
    RECURSIVE,
    SPECIAL,
    TARGET,
    Signature,
    near_special,
    wrong_name,
)
from nvsubq.lazy_config.targets import TargetError
from nvsubq.lazy_config.yaml_text import FOLLOWED

_STAYED = (
    "none of these is near an argument of {name}: `_target_` was probably edited while\n"
    "the old class's arguments stayed (Hydra merges mappings). Choose by the config group, as in core=s5."
)
_MISSING, _BROKEN = object(), object()


class Reader:
    """Reads containers into plans and collects problems.

    Args:
        late: names that will be given when the target is called, by the key of its node.
    """

    def __init__(self, late: Mapping[str, Collection[str]]) -> None:
        self.problems: list[Problem] = []
        self._late = late
        self._count = 0
        self._open: list[Any] = []  # the containers around this one: a reference back to one has no end

    def read(self, value: Any, key: str, *, partial: bool | None = None) -> Any:
        """The plan of a value; `partial` overrules the node's own key."""
        return self._within(value, key, functools.partial(self._mapping, partial=partial), self.read)

    def _data(self, value: Any, key: str) -> Any:
        """A value below `_recursive_: false`: interpolations are followed, nodes stay mappings, ??? stays."""
        return self._within(value, key, self._plain_mapping, self._data)

    def _within(self, value: Any, key: str, mapping: Callable[..., Any], entry: Callable[..., Any]) -> Any:
        if not isinstance(value, (DictConfig, ListConfig)):
            return value
        self._count += len(value)
        if self._count > FOLLOWED:
            raise error_of(
                [
                    Problem(
                        "config",
                        (f"holds more than {FOLLOWED:,} values when its interpolations are followed.",),
                    )
                ]
            )
        if any(value is container for container in self._open):
            self._report("config", [f"'{full_key(value)}' contains itself by an interpolation."], key, value)
            return None
        self._open.append(value)
        try:
            return mapping(value, key) if isinstance(value, DictConfig) else self._list(value, key, entry)
        finally:
            self._open.pop()

    def _list(self, node: ListConfig, key: str, read: Callable[..., Any]) -> list[Any]:
        lines: list[str] = []
        plans = []
        place = len(self.problems)
        for i in range(len(node)):
            value = self._entry(node, i, f"element {i}", lines)
            if value is _MISSING and read == self.read:
                lines.append(f"element {i} is ??? and needs a value.")
            plans.append("???" if value is _MISSING else read(value, f"{key}[{i}]"))
        self._report("config", lines, key, node, place=place)
        return plans

    def _plain_mapping(self, node: DictConfig, key: str) -> dict[Any, Any]:
        lines: list[str] = []
        plain: dict[Any, Any] = {}
        for name in node:
            value = self._entry(node, name, repr(name), lines)
            plain[name] = "???" if value is _MISSING else self._data(value, join(key, name))
        self._report("config", lines, key, node)
        return plain

    def _mapping(self, node: DictConfig, key: str, partial: bool | None = None) -> Any:
        if TARGET in node.keys() or FOREIGN_TARGET in node.keys():  # noqa: SIM118  `in node` is false for ???
            return self._node(node, key, partial)
        lines = [f"no key {name!r} without `_target_`." for name in node if name in SPECIAL]
        for name in node:
            if _is_near_target(name, node):
                lines.append(f"no key {name!r} here. Did you mean '_target_'?")
        place = len(self.problems)
        plans = {}
        for name in node:
            value = self._entry(node, name, repr(name), lines)
            if value is _MISSING:
                lines.append(f"{name!r} is ??? and needs a value.")
            elif value is not _BROKEN:
                plans[name] = self.read(value, join(key, name))
        self._report("config", lines, key, node, place=place)
        return plans

    def _node(self, node: DictConfig, key: str, partial: bool | None) -> Call | None:
        place = len(self.problems)  # what is wrong with a node is told before what is wrong inside it
        lines: list[str] = []
        path, target = self._target(node, lines)
        own_partial = self._flag(node, PARTIAL, False, lines)
        partial = own_partial if partial is None else partial
        read = self.read if self._flag(node, RECURSIVE, True, lines) else self._data
        late = self._late.get(key, ())
        arguments: dict[Any, Any] = {}
        placeholders = []
        for name in node:
            if name in (TARGET, FOREIGN_TARGET, PARTIAL, RECURSIVE, CONVERT) or name in late:
                continue
            value = self._entry(node, name, f"argument {name!r}", lines)
            if value is _MISSING:
                placeholders.append(name)
            else:
                arguments[name] = None if value is _BROKEN else read(value, join(key, name))
        if not isinstance(arguments.get(ARGS, []), list):
            lines.append(f"`_args_` must be a list, not a {type(arguments[ARGS]).__name__}.")
            arguments[ARGS] = []
        signature = None
        if target is not None:
            signature = Signature(target)
            wrong = _wrong_arguments(signature, path, arguments, placeholders, late, partial)
            lines += wrong
            signature = signature if wrong else None
        self._report(path, lines, key, node, signature=signature, place=place)
        return None if target is None else Call(target, path, key, partial, arguments)

    def _target(self, node: DictConfig, lines: list[str]) -> tuple[str, Callable[..., Any] | None]:
        keys = list(node.keys())
        if TARGET in keys and FOREIGN_TARGET in keys:
            lines.append("`_target_` and `__target__` are both given; one names the target.")
            return "config", None
        name = TARGET if TARGET in keys else FOREIGN_TARGET
        path = self._entry(node, name, f"`{name}`", lines)
        if not isinstance(path, str):
            if path is _MISSING:
                lines.append(f"`{name}` is ??? and needs a value.")
            elif path is not _BROKEN:
                lines.append(f"`{name}` must be a dotted path, not a {type(path).__name__}.")
            return "config", None
        try:
            return path, targets.resolve(path)
        except TargetError as error:
            lines.append(str(error))
            return path, None

    def _flag(self, node: DictConfig, name: str, default: bool, lines: list[str]) -> bool:
        if name not in node.keys():  # noqa: SIM118  `in node` is false for ???
            return default
        value = self._entry(node, name, f"`{name}`", lines)
        if isinstance(value, bool):
            return value
        if value is not _BROKEN:
            shown = "???" if value is _MISSING else repr(value)
            lines.append(f"`{name}` must be true or false, not {shown}.")
        return default

    def _entry(self, container: Any, name: Any, what: str, lines: list[str]) -> Any:
        """The value of one entry. Indexing resolves interpolations from where the container is attached."""
        try:
            return _MISSING if OmegaConf.is_missing(container, name) else container[name]
        except InterpolationToMissingValueError:
            return _MISSING
        except OmegaConfBaseException as error:
            lines.append(f"{what}: {str(error).splitlines()[0]}.")
            return _BROKEN

    def _report(
        self,
        name: str,
        lines: list[str],
        key: str,
        node: Any,
        signature: Signature | None = None,
        place: int | None = None,
    ) -> None:
        if not lines:
            return
        shown = str(signature) if signature is not None else ""
        problem = Problem(name, tuple(lines), shown, key, full_key(node))
        same = (problem.name, problem.lines, problem.written_at)
        if all((p.name, p.lines, p.written_at) != same for p in self.problems):  # reached by two references
            self.problems.insert(len(self.problems) if place is None else place, problem)


def _wrong_arguments(
    signature: Signature,
    path: str,
    arguments: Mapping[Any, Any],
    placeholders: Collection[Any],
    late: Collection[str],
    partial: bool,
) -> list[str]:
    given = [name for name in (*arguments, *placeholders, *late) if name != ARGS]
    lines = [f"argument names are strings, not {name!r}." for name in given if not isinstance(name, str)]
    given = [name for name in given if isinstance(name, str)]
    wrong = signature.wrong_names(given)
    for name, near in wrong.items():
        lines.append(wrong_name(name, near, " (given to `instantiate`)" if name in late else ""))
    if wrong and not any(wrong.values()) and not any(name in late for name in wrong):
        lines.append(_STAYED.format(name=path))
    count = len(arguments.get(ARGS, ()))
    lines += signature.wrong_count(given, count)
    if not partial:
        lines += [f"argument {n!r} is ??? and needs a value." for n in placeholders if n not in wrong]
        missing = signature.missing(given, count)
        lines += [f"missing argument {name!r}." for name in missing if name not in wrong.values()]
    return lines


def _is_near_target(name: Any, node: DictConfig) -> bool:
    if not isinstance(name, str):
        return False
    if name == "target":  # a common word; a slip only where its value is a path that could be a target
        plain = not OmegaConf.is_missing(node, name) and not OmegaConf.is_interpolation(node, name)
        return plain and isinstance(node[name], str) and targets.is_allowed_text(node[name])
    return near_special(name) == TARGET


def full_key(node: Any) -> str:
    """Where a container is attached, such as ``model.blocks[0].core``; empty for a root."""
    parent = node._get_parent()  # OmegaConf has no public name for these two; Hydra uses them as well
    if parent is None:
        return ""
    return join(full_key(parent), node._key(), in_list=isinstance(parent, ListConfig))


def join(key: str, name: Any, *, in_list: bool = False) -> str:
    """The key of an entry."""
    if in_list:
        return f"{key}[{name}]"
    return f"{key}.{name}" if key else str(name)
