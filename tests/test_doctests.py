"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import nvsubq

HOME = Path(nvsubq.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(HOME.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in HOME.rglob("*.py")
    if path.name != "timm_models.py"  # it registers with timm when imported, which need not be there
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where an example may write
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0, f"{outcome.failed} of {outcome.attempted} examples of {name} fail, see above"


def test_examples_are_found() -> None:
    assert {"nvsubq.nd.mixer", "nvsubq.cores.mamba", "nvsubq.cli.main"} <= set(MODULES)
