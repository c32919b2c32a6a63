"""A core of the user's own, in the folder where the command is called: every command imports it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import SMALL

CORE = """
from torch import nn


class GRU(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gru = nn.GRU(d_model, d_model, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0]
"""


@pytest.mark.slow
def test_train_then_evaluate(here: Path) -> None:
    (here / "my_cores.py").write_text(CORE)
    (here / "conf" / "core").mkdir(parents=True)
    (here / "conf" / "core" / "gru.yaml").write_text(
        "_target_: my_cores.GRU\n_partial_: true\nd_model: ???\n"
    )
    # As the console script does: its own folder is on the path, and not the working one, unlike `python -m`.
    script = here / "bin" / "nvsubq"
    script.parent.mkdir()
    script.write_text("import sys\nfrom nvsubq.cli.main import main\nsys.exit(main())\n")
    env = os.environ | {"NVSUBQ_ALLOW_TARGETS": "my_cores.*"}
    for arguments in (
        ["train", "--config-dir", "conf", "core=gru", "name=own", *SMALL, "epochs=1"],
        ["evaluate", "runs/own/latest"],
    ):
        done = subprocess.run(
            [sys.executable, str(script), *arguments],
            cwd=here,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    assert "The stored numbers are the same." in done.stdout
