"""A small training through the command line, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cli_helpers import SMALL

from nvsubq.cli.main import main


@pytest.fixture(autouse=True)
def _plain_torch() -> Iterator[None]:
    """What a training sets for the whole process is put back."""
    threads, fill = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_num_threads(threads)


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
