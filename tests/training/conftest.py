"""Lightning, quiet, and torch as it was before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nvsubq.training.runner import quiet_lightning


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    threads = torch.get_num_threads()
    quiet_lightning()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
