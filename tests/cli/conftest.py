"""A small training through the command line, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import SMALL

from nvsubq.cli.main import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NVSUBQ_TRACEBACK", raising=False)
    monkeypatch.delenv("NVSUBQ_RUNS", raising=False)
    return tmp_path


@pytest.fixture
def train(here: Path) -> Callable[..., int]:
    """`nvsubq train` with a small model; returns the exit code."""

    def run(*arguments: str, small: bool = True) -> int:
        return main(["train", *(SMALL if small else ()), *arguments])

    return run
