"""An empty folder to run studies in."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NVSUBQ_TRACEBACK", raising=False)
    monkeypatch.delenv("NVSUBQ_RUNS", raising=False)
    return tmp_path
