"""Hostile and careless input ends in one clear error: no code runs, nothing hangs or takes all memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guard reads /proc")
GUARD = Path(__file__).with_name("guard.py")
SECONDS, BYTES = 5.0, 2 * 2**30
CLEAR = ("ConfigError", "ValueError", "DataError", "CheckpointError", "FileNotFoundError")
LEAST = {"group_configs": 60, "group_data": 40, "group_weights": 30}


def run(group: str, folder: Path) -> list[dict[str, Any]]:
    """What each case did; a case that ends the process is the last, with no more than its name."""
    done = subprocess.run(
        [sys.executable, str(GUARD), group, str(folder / "work")],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    lines = done.stdout.splitlines()
    found = [json.loads(line) for line in lines if not line.startswith("start ")]
    if done.returncode:
        found.append({"name": lines[-1].removeprefix("start "), "ended": done.stderr[-2000:]})
    return found


def wrong(case: dict[str, Any]) -> list[str]:
    """What a case did that it must not."""
    if "ended" in case:
        return [f"ended the process: {case['ended']}"]
    said: str = case["message"]
    unclear = case["code"] is None and case["error"] not in CLEAR and case["name"] not in OTHER_ERRORS
    checks = {
        "was accepted": case["returned"] or case["code"] == 0,
        f"took {case['seconds']:.1f} s": case["seconds"] >= SECONDS,
        f"took {case['bytes']} bytes": case["bytes"] >= BYTES,
        f"caused {case['audited']}": bool(case["audited"]),
        "ran code": case["ran"],
        f"left {case['outside']} outside": bool(case["outside"]),
        f"raised {case['error']}: {said[:200]}": unclear,
        f"said nothing clear: {said[-300:]}": not said or "Traceback (" in said or "for a traceback" in said,
    }
    return [text for text, failed in checks.items() if failed]


OTHER_ERRORS = {"weights: weights of another model"}  # torch's RuntimeError, which names the weights


@pytest.mark.parametrize("group", LEAST)
def test_group(group, tmp_path):
    cases = run(group, tmp_path)
    assert len(cases) >= LEAST[group]
    problems = {case["name"]: wrong(case) for case in cases if wrong(case)}
    assert not problems, json.dumps(problems, indent=2)


def test_guard_notices(tmp_path):
    """The guard itself: what it must let pass, and each thing that it must not."""
    found = {case["name"]: wrong(case) for case in run("group_guard", tmp_path)}
    assert found["fine"] == []
    for name, text in {
        "accepted": "was accepted",
        "allocates": "raised MemoryError",
        "fills memory": ("raised MemoryError", "raised Hung"),  # whichever limit a busy machine meets first
        "runs code": "caused ['subprocess.Popen'",
        "hangs": "raised Hung",
        "writes outside": "left ['escaped'] outside",
        "leaves the marker": "ran code",
    }.items():
        assert any(problem.startswith(text) for problem in found[name]), (name, found[name])
