"""The Python of docs/cores.md runs from top to bottom, and its core of one's own obeys the laws of cores."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from table import DOCS


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page's blocks define, run one after the other."""
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "page"}
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "cores.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/cores.md", "exec"), names)
    return names


def test_what_the_examples_make(page: dict[str, Any]) -> None:
    assert page["field"].shape == page["drawn"].shape == page["ragged"].shape == (2, 5, 3)
    assert page["deep"].shape == (2, 5, 16)
    assert page["volume"].shape == (2, 4, 5, 6, 8)


def test_a_core_of_ones_own(page: dict[str, Any], laws: Any) -> None:
    """fp32 all through: its states are, so a law holds to 1e-5."""
    core, x = page["Leaky"](6), torch.randn(3, 13, 6)
    core.log_rate.data.uniform_(-3, 0)
    core = core.double()
    x = x.double()
    laws.walks(core, x)
    laws.lengths(core, x)
    laws.no_leak(core, x)
    laws.sequences(core, x, torch.tensor([[0] * 5 + [1] * 8, [-1, 4, -1] * 4 + [4], [-1] * 13]), reverse=True)


def test_its_streams(page: dict[str, Any], laws: Any) -> None:
    core, x = page["Leaky"](6), torch.randn(3, 13, 6)
    core.log_rate.data.uniform_(-3, 0)
    laws.streaming(core, x, tol=1e-5)
    laws.addresses_stay(core, x)
    dt, cache = torch.rand(3, 13), core.allocate_inference_cache(3, 13)
    got = [core.step(x[:, k : k + 1], cache, dt[:, k])[0] for k in range(13)]
    torch.testing.assert_close(torch.cat(got, 1), core(x, dt), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="`discretization` \\(='bilinear'\\) of Leaky must be one of 'zoh'"):
        page["Leaky"](6, "bilinear")
