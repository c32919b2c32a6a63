"""What a target accepts: the checks of argument names, and the signature that error messages show."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any

from nvsubq.lazy_config.targets import nearest

TARGET, PARTIAL, ARGS, RECURSIVE, CONVERT = "_target_", "_partial_", "_args_", "_recursive_", "_convert_"
FOREIGN_TARGET = "__target__"  # nvSubquadratic's key: read, never written
SPECIAL = (TARGET, PARTIAL, ARGS, RECURSIVE, CONVERT)
_WIDTH = 400  # of a shown signature; a longer one is cut at an argument


class Signature:
    """The parameters of a target; everything is accepted where Python does not know them (some built-ins)."""

    def __init__(self, target: Callable[..., Any]) -> None:
        try:
            parameters = list(inspect.signature(target).parameters.values())
        except (TypeError, ValueError):
            parameters = []
            self.known = False
        else:
            self.known = True
        kinds = {parameter.kind for parameter in parameters}
        self.open_names = not self.known or inspect.Parameter.VAR_KEYWORD in kinds
        self.open_args = not self.known or inspect.Parameter.VAR_POSITIONAL in kinds
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        self.parameters = [parameter for parameter in parameters if parameter.kind not in variadic]
        self.names = [p.name for p in self.parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY]
        self.positional = [p.name for p in self.parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        self.name = _short_name(target)

    def wrong_names(self, given: Iterable[str]) -> dict[str, str | None]:
        """The names that the target does not accept, each with the one that was probably meant."""
        meant: dict[str, str | None] = {}
        for name in given:
            if name in self.names:
                continue
            near = near_special(name)  # a slip in a special key must not pass as one of a target's **kwargs
            if near or not self.open_names:
                meant[name] = near or nearest(name, self.names)
        return meant

    def wrong_count(self, given: Collection[str], positional: int) -> list[str]:
        """Problems with the number of positional values."""
        lines = [
            f"argument {name!r} is given twice, by position and by name."
            for name in self.positional[:positional]
            if name in given and name in self.names
        ]
        if not self.open_args and positional > len(self.positional):
            lines.append(f"{positional} values by position, at most {len(self.positional)} fit.")
        return lines

    def missing(self, given: Collection[str], positional: int) -> list[str]:
        """The required arguments that are neither given by name nor by position."""
        bound = {*given, *self.positional[:positional]}
        return [
            p.name for p in self.parameters if p.default is inspect.Parameter.empty and p.name not in bound
        ]

    def __str__(self) -> str:
        shown: list[str] = []
        star = False
        for parameter in self.parameters:
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not star and not self.open_args:
                shown.append("*")
                star = True
            shown.append(_shown(parameter))
        if self.open_args:
            shown.append("*args")
        if self.open_names:
            shown.append("**kwargs")
        kept = shown
        while len(text := f"{self.name}({', '.join(kept)})") > _WIDTH and len(kept) > 2:
            kept = [*kept[: -2 if kept[-1] == "..." else -1], "..."]
        return text


def wrong_name(name: str, near: str | None, source: str = "") -> str:
    """The line of an error for a name that does not exist."""
    return f"no argument {name!r}{source}." + (f" Did you mean {near!r}?" if near else "")


def near_special(name: str) -> str | None:
    """The special key that a name with a leading or trailing underscore was probably meant to be."""
    if name in SPECIAL or not (name.startswith("_") or name.endswith("_")):
        return None
    near = nearest(name.strip("_").lower(), [special.strip("_") for special in SPECIAL], 0.8)
    return f"_{near}_" if near else None


def _shown(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    default = repr(parameter.default)
    plain = len(default) <= 40 and "<" not in default and "\n" not in default
    return f"{parameter.name}={default if plain else '...'}"


def _short_name(target: Any) -> str:
    """`Mamba`, or `Mamba.from_x` for a method."""
    name = getattr(target, "__qualname__", None) or type(target).__name__
    if inspect.ismethod(target) and isinstance(target.__self__, type):
        name = f"{target.__self__.__name__}.{target.__name__}"
    return name.rpartition("<locals>.")[2]
