"""Runs one group of hostile cases in a process of its own, and says what each of them did.

`python guard.py GROUP FOLDER`: for each case a line `start NAME` and a line of JSON on standard output. The
process has 2 GiB beyond what it has after its imports; a case has 5 seconds once its files lie there, and a
hang that no signal ends ends the process. Starting a process, opening a connection and leaving a file outside
of the case's folder are noted: Python's audit events tell of them, whatever code it is.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SECONDS, BYTES = 5.0, 2 * 2**30
AUDITED = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pty.spawn", "socket.connect")
MARKER = "hostile_code_ran"
"""A payload that runs makes a file of this name in the working folder, or changes the environment to it."""

Call = Callable[[], Any]
"""What a user would call: a library's function, or a command that returns its exit code."""
Case = tuple[str, Callable[[], Call]]
"""A name, and what lays out the files of the case, which nobody times, and returns the call."""


class Hung(BaseException):
    """No `Exception`: nothing may take it for an error of its own."""


def main(group: str, folder: Path) -> None:
    """Runs all cases of the group."""
    sys.path.insert(0, str(Path(__file__).parent))
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    cases: list[Case] = importlib.import_module(group).cases(folder)
    for _, prepare in cases[:1]:  # imports what the first call imports, with no limit
        with contextlib.suppress(BaseException), _captured():
            prepare()()
    noted: list[str] = []
    sys.addaudithook(lambda event, args: noted.append(event) if event in AUDITED else None)
    limit = _kilobytes("VmSize") * 1024 + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, _hung)
    for name, prepare in cases:
        print(f"start {name}", flush=True)
        print(json.dumps(_run(name, prepare(), noted, folder)), flush=True)


def _run(name: str, call: Call, noted: list[str], folder: Path) -> dict[str, Any]:
    noted.clear()
    Path("/proc/self/clear_refs").write_text("5")  # begins VmHWM anew
    before, start = _kilobytes("VmRSS"), time.perf_counter()
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    kind = message = ""
    code: Any = None
    with _captured() as text:
        try:
            try:
                code = call()
            finally:  # inside: the alarm may come while an error is on its way
                signal.setitimer(signal.ITIMER_REAL, 0)
        except BaseException as error:
            kind, message = type(error).__name__, str(error)
        finally:
            faulthandler.cancel_dump_traceback_later()
    return {
        "name": name,
        "error": kind,
        "message": message or text.getvalue(),
        "code": code if isinstance(code, int) else None,
        "returned": not kind and not isinstance(code, int),
        "seconds": time.perf_counter() - start,
        "bytes": (_kilobytes("VmHWM") - before) * 1024,
        "audited": list(noted),
        "ran": MARKER in os.environ or bool(list(folder.parent.rglob(MARKER))),
        "outside": sorted(p.name for p in folder.parent.iterdir() if p != folder),
    }


def _hung(number: int, frame: Any) -> None:
    raise Hung(f"more than {SECONDS:g} s")


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        yield text


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
