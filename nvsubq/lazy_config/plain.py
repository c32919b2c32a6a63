"""Plain data, which is all that a config holds: None, bool, int, float, str, list, tuple, dict and nodes."""

from __future__ import annotations

import os
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nvsubq.lazy_config.plan import ConfigError, Problem, error_of
from nvsubq.lazy_config.signature import FOREIGN_TARGET, TARGET


def create(cfg: Any, caller: str) -> DictConfig | ListConfig:
    """A detached config from containers, with `_target_` for `__target__`.

    Raises:
        ConfigError: it is no container, or holds something else than plain data.
    """
    if not isinstance(cfg, (DictConfig, ListConfig, dict, list, tuple)):
        raise ConfigError(f"{caller} takes a config (a mapping or a list), not {type_name(cfg)}.")
    lines: list[str] = []
    values = plain(cfg, "", lines)
    if lines:
        raise error_of([Problem("config", tuple(lines))])
    try:
        return OmegaConf.create(values)
    except OmegaConfBaseException as error:  # an interpolation that cannot be parsed
        key = str(error.full_key or "")
        raise error_of([Problem("config", (f"{str(error).splitlines()[0]}.",), key=key)]) from None


def plain(value: Any, where: str, lines: list[str]) -> Any:
    """The value as plain data; what is not plain data is told in `lines`."""
    if isinstance(value, (DictConfig, ListConfig)):
        value = OmegaConf.to_container(value, resolve=False)
    kind = type(value)  # a subclass (numpy.float64, an Enum of strings) would not survive YAML
    if kind in (type(None), bool, int, float, str):
        return value
    if kind in (list, tuple):
        return [plain(item, f"{where}[{i}]", lines) for i, item in enumerate(value)]
    if kind is not dict:
        lines.append(f"{where} is a {type_name(value)}, which a config cannot hold. {_advice(value)}")
        return None
    prefix = f"{where}: " if where else ""
    if TARGET in value and FOREIGN_TARGET in value:
        lines.append(f"{prefix}`_target_` and `__target__` are both given; one names the target.")
    values = {}
    for name, item in value.items():
        if type(name) not in (str, int):
            lines.append(f"{prefix}a key is a string or an integer, not {name!r}.")
        place = f"{where}.{name}" if where else str(name)
        values[TARGET if name == FOREIGN_TARGET else name] = plain(item, place, lines)
    return values


def type_name(value: Any) -> str:
    """The type of a value as messages show it."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _advice(value: Any) -> str:
    if type_name(value) == "torch.dtype":
        return f"Write it as a string, {str(value).removeprefix('torch.')!r}."
    if isinstance(value, os.PathLike):
        return f"Write it as a string, {os.fspath(value)!r}."
    if callable(value):
        return "Pass a node, LazyConfig(...)(...), and let `instantiate` build it."
    return "It holds None, bool, int, float, str, list, tuple, dict and nodes."
