"""Which backend serves a call: named in it, forced by `use_backend`, set by NVSUBQ_BACKEND, or `auto`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

OPS = (
    "selective_scan",
    "linear_scan",
    "rglru_scan",
    "ssd_scan",
    "causal_conv1d",
    "selective_state_update",
    "linear_state_update",
    "rglru_state_update",
    "ssd_state_update",
    "causal_conv1d_update",
)

# A backend is a module that holds functions of the ops' names, or objects that `prepare` calls (`call.py`).
# None: this build does not have it.
# It may also hold
#     inactive() -> str | None                 why it cannot be used here at all (no library, ...)
#     missing(op, device) -> str | None        why it does not serve an op on a device
#     forget()                                 looks anew for what it is made of
#     about() -> str                           what it is, where that depends on the machine
#     declines(op, arguments) -> str | None    why it does not serve this call
#     declines_complex(op) -> str | None       why not complex tensors: all that a traced call can ask
_MODULES: dict[str, str | None] = {
    "native": "nvsubq.ops.native",
    "triton": "nvsubq.ops.triton",
    "torch": "nvsubq.ops.portable",
    "reference": "nvsubq.ops.reference",
    "mamba_ssm": "nvsubq.ops.mamba_ssm",
}
_AUTO = ("native", "triton", "torch")
_ENVIRONMENT = "NVSUBQ_BACKEND"
# The dictionary behind `os.environ` says no in a twentieth of the microsecond that `os.environ` takes.
_ENVIRONMENT_KEY = os.environ.encodekey(_ENVIRONMENT)  # type: ignore[attr-defined]
_forced: ContextVar[str | None] = ContextVar("nvsubq_backend", default=None)


@dataclass(frozen=True)
class Backend:
    """One backend as `backends()` lists it.

    Args:
        name: what `backend=`, `use_backend` and `NVSUBQ_BACKEND` call it.
        active: whether it can be used here.
        reason: why it is not active, or what it is.
        ops: the ops that it serves.
    """

    name: str
    active: bool
    reason: str
    ops: tuple[str, ...]


_WHAT = {
    "torch": "plain PyTorch, vectorised over time, on any device",
    "reference": "the definition: a Python loop over time; only when named",
}


@cache
def _load(name: str) -> tuple[ModuleType | None, Backend]:
    path = _MODULES[name]
    if path is None:
        return None, Backend(name, False, "not part of this build of nvsubq", ())
    try:
        module = import_module(path)
    except ImportError as error:
        return None, Backend(name, False, f"`{path}` cannot be imported: {error}", ())
    inactive = getattr(module, "inactive", None)
    reason = inactive() if inactive else None
    if reason is not None:
        return None, Backend(name, False, reason, ())
    ops = tuple(op for op in OPS if hasattr(module, op))
    return module, Backend(name, True, module.about() if hasattr(module, "about") else _WHAT[name], ops)


def backends() -> list[Backend]:
    """List every backend, whether it is active here, and why not.

    Example:
        >>> [backend.name for backend in backends()]
        ['native', 'triton', 'torch', 'reference', 'mamba_ssm']
    """
    return [_load(name)[1] for name in _MODULES]


def forget() -> None:
    """Look for the backends anew, and prepare every call anew (for tests that change what is there)."""
    global _generation
    for path in _MODULES.values():
        if path in sys.modules and hasattr(sys.modules[path], "forget"):
            sys.modules[path].forget()
    _load.cache_clear()
    _warned.clear()
    _generation += 1


_generation = 0


def generation() -> int:
    """How often `forget` was called."""
    return _generation


def asked() -> str:
    """The backend that `use_backend` or `NVSUBQ_BACKEND` ask for, unchecked, or `auto`."""
    named = _forced.get()
    if named is None and _ENVIRONMENT_KEY in os.environ._data:  # type: ignore[attr-defined]
        named = os.environ.get(_ENVIRONMENT)
    return named or "auto"


def concrete(op: str, backend: str | None, device: str, is_complex: bool = False) -> str:
    """Give the name of the backend that serves `op` on a device: what `auto` means, for a traced call."""
    module = resolve(op, backend, torch.device(device), is_complex=is_complex)
    return next(name for name, path in _MODULES.items() if path == module.__name__)


# Dynamo calls it while it traces, and takes the answer as a constant. (The decorator of `torch.compiler` that
# sets this mark imports the whole compiler.)
concrete._dynamo_marked_constant = True  # type: ignore[attr-defined]


def module(name: str) -> ModuleType:
    """The module of an active backend.

    Raises:
        RuntimeError: it is not active here; the message says why.
    """
    return _check_active(name, "`backend`")


def _check_name(name: object, said_by: str) -> str:
    if name != "auto" and name not in _MODULES:
        allowed = ", ".join(["auto", *_MODULES])
        raise ValueError(f"{said_by} (={name!r}) must be one of {allowed}.")
    return str(name)


def _check_active(name: str, said_by: str) -> ModuleType:
    module, backend = _load(name)
    if module is None:
        raise RuntimeError(f"{said_by} (={name!r}) is not active: {backend.reason}.")
    return module


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend for every op called inside the block (in this thread).

    A `backend=` written in a call wins over it, and it wins over `NVSUBQ_BACKEND`.

    Args:
        name: a name listed by `backends()`, or `auto`.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: it is not active here; the message says why.

    Example:
        >>> import torch
        >>> from nvsubq.ops import causal_conv1d, use_backend
        >>> with use_backend("reference"):
        ...     causal_conv1d(torch.ones(1, 3, 1), torch.ones(1, 2)).flatten().tolist()
        [1.0, 2.0, 2.0]
    """
    if _check_name(name, "`name`") != "auto":
        _check_active(name, "`name`")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def _asked(backend: str | None) -> tuple[str, str]:
    """The name of the backend that is asked for, `auto` for one, and what said it."""
    name, said_by = backend, "`backend`"
    if name is None:
        name, said_by = _forced.get(), "the backend of `use_backend`"
    if name is None:
        name, said_by = os.environ.get(_ENVIRONMENT) or "auto", f"`{_ENVIRONMENT}`"
    return _check_name(name, said_by), said_by


def fused_step(
    name: str, backend: str | None, device: torch.device | None = None
) -> Callable[..., Any] | None:
    """The one-call form of a core's step, where the backend that is asked for has it; else ops are composed.

    Args:
        name: of the step, `mamba_step` for one.
        backend: as in `resolve`.
        device: where the tensors are, if a backend may lack the step there; None: it is not asked.
    """
    chosen = backend or asked()
    if chosen != "auto":
        chosen, _ = _asked(backend)
    module, _ = _load("native" if chosen == "auto" else chosen)
    step = getattr(module, name, None)
    if module is None or step is None or (device is not None and _lacks(module, name, device) is not None):
        return None
    found: Callable[..., Any] = step
    return found


def resolve(
    op: str,
    backend: str | None,
    device: torch.device,
    arguments: Mapping[str, Any] | None = None,
    *,
    is_complex: bool = False,
) -> ModuleType:
    """Give the module that serves `op` for tensors on `device`.

    `auto` passes over a backend that declines the call; a backend that was named must not decline it.

    Args:
        op: a name from `OPS`.
        backend: what the user named, or None for `use_backend`, `NVSUBQ_BACKEND`, `auto` in this order.
        device: where the tensors are.
        arguments: those of the call by name, for backends that do not serve every call.
        is_complex: of a call without `arguments`: some are complex.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the named backend cannot serve the call, or `auto` finds none that can.
    """
    name, said_by = _asked(backend)
    if name == "auto":
        return _first_active(op, device, arguments, is_complex)
    module = _check_active(name, said_by)
    if not hasattr(module, op):
        raise RuntimeError(
            f"{said_by} (={name!r}) does not serve `{op}`; it has {', '.join(_load(name)[1].ops)}."
        )
    reason = _lacks(module, op, device) or _declined(module, op, arguments, is_complex)
    if reason is not None:
        raise RuntimeError(f"{said_by} (={name!r}) does not serve this call of `{op}`: {reason}.")
    return module


def _lacks(module: ModuleType, op: str, device: torch.device) -> str | None:
    missing = getattr(module, "missing", None)
    return None if missing is None else missing(op, device)


def _declined(
    module: ModuleType, op: str, arguments: Mapping[str, Any] | None, is_complex: bool
) -> str | None:
    if is_complex and (declines_complex := getattr(module, "declines_complex", None)) is not None:
        return declines_complex(op)
    declines = getattr(module, "declines", None)
    return None if declines is None or arguments is None else declines(op, arguments)


def _first_active(
    op: str, device: torch.device, arguments: Mapping[str, Any] | None, is_complex: bool
) -> ModuleType:
    lacks: dict[str, str] = {}
    for name in _AUTO:
        if name == "triton" and device.type != "cuda":
            continue
        module, backend = _load(name)
        if module is None or not hasattr(module, op):
            lacks[name] = backend.reason
        elif lacking := _lacks(module, op, device):
            lacks[name] = lacking
        elif _declined(module, op, arguments, is_complex) is None:
            if device.type == "cuda" and "native" in lacks and not torch.version.hip:
                how = "on Triton's" if name == "triton" else "slowly"
                _warn_once(f"`{op}` runs without its CUDA kernel, {how}: {lacks['native']}.")
            return module
    reasons = "; ".join(f"{name}: {_load(name)[1].reason}" for name in _AUTO)
    raise RuntimeError(f"no active backend serves `{op}` on {device}: {reasons}.")


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)
