"""Lightning, quiet."""

from __future__ import annotations

import pytest

from nvsubq.training.quiet import quiet_lightning


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_lightning()
