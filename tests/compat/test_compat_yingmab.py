"""The first example of yingmab's readme, with our package in the import line."""

from __future__ import annotations

import copy

import pytest
import torch

from nvsubq import cores
from nvsubq.compat.yingmab import Mamba, SSMConfig

README_EXAMPLE = """
from nvsubq.compat.yingmab import Mamba, SSMConfig

config = SSMConfig(
d_model=512,
d_state=16,
d_conv=4,
expand=2
)
model = Mamba(config)

x = torch.randn(8, 16, 512) # (batch, seq_len, dim)
output = model(x)
"""


def test_the_readmes_example() -> None:
    names = {"torch": torch}
    exec(README_EXAMPLE, names)
    assert names["output"].shape == (8, 16, 512)


def test_it_is_our_core_with_two_options() -> None:
    model = Mamba(SSMConfig(16, d_state=4))
    core = cores.Mamba(16, d_state=4, a_init="s4d_lin", a_modulation=True)
    core.load_state_dict(model.state_dict())
    x = torch.randn(2, 7, 16)
    assert torch.equal(model(x), core(x))
    assert torch.equal(copy.deepcopy(model)(x), core(x))
    cache = model.allocate_inference_cache(2, 7)
    steps = [model.step(x[:, k : k + 1], cache)[0] for k in range(7)]
    torch.testing.assert_close(torch.cat(steps, 1), core(x), rtol=1e-5, atol=1e-5)


def test_a_width_is_no_config() -> None:
    with pytest.raises(TypeError, match=r"`config` \(a int\) must be an SSMConfig"):
        Mamba(512)
