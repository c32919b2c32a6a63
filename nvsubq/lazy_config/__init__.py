"""Configs that are checked before anything is built: nodes in Hydra's format, and the objects they describe.

A node is a mapping with `_target_` and the target's arguments. `_partial_`, `_args_` and `_recursive_` mean
what they mean in Hydra; `_convert_` has no effect, containers are always plain. Models are built here and not
by Hydra, which checks no signatures. Importing this imports neither torch nor the rest of the package.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nvsubq.lazy_config import targets
from nvsubq.lazy_config.plain import create, plain
from nvsubq.lazy_config.plan import Call, ConfigError, Problem, build, error_of, factory_of
from nvsubq.lazy_config.reader import Reader, full_key
from nvsubq.lazy_config.signature import ARGS, FOREIGN_TARGET, PARTIAL, SPECIAL, TARGET, Signature, wrong_name
from nvsubq.lazy_config.targets import TargetError
from nvsubq.lazy_config.yaml_text import check_size, dump, is_scalar

__all__ = [
    "PLACEHOLDER",
    "ConfigError",
    "LazyConfig",
    "allow_targets",
    "as_factory",
    "from_yaml",
    "instantiate",
    "to_yaml",
    "validate",
]

PLACEHOLDER = "???"  # OmegaConf's MISSING: a value that somebody must still give


def allow_targets(*entries: str) -> None:
    """Let configs name more targets, in this process.

    The list narrows what a config can run. It is no sandbox: what is listed can be called with anything.

    Args:
        entries: ``"my_pkg.*"``, or an exact dotted path, honoured even as a re-export.

    Raises:
        ConfigError: an entry is neither of the two, such as a bare ``*``.

    Example:
        >>> allow_targets("fractions.*", "collections.OrderedDict")
    """
    try:
        targets.allow(entries)
    except TargetError as error:
        raise ConfigError(str(error)) from None


class LazyConfig:
    """The node of a target: ``LazyConfig(target)(**arguments)``.

    Args:
        target: class, function or dotted path, stored as the shortest public path. Passing the object itself
            lets configs name it from now on; a path must be on the allow-list.
        partial: the node builds a factory (``_partial_: true``) in place of the object.
        full: write every argument with its default, ??? for required ones, so that overrides need no ``+``.

    Raises:
        ConfigError: the target has no public path or is not allowed, an argument does not exist, or a value
            is not plain data.

    Example:
        >>> import fractions
        >>> LazyConfig(fractions.Fraction)(numerator=1)
        {'_target_': 'fractions.Fraction', 'numerator': 1}
    """

    def __init__(self, target: Any, *, partial: bool = False, full: bool = False) -> None:
        try:
            if isinstance(target, str):
                self.target: Callable[..., Any] = targets.resolve(target)
                self.path = targets.shorten(target, self.target)
            else:
                self.path = targets.authorise(target)
                self.target = target
        except TargetError as error:
            raise error_of([Problem(_shown(target), (str(error),))]) from None
        self.partial = partial
        self.full = full

    def __call__(self, /, **arguments: Any) -> DictConfig:
        lines: list[str] = []
        values = {name: plain(value, f"argument {name!r}", lines) for name, value in arguments.items()}
        positional = values.get(ARGS, [])
        if not isinstance(positional, list):
            lines.append("`_args_` must be a list.")
            positional = []
        if PARTIAL in values:
            lines.append("`_partial_` is written by LazyConfig(target, partial=True).")
        if TARGET in values or FOREIGN_TARGET in values:
            lines.append("`_target_` is the target of LazyConfig itself.")
        signature = Signature(self.target)
        names = [name for name in values if name not in (*SPECIAL, FOREIGN_TARGET)]
        lines += [wrong_name(name, near) for name, near in signature.wrong_names(names).items()]
        lines += signature.wrong_count(names, len(positional))
        node: dict[str, Any] = {TARGET: self.path, **({PARTIAL: True} if self.partial else {})}
        if self.full:
            node.update(_defaults(signature, len(positional)))
        if not lines:
            try:
                return OmegaConf.create({**node, **values})
            except OmegaConfBaseException as error:  # an interpolation that cannot be parsed
                lines.append(f"argument {error.full_key!r}: {str(error).splitlines()[0]}.")
        raise error_of([Problem(self.path, tuple(lines), str(signature))])


def instantiate(cfg: Any, /, **late: Any) -> Any:
    """Build what a config describes, after all of it has been checked.

    Args:
        cfg: a node, or a list or mapping that contains nodes. Interpolations are resolved from the root that
            it is attached to.
        late: arguments for the root target, passed as they are (live objects); they replace the config's.

    Returns:
        The object; a `functools.partial` for a `_partial_` node; plain lists and dicts around nodes.

    Raises:
        ConfigError: all problems of the config at once. An exception of a constructor keeps its type and
            gains the note ``while building <target> at <key>``.

    Example:
        >>> import fractions
        >>> instantiate(LazyConfig(fractions.Fraction)(numerator=1), denominator=3)
        Fraction(1, 3)
    """
    if cfg is None and not late:
        return None
    root = _root(cfg, "instantiate")
    special = [name for name in late if name in (*SPECIAL, FOREIGN_TARGET)]
    if special:
        raise ConfigError(
            f"{special[0]!r} belongs into the config, not into the call of `instantiate`.", full_key(root)
        )
    plan = _read(root, {full_key(root): tuple(late)})
    if late and not isinstance(plan, Call):
        raise ConfigError(
            f"{next(iter(late))!r} has no target to go to: the config has no `_target_`.", full_key(root)
        )
    return build(plan, late)


def validate(cfg: Any, /, *, late: Iterable[str] | Mapping[str, Iterable[str]] = ()) -> None:
    """Check a config without building anything, and report all problems at once.

    Args:
        cfg: a node, or a list or mapping that contains nodes, such as the whole config of a run.
        late: names of arguments that `instantiate` will be given: for the node `cfg` itself, or by key, as in
            ``{"model": ["in_channels"]}``.

    Raises:
        ConfigError: every target that is not allowed or not found, every argument that does not exist or has
            no value, every interpolation that does not resolve.

    Example:
        >>> allow_targets("fractions.*")
        >>> validate({"half": {"_target_": "fractions.Fraction", "numerater": 1}})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        nvsubq.lazy_config.ConfigError: fractions.Fraction
          no argument 'numerater'. Did you mean 'numerator'?
          signature: Fraction(numerator=0, denominator=None...)
          at: half
    """
    root = _root(cfg, "validate")
    if isinstance(late, Mapping):
        _read(root, {key: tuple(names) for key, names in late.items()})
    else:
        _read(root, {full_key(root): tuple(late)})


def as_factory(core: Any) -> Callable[..., Any]:
    """What builds a module on call: a callable stays itself, a node becomes a factory.

    The factory of a node is a `functools.partial` of its target, whether or not the node says `_partial_`.
    Nodes among its arguments are built anew in each call: two modules from one factory share no weights.

    Args:
        core: class, function, `functools.partial`, or a node (DictConfig or dict).

    Raises:
        ConfigError: the node has a problem, or is not a node. Values that are ??? are left for the call.
        TypeError: neither a callable nor a config.

    Example:
        >>> import fractions
        >>> as_factory(LazyConfig(fractions.Fraction)(denominator=3))(numerator=1)
        Fraction(1, 3)
    """
    if isinstance(core, LazyConfig):
        raise TypeError(
            f"`core` (=LazyConfig({core.path})) has no arguments yet: call it, LazyConfig(...)(...)."
        )
    if callable(core):
        return core
    if not isinstance(core, (DictConfig, dict)):
        raise TypeError(
            f"`core` (={core!r}) must be a class, a function or a config node, not {type(core).__name__}."
        )
    root = _root(core, "as_factory")
    plan = _read(root, {}, partial=True)
    if not isinstance(plan, Call):
        raise ConfigError("a factory needs a node with `_target_`, this mapping has none.", full_key(root))
    return factory_of(plan)


def to_yaml(cfg: Any) -> str:
    """The YAML of a config; interpolations and ??? are kept, ``__target__`` is written as ``_target_``.

    Raises:
        ConfigError: a value that is not plain data.

    Example:
        >>> print(to_yaml({"lr": 0.1, "rate": "${lr}"}), end="")
        lr: 0.1
        rate: ${lr}
    """
    return dump(OmegaConf.to_container(create(cfg, "to_yaml"), resolve=False))


def from_yaml(text_or_path: str | os.PathLike[str]) -> DictConfig | ListConfig:
    """The config in a YAML text or file, read by a safe loader.

    Args:
        text_or_path: a path, or a string: the name of an existing file, else YAML.

    Raises:
        ConfigError: neither a file nor a mapping or list in YAML; a tag, a duplicate key, a syntax error.
        OSError: a path that cannot be read.

    Example:
        >>> from_yaml("d_model: ???\\nrate: 1e-3")
        {'d_model': '???', 'rate': 0.001}
    """
    source, text = "the text", text_or_path
    if not isinstance(text, str) or ("\n" not in text and os.path.isfile(text)):
        source = os.fspath(text)
        text = Path(source).read_text(encoding="utf-8")
    try:
        check_size(text)
        if is_scalar(text):
            raise ConfigError(f"{text.strip()!r} is neither an existing file nor a mapping or list in YAML.")
        return create(OmegaConf.create(text), f"from_yaml: {source}")
    except YAMLError as error:
        raise ConfigError(f"{source} is not YAML that a config may use: {error}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {str(error).splitlines()[0]}", str(error.full_key or "")) from error
    except ConfigError:
        raise
    except (ValueError, OverflowError) as error:  # a number of thousands of digits, a date that is none
        raise ConfigError(f"{source} holds a value that cannot be read: {error}") from error


def _read(
    root: DictConfig | ListConfig, late: Mapping[str, tuple[str, ...]], *, partial: bool | None = None
) -> Any:
    reader = Reader(late)
    plan = reader.read(root, full_key(root), partial=partial)
    if reader.problems:
        raise error_of(reader.problems)
    return plan


def _root(cfg: Any, caller: str) -> DictConfig | ListConfig:
    """A config is used where it is attached; plain containers become one."""
    if isinstance(cfg, (DictConfig, ListConfig)):
        return cfg
    return create(cfg, caller)


def _defaults(signature: Signature, positional: int) -> dict[str, Any]:
    """Every argument that can be given by name. A default that is not plain data stays the target's own."""
    written: dict[str, Any] = {}
    bound = signature.positional[:positional]
    for parameter in signature.parameters:
        if parameter.name not in signature.names or parameter.name in bound:
            continue
        lines: list[str] = []
        empty = parameter.default is inspect.Parameter.empty
        value = PLACEHOLDER if empty else plain(parameter.default, parameter.name, lines)
        if not lines:
            written[parameter.name] = value
    return written


def _shown(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__qualname__", None) or repr(target)
