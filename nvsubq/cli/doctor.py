"""`nvsubq doctor`: what is installed, which backends are active, and whether ops and cores work here.

Needs the base install only.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import os
import platform
import re
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from typing import Any

REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?(?P<wanted>[^;]*)(?:;.*\bextra\s*==\s*['\"](?P<extra>[^'\"]+))?"
)
DEVELOPERS = ("test",)
"""Extras that are not shown."""


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    subparsers.add_parser(
        "doctor",
        help="say what is installed, which backends are active, and why others are not",
        description=(
            "Shows versions, extras, devices, backends and configs, then runs every op against its "
            "reference and every core forward and backward. Exit code 0: all is well."
        ),
        allow_abbrev=False,
    )


def run(args: argparse.Namespace) -> int:
    """Prints the findings; returns 0 if all is well, else 1."""
    failed: list[str] = []
    _versions()
    _extras()
    _devices()
    _backends()
    for title, check in (("configs", _configs), ("ops", _ops), ("cores", _cores)):
        try:
            failed += check()
        except Exception as error:  # one part that is broken must not hide the others
            _line(title, f"FAILED: {type(error).__name__}: {error}")
            failed.append(title)
    print()
    if failed:
        print(f"not well: {', '.join(failed)}")
        return 1
    print("all is well")
    return 0


def _heading(text: str) -> None:
    print(f"\n{text}")


def _line(name: str, text: str, width: int = 18) -> None:
    print(f"  {name:<{width}} {text}".rstrip())


def _lines(label: str, text: str) -> None:
    """Prints a text of several lines, or of a long one, beside its label."""
    for part in (part for line in text.splitlines() for part in textwrap.wrap(line, 79)):
        _line(label, part)
        label = ""


def _requirements() -> list[tuple[str, str, str | None]]:
    """Name, wanted versions and extra (None: base) of everything that nvsubq asks for."""
    try:
        lines = importlib.metadata.requires("nvsubq") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [match for match in map(REQUIREMENT.match, lines) if match]
    return [(match["name"], match["wanted"].strip(), match["extra"]) for match in found]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> None:
    from nvsubq import __version__

    print(f"nvsubq {__version__}")
    _line("python", f"{platform.python_version()}, {platform.platform()}")
    for name, _, extra in _requirements():
        if extra is None:
            _line(name, _installed(name) or "not installed")


def _extras() -> None:
    _heading("extras")
    requirements = _requirements()
    if not requirements:
        _line("unknown", "nvsubq runs from a folder and is not installed: pip install .")
    extras = dict.fromkeys(extra for _, _, extra in requirements if extra not in (None, *DEVELOPERS))
    for extra in extras:
        wanted = [(name, versions) for name, versions, own in requirements if own == extra]
        missing = [name for name, _ in wanted if _installed(name) is None]
        _line(extra, f"not installed: pip install 'nvsubq[{extra}]'" if missing else "installed")
        for name, versions in wanted:
            version = _installed(name)
            _line(f"  {name}", version or f"not installed (needs {versions or 'any version'})")


def _devices() -> None:
    import torch

    _heading("devices")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capability = torch.backends.cpu.get_cpu_capability()
    _line("cpu", f"{cores} usable cores, {capability}; threads of torch: {torch.get_num_threads()}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            memory = about.total_memory / 2**30
            _line(f"cuda:{index}", f"{about.name}, {memory:.0f} GiB, capability {about.major}.{about.minor}")
            _line("", f"native kernels: {_code_for((about.major, about.minor))}")
        _line("cuda versions", _cuda_versions())
    elif torch.version.cuda is None:
        _line("cuda", f"none: torch {torch.__version__} is built without CUDA")
    else:
        _line("cuda", f"none: torch is built for CUDA {torch.version.cuda} and finds no device or driver")


def _code_for(capability: tuple[int, int]) -> str:
    """Whether the native library can run on a GPU."""
    from nvsubq.ops.native import library

    reason = library.inactive("cuda") or library.lacks_code(capability)
    return f"none: {reason}" if reason else f"compiled for {', '.join(library.architectures())}"


def _cuda_versions() -> str:
    """Those of the driver, torch and the native library; a driver serves its major version and older ones."""
    import torch

    from nvsubq.ops.native import library

    driver = _driver_version()
    found = [f"driver {driver or 'unknown'}", f"torch {torch.version.cuda}"]
    built = [torch.version.cuda or ""]
    if library.inactive("cuda") is None:
        info = re.search(r"CUDA ([\d.]+)", library.library("cuda").nvsubq_build_info().decode())
        built.append(info[1] if info else "")
        found.append(f"native kernels {built[-1] or 'unknown'}")
    text = ", ".join(found)
    newest = max((int(version.split(".")[0]) for version in built if version), default=0)
    if driver and int(driver.split(".")[0]) < newest:
        text += f"; the driver is too old: one for CUDA {newest} is needed"
    return text


def _driver_version() -> str | None:
    """The CUDA version that the driver supports, or None where it cannot be asked."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _backends() -> None:
    from nvsubq.ops import backends

    _heading("backends of nvsubq.ops")
    for backend in backends():
        state = "active" if backend.active else "not active"
        _lines(backend.name, f"{state}: {backend.reason}")
    forced = os.environ.get("NVSUBQ_BACKEND")
    if forced:
        _line("NVSUBQ_BACKEND", forced)


def _configs() -> list[str]:
    from nvsubq.cli.paths import config_dir

    _heading("configs")
    try:
        folder = config_dir()
    except FileNotFoundError as error:
        _line("folder", f"FAILED: {error}")
        return ["configs"]
    _line("folder", str(folder))
    for group in ("experiment", "core", "model", "data"):
        names = sorted(path.stem for path in (folder / group).glob("*.yaml"))
        _lines(group, ", ".join(names))
    return []


def _ops() -> list[str]:
    """Every active backend on every device against the reference, forward and backward."""
    import torch

    from nvsubq.cli import self_test
    from nvsubq.ops import backends, dispatch

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    tested = [backend for backend in backends() if backend.active and backend.name != "reference"]
    _heading("ops: largest error relative to the reference, outputs / gradients")
    failed = []
    for device in devices:
        for backend in tested:
            for op in self_test.OPS:
                if op not in backend.ops:
                    continue
                label = f"{op}, {backend.name}, {device}"
                missing = getattr(dispatch.module(backend.name), "missing", None)
                if missing is not None and (lacks := missing(op, torch.device(device))):
                    _line(label, f"not there: {lacks}", width=28)
                    continue
                failed += _attempt(label, partial(self_test.op_error, op, backend.name, device))
    return failed


def _cores() -> list[str]:
    """Every core that a config names, forward and backward."""
    from nvsubq.cli import self_test
    from nvsubq.cli.paths import config_dir

    _heading("cores: forward and backward, [2, 32, 64]")
    failed = []
    for file in sorted((config_dir() / "core").glob("*.yaml")):
        lacks = self_test.core_lacks(file)
        if lacks is not None:
            _line(file.stem, f"not there: {lacks}", width=28)
            continue
        failed += _attempt(file.stem, partial(self_test.core_runs, file))
    return failed


def _attempt(label: str, test: Callable[[], str]) -> list[str]:
    """Runs a test, prints what it says; returns its label where it fails."""
    start = time.perf_counter()
    try:
        text, failed = f"ok  {test()}", False
    except Exception as error:
        text, failed = f"FAILED: {type(error).__name__}: {error}", True
    _line(label, f"{text}  ({1000 * (time.perf_counter() - start):.0f} ms)", width=28)
    sys.stdout.flush()
    return [label] if failed else []
