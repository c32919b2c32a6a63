"""The examples in the docstrings run as written."""

import doctest
import importlib

import pytest

MODULES = ("arguments", "conv", "dispatch", "linear", "rglru", "segments", "selective", "ssd", "walks")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    import torch

    module = importlib.import_module(f"nvsubq.ops.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
