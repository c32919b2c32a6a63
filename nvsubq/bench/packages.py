"""Versions of installed packages; nothing is imported."""

from __future__ import annotations

import importlib.metadata


def version(name: str) -> str | None:
    """The installed version of a package; None where there is none.

    Example:
        >>> version("torch") is not None, version("no-such-package")
        (True, None)
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
