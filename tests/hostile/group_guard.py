"""What the guard must notice."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from guard import MARKER, Case


def _allocate() -> bytes:
    return bytes(3 * 2**30)


def _fill() -> None:
    held = [b"x" * (400 * 2**20) for _ in range(6)]
    raise ValueError(f"{len(held)} GiB and more held")


def _run_code() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)
    raise ValueError("refused")


def _write_outside() -> None:
    Path("..", "escaped").write_text("")
    raise ValueError("refused")


def _mark() -> None:
    Path(MARKER).touch()
    raise ValueError("refused")


def _hang() -> None:
    try:
        time.sleep(30)
    except Exception:
        raise ValueError("refused") from None


def cases(folder: Path) -> list[Case]:
    """One for each thing that it looks at; the first is in order."""

    def fine() -> Any:
        raise ValueError("a clear error")

    def accepted() -> Any:
        return {}

    calls = {
        "fine": fine,
        "accepted": accepted,
        "allocates": _allocate,
        "fills memory": _fill,
        "runs code": _run_code,
        "hangs": _hang,
        "writes outside": _write_outside,
        "leaves the marker": _mark,
    }
    return [(name, lambda call=call: call) for name, call in calls.items()]  # type: ignore[misc]
