"""One clear message for whatever goes wrong on the command line, and exit code 1.

A traceback is shown only when asked for: ``NVSUBQ_TRACEBACK=1``. Standard library only, so that the
base install can report that something is missing.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "NVSUBQ_TRACEBACK"
HINT = f"(for a traceback: {VARIABLE}=1)"

EXTRAS = {
    "train": (
        *("hydra", "lightning", "torchmetrics", "mlxtend", "sklearn", "skimage", "nibabel", "nilearn"),
        *("matplotlib", "rich", "PIL", "jinja2"),
    ),
    "ocean": ("iris_sample_data", "h5py"),
    "loggers": ("tensorboard", "wandb"),
    "monai": ("monai",),
    "timm": ("timm",),
    "cuda": ("mamba_ssm", "causal_conv1d"),
    "slurm": ("hydra_plugins", "submitit"),
    "onnx": ("onnx", "onnxscript"),
}
"""Modules that each extra of pyproject.toml installs."""

_NO_MEMORY = re.compile(r"you tried to allocate \d+ bytes|Storage size calculation overflowed.*")

WRITING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Errors that another folder may not have."""

OPTIONS = "Available options in "


def wants_traceback() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def report(error: BaseException, *, context: str = "") -> int:
    """Writes one message for `error` to standard error.

    Args:
        error: what went wrong.
        context: what was being done, where that is not plain: the job of a sweep.

    Returns:
        The exit code: 130 for Ctrl-C, else 1.
    """
    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write("stopped\n")
        return 130
    if wants_traceback():
        traceback.print_exception(error)
    sys.stdout.flush()
    where = f" ({context})" if context else ""
    sys.stderr.write(f"error{where}: {message(error)}\n")
    return 1


def message(error: BaseException) -> str:
    """What a user is told about `error`."""
    text = _special(error)
    if text is None:
        text = str(error).strip()
        if not isinstance(error, ValueError) or not text:
            # Not written for users: its type says something, and where it came from may help.
            text = f"{type(error).__name__}: {text} {HINT}" if text else f"{type(error).__name__} {HINT}"
    return "\n  ".join([text, *(str(note) for note in getattr(error, "__notes__", []))])


def _special(error: BaseException) -> str | None:
    if isinstance(error, ModuleNotFoundError):
        return missing_module(error)
    kind = type(error).__name__
    module = type(error).__module__.split(".")[0]
    if kind == "OverrideParseException":
        return f"cannot read the override {error.override!r}: it must have the form key=value."  # type: ignore[attr-defined]
    if module == "hydra":  # before OSError, which Hydra's error of a missing config is
        return hydra_message(str(error))
    if isinstance(error, OSError):
        return _os_error(error)
    if kind == "ReportError":
        return str(error)
    if kind == "MisconfigurationException":  # Lightning's, for what a Trainer cannot do
        return str(error).strip()
    if module == "omegaconf":
        return str(error).strip().splitlines()[0] + _key_of(str(error))
    if isinstance(error, MemoryError) or (kind == "RuntimeError" and _NO_MEMORY.search(str(error))):
        found = _NO_MEMORY.search(str(error))
        return f"there is not enough memory{': ' + found.group(0) if found else ''}."
    if isinstance(error, FloatingPointError):
        return str(error)
    return None


def missing_module(error: ModuleNotFoundError) -> str | None:
    """The sentence for a module of an extra; None for any other."""
    name = (error.name or "").split(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    if extra is None:
        return None
    return (
        f"this command needs the package of {name!r}, which is not installed: pip install 'nvsubq[{extra}]'"
    )


def _os_error(error: OSError) -> str:
    reason = error.strerror or str(error)
    place = f" {error.filename}" if error.filename else ""
    if error.errno == errno.ENOSPC or (error.errno == errno.EDQUOT):
        return f"the disk is full: cannot write{place}."
    if error.errno == errno.ENOTDIR:
        return f"{reason}:{place}. A part of this path is a file."
    return f"{reason}:{place}" if place else f"{type(error).__name__}: {reason}"


def advise_other_place(error: BaseException, runs: Path) -> None:
    """Adds to an error of the file system, where it is one of writing runs, how to choose another place.

    Args:
        error: what went wrong in a training.
        runs: the folder of all runs; what lies below it and the folders above it are written, others read.
    """
    if not isinstance(error, OSError):
        return
    place = Path(os.fsdecode(error.filename)).absolute() if isinstance(error.filename, (str, bytes)) else None
    written = place is not None and (
        runs.absolute() in (place, *place.parents) or place in runs.absolute().parents
    )
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if (full and place is None) or (written and error.errno in WRITING):
        note = "Runs are written below paths.runs; choose another place with paths.runs=DIR."
        error.__notes__ = [*getattr(error, "__notes__", ()), note]  # type: ignore[attr-defined]


def _key_of(text: str) -> str:
    found = re.search(r"full_key: (\S+)", text)
    return f" (at: {found.group(1)})" if found else ""


def nearest(word: str, words: Iterable[str]) -> str:
    """`` Did you mean 'x'?``, or nothing.

    Example:
        >>> nearest("mambo", ["mamba", "s5"])
        " Did you mean 'mamba'?"
    """
    match = difflib.get_close_matches(word, list(words), n=1, cutoff=0.7)
    return f" Did you mean {match[0]!r}?" if match else ""


def hydra_message(text: str) -> str:
    """Hydra's message without its search path and its link, the options on one line.

    Example:
        >>> text = "In 'train': Could not find 'core/mambo'|Available options in 'core':|mamba|s5"
        >>> print(hydra_message(text.replace("|", chr(10))))
        Could not find 'core/mambo'. Did you mean 'mamba'?
          Available options in 'core': mamba, s5
    """
    if re.search(r"Could not (?:find|load) 'hydra/launcher/submitit_", text):
        return "this launcher needs the package 'hydra-submitit-launcher': pip install 'nvsubq[slurm]'"
    lines = [line.strip() for line in text.strip().splitlines()]
    if "Config search path:" in lines:
        lines = lines[: lines.index("Config search path:")]
    lines = [line for line in lines if line and not line.startswith("See https://hydra.cc")]
    lines[0] = re.sub(r"^In '[^']*': ", "", lines[0])
    group = next((i for i, line in enumerate(lines) if line.startswith(OPTIONS)), None)
    if group is None:
        return "\n  ".join(lines)
    options = lines[group + 1 :]
    wanted = re.search(r"Could not find '(?:.*/)?([^'/]+)'", lines[0])
    head = lines[0].rstrip(".") + "." + (nearest(wanted.group(1), options) if wanted else "")
    return "\n  ".join([head, *lines[1:group], f"{lines[group]} {', '.join(options)}"])
