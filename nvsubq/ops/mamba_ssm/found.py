"""Which of the packages' modules are there; `mamba_ssm` itself is never imported, it imports too much."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch

MODULES = {"selective_scan": "selective_scan_cuda", "causal_conv1d": "causal_conv1d"}
PACKAGES = {"selective_scan": "mamba-ssm", "causal_conv1d": "causal-conv1d"}
ARGUMENTS = 9
"""Of `selective_scan_cuda.fwd`; another package (lrnnx) installs a module of that name which takes more."""


@cache
def _found(op: str) -> tuple[ModuleType | None, str]:
    name, package = MODULES[op], PACKAGES[op]
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            return None, f"`{name}` cannot be imported: {error}"
        return None, f"there is no `{name}`; {package}'s CUDA build has it"
    except Exception as error:  # a build for another torch: undefined symbols, and more
        return None, f"`{name}` cannot be imported: {type(error).__name__}: {error}"
    if op == "selective_scan":
        count = len(re.findall(r"\barg\d+:", getattr(module.fwd, "__doc__", None) or ""))
        if count not in (0, ARGUMENTS):
            return None, (
                f"the installed `{name}` takes {count} arguments and mamba-ssm's {ARGUMENTS}: "
                "another package has written over it"
            )
    return module, ""


def module(op: str) -> ModuleType:
    """The module that serves an op.

    Raises:
        RuntimeError: it is not there.
    """
    found, reason = _found(op)
    if found is None:
        raise RuntimeError(f"backend 'mamba_ssm' has no `{op}`: {reason}.")
    return found


def inactive() -> str | None:
    """Why the backend cannot be used here at all, or None."""
    found, reason = _found("selective_scan")
    return None if found is not None else reason


def missing(op: str, device: torch.device) -> str | None:
    """Why it does not serve an op on a device, or None."""
    found, reason = _found(op)
    if found is None:
        return reason
    return None if device.type == "cuda" else f"its kernels take CUDA tensors, not {device.type} ones"


def forget() -> None:
    """Look for the modules anew."""
    _found.cache_clear()


def about() -> str:
    """What is there, with versions."""
    said = []
    for op, package in PACKAGES.items():
        if _found(op)[0] is None:
            said.append(f"no `{op}`: {_found(op)[1]}")
        else:
            said.append(f"`{op}` of {_versioned(package)}; only when named")
    return "\n".join(said)


def _versioned(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # a module that was put there by hand
        return package
