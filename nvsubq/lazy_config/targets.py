"""Which dotted paths a config may name, and the objects behind them.

A path is tested as text before anything is imported, then the object found is tested by the module and name
it was defined under: an allowed package that imports ``os`` does not hand ``os.system`` to configs. Of the
packages on the default list only what `vetted` lists is a target. The list narrows what a config can run; it
is no sandbox.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from nvsubq.lazy_config import vetted

VARIABLE = "NVSUBQ_ALLOW_TARGETS"
_DEFAULT = ("nvsubq.*", "torch.nn.*", "torch.optim.*", "lightning.*", "torchmetrics.*", "mamba_ssm.*")
# Extras of nvsubq that bring a package of the list, or one that `nvsubq train` adds to it.
_EXTRAS = {"mamba_ssm": "cuda", "lightning": "train", "torchmetrics": "train", "monai": "monai"}
_REFUSED = ("nvsubq.lazy_config.", "nvsubq._")  # the code of the policy: a config must not widen it
# A tuple that is replaced, never changed: no method call on the policy, found by some path, can add to it.
_policy: tuple[str, ...] = _DEFAULT
_lock = threading.Lock()


class TargetError(ValueError):
    """Why a target is refused or not found; `lazy_config` turns it into a `ConfigError` with the place."""


def policy() -> tuple[str, ...]:
    """The entries in force: the defaults, those of the environment, those added in code."""
    return _policy + _from_environment()


def allow(entries: Iterable[str]) -> None:
    """Add entries ``pkg.*`` or exact paths for this process."""
    global _policy
    checked = [_checked_entry(entry) for entry in entries]
    with _lock:
        _policy += tuple(entry for entry in dict.fromkeys(checked) if entry not in _policy)


def resolve(path: str) -> Callable[..., Any]:
    """The class or function that `path` names.

    Raises:
        TargetError: the path is malformed, not allowed or not found, or what it leads to is not allowed.
    """
    _check_text(path)
    exact = path in policy()
    target = _locate(path, exact)
    if isinstance(target, ModuleType) or not callable(target):
        raise TargetError(f"is a {type(target).__name__}, not a class or function.")
    _check_identity(path, target, exact)
    return target


def authorise(target: Any) -> str:
    """The shortest public path of a class or function, which configs may name from now on."""
    path = public_path(target)
    for own in (path, *(_own_paths(target) or ())):
        _check_not_refused(own)
    try:
        _check_text(path)
        _check_identity(path, target, path in policy())
    except TargetError:
        allow([path])
    return path


def shorten(path: str, target: Any) -> str:
    """The shortest public path of `target` if configs may name that as well, else `path`."""
    try:
        short = public_path(target)
        return short if resolve(short) == target else path
    except TargetError:
        return path


def public_path(target: Any) -> str:
    """The shortest dotted path, over the packages around the definition, that leads back to `target`."""
    if inspect.ismethod(target) and isinstance(target.__self__, type):
        path = f"{public_path(target.__self__)}.{target.__name__}"
        if target.__name__.startswith("_"):
            raise TargetError(f"{path!r} is private: no component of a target may start with '_'.")
        return path
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        kind = type(target).__name__
        raise TargetError(f"a target is a class, a function or a dotted path, not an instance of {kind}.")
    if "<lambda>" in name:
        raise TargetError(
            "a lambda cannot be a target: a config could not name it. Define a function in a module."
        )
    if "<locals>" in name:
        raise TargetError(f"{name!r} is local: a config could not name it. Define it at the top of a module.")
    if module == "__main__":
        raise TargetError(
            f"{name!r} is defined in __main__: a config could not name it. Move it into a module."
        )
    for path in _candidate_paths(module, name):
        if not any(part.startswith("_") for part in path.split(".")) and _found(path, module, name) is target:
            return path
    raise TargetError(f"no public path leads back to {module}.{name}. Pass one as a string.")


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name that `name` was probably meant to be."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return found[0] if found else None


@functools.cache
def _from_environment() -> tuple[str, ...]:
    entries = os.environ.get(VARIABLE, "").replace(",", " ").split()
    return tuple(_checked_entry(entry, f" in {VARIABLE}") for entry in entries)


def _checked_entry(entry: str, where: str = "") -> str:
    if not isinstance(entry, str):
        raise TargetError(f"allow-list entry{where} {entry!r} must be a string, 'pkg.*' or an exact path.")
    stem = entry.removesuffix(".*")
    parts = stem.split(".")
    if not all(part.isidentifier() for part in parts) or (stem == entry and len(parts) == 1):
        raise TargetError(f"allow-list entry{where} {entry!r} must be 'pkg.*' or an exact dotted path.")
    if any(part.startswith("_") for part in parts):
        raise TargetError(f"allow-list entry{where} {entry!r}: no component may start with '_'.")
    return entry


def _listed(path: str) -> bool:
    return _within(path, policy())


def _within(path: str, entries: Iterable[str]) -> bool:
    return any(path == entry or (entry.endswith(".*") and path.startswith(entry[:-1])) for entry in entries)


def _by_default_alone(path: str) -> bool:
    """Whether the default list allows a path, and no entry of the user, whose word goes for all below it."""
    return _within(path, _DEFAULT) and not listed_by_user(path)


def listed_by_user(path: str) -> bool:
    """Whether an entry of the user's allows a path, and not the default list alone."""
    return _within(path, (entry for entry in policy() if entry not in _DEFAULT))


def is_allowed_text(path: str) -> bool:
    """Whether a string reads like a target that a config may name; nothing is imported."""
    try:
        _check_text(path)
    except TargetError:
        return False
    return True


def _check_not_refused(path: str) -> None:
    if f"{path}.".startswith(_REFUSED):
        raise TargetError(f"{path!r} belongs to the config layer itself and is never a target.")


def _check_text(path: str) -> None:
    """Everything that can be said about a path before anything is imported."""
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise TargetError(f"{path!r} is not a dotted path such as 'nvsubq.cores.Mamba'.")
    if any(part.startswith("_") for part in parts):
        raise TargetError(f"{path!r} is private: no component of a target may start with '_'.")
    _check_not_refused(path)
    if not _listed(path):
        packages = {entry.split(".")[0] for entry in policy()}
        near = nearest(parts[0], packages - {parts[0]}, 0.7)
        meant = f" Did you mean {'.'.join([near, *parts[1:]])!r}?" if near else ""
        raise TargetError(
            f"{path!r} is not on the allow-list ({', '.join(policy())}).{meant}\n{_how_to(path)}"
        )


def _check_identity(path: str, target: Any, exact: bool) -> None:
    """Hold the object against the lists by where it was defined, unless `path` is an exact entry."""
    own_paths = _own_paths(target)
    for own in own_paths or ():
        _check_not_refused(own)
        if exact or _is_builtin_function(path, own):
            continue
        if not _listed(own):
            raise TargetError(f"{path!r} is really {own!r}, which is not on the allow-list.\n{_how_to(path)}")
        if _by_default_alone(own) and not vetted.is_vetted(own, target):
            why = (
                "is a method: a config builds objects and calls none of their methods"
                if vetted.is_method(target)
                else "is none of the classes and functions of its package that a config may name"
            )
            raise TargetError(f"{path!r} {why}.\n{_how_to(path)}")
    if own_paths is None and not exact:
        kind = type(target).__name__
        raise TargetError(f"{path!r} is an instance of {kind}, whose origin is not known.\n{_how_to(path)}")


def _is_builtin_function(path: str, own: str) -> bool:
    """`torch.nn.functional` shows built-ins such as gelu and conv2d whose own module is private."""
    return path.startswith("torch.nn.functional.") and own.startswith(
        ("torch._C._nn.", "torch._VariableFunctionsClass.")
    )


def _how_to(path: str) -> str:
    return f"to allow it: nvsubq.allow_targets({path!r}) in code, or {VARIABLE}; never in a config."


def _own_paths(target: Any) -> list[str] | None:
    """The paths a callable was defined under, or None where it does not tell."""
    if inspect.ismethod(
        target
    ):  # whose it is, and where it was written: an inherited classmethod has two homes
        home = target.__self__ if isinstance(target.__self__, type) else type(target.__self__)
        function = _own_paths(target.__func__)
        return None if function is None else [f"{home.__module__}.{home.__qualname__}", *function]
    if not isinstance(target, type) and not inspect.isroutine(target):
        return None
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    owner: Any = getattr(target, "__objclass__", None)  # slots and methods of built-in types carry no module
    if owner is None and inspect.isbuiltin(target) and not isinstance(target.__self__, ModuleType):
        owner = target.__self__ if isinstance(target.__self__, type) else type(target.__self__)
    if module is None and isinstance(owner, type):
        module, name = owner.__module__, f"{owner.__qualname__}.{target.__name__}"
    return [f"{module}.{name}"] if isinstance(module, str) and isinstance(name, str) else None


def _locate(path: str, exact: bool) -> Any:
    """Walk `path`: attributes first, modules below the package where there is no such attribute."""
    parts = path.split(".")
    found: Any = _import(parts[0])
    for i, part in enumerate(parts[1:], start=1):
        prefix = ".".join(parts[:i])
        if isinstance(found, ModuleType) and found.__name__ != prefix:
            # Another module under a borrowed name (`pkg.os`): tested first, its attributes may import lazily.
            real = ".".join([found.__name__, *parts[i:]])
            _check_not_refused(real)
            if not exact and not _listed(real):
                raise TargetError(
                    f"{path!r} is really {real!r}, which is not on the allow-list.\n{_how_to(path)}"
                )
        found = _member(found, prefix, part, exact)
        if isinstance(found, ModuleType) and not exact:
            _check_module(found.__name__)
    return found


def _check_module(name: str) -> None:
    """A module without a target is not imported, and not walked through where it is already."""
    if _by_default_alone(name) and not vetted.may_hold(name):
        raise TargetError(
            f"nothing in {name!r} is a target that a config may name.\n{_how_to(f'{name}.NAME')}"
        )


def _member(parent: Any, prefix: str, name: str, exact: bool) -> Any:
    try:
        return getattr(parent, name)
    except AttributeError:
        if isinstance(parent, ModuleType) and hasattr(parent, "__path__") and parent.__name__ == prefix:
            if not exact and importlib.util.find_spec(f"{prefix}.{name}") is not None:
                _check_module(f"{prefix}.{name}")
            return _import(f"{prefix}.{name}", parent)
    except Exception as error:  # a lazy attribute whose import fails
        raise TargetError(f"cannot import '{prefix}.{name}': {type(error).__name__}: {error}") from error
    raise TargetError(_no_member(parent, prefix, name))


def _import(name: str, parent: ModuleType | None = None) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # the module is there, something that it imports is not
            raise TargetError(f"cannot import {name!r}: {error}") from error
        if parent is None:
            raise TargetError(f"no package {name!r} is installed.{_how_to_install(name)}") from error
        prefix, _, last = name.rpartition(".")
        raise TargetError(_no_member(parent, prefix, last)) from error
    except Exception as error:
        raise TargetError(f"cannot import {name!r}: {type(error).__name__}: {error}") from error


def _how_to_install(package: str) -> str:
    extra = _EXTRAS.get(package)
    return f"\nto install it: pip install 'nvsubq[{extra}]'." if extra else ""


def _no_member(parent: Any, prefix: str, name: str) -> str:
    names = {entry for entry in dir(parent) if not entry.startswith("_")}
    if isinstance(parent, ModuleType):
        names |= {module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", None) or [])}
    near = nearest(name, names)
    return f"{prefix!r} has no {name!r}." + (f" Did you mean '{prefix}.{near}'?" if near else "")


def _candidate_paths(module: str, name: str) -> list[str]:
    """Paths from the outermost package inwards; those that a package lists in `__all__` come first."""
    parts = module.split(".")
    prefixes = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    first = name.split(".")[0]

    def exported(prefix: str) -> bool:
        listed = getattr(sys.modules.get(prefix), "__all__", None)
        return prefix == module or listed is None or first in listed

    return [f"{prefix}.{name}" for prefix in sorted(prefixes, key=lambda prefix: not exported(prefix))]


def _found(path: str, module: str, name: str) -> Any:
    """What is at `path`, without a lazy import for a name that the package does not claim to have."""
    package = sys.modules.get(path.removesuffix(f".{name}"))
    first = name.split(".")[0]
    if package is None or (first not in vars(package) and first not in dir(package)):
        return None
    try:
        return functools.reduce(getattr, name.split("."), package)
    except Exception:  # a lazy attribute that cannot be imported is no path to the target
        return None
