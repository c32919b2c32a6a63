"""nvSubquadratic's names: the seed's example as it stands, with our package in the import lines."""

import inspect

import pytest
import torch

from nvsubq import compat
from nvsubq.compat import nvsubquadratic

SEED_EXAMPLE = """
import torch
from nvsubq.lazy_config import LazyConfig
from nvsubq.compat.nvsubquadratic import Mamba
from nvsubq.cores import Mamba as MambaCore

mamba = Mamba(
    mamba_layer_cfg=LazyConfig(MambaCore)(d_model=128, d_state=16, d_conv=4, expand=2),
    bidirectional=True,
)
# 2D input: batch=2, spatial=(16, 16), channels=128
x = torch.randn(2, 16, 16, 128)
y = mamba(x)  # [2, 16, 16, 128]
"""


def test_the_seeds_example_runs_as_it_stands():
    names: dict = {}
    exec(SEED_EXAMPLE, names)
    assert names["y"].shape == (2, 16, 16, 128)
    mamba = names["mamba"]
    assert type(mamba.core_layer) is type(mamba.core_layer_rev) is names["MambaCore"]


def test_signature_and_attributes_of_the_seed():
    from nvsubq.cores import Mamba as MambaCore

    parameters = inspect.signature(nvsubquadratic.Mamba).parameters
    assert list(parameters) == ["mamba_layer_cfg", "bidirectional"]
    config = nvsubquadratic.LazyConfig(MambaCore)(d_model=8, d_state=2)
    one_way = nvsubquadratic.Mamba(config, False)
    with pytest.raises(AttributeError, match="core_layer_rev"):
        one_way.core_layer_rev  # noqa: B018
    assert {name.split(".")[0] for name in one_way.state_dict()} == {"core_layer"}
    both = nvsubquadratic.Mamba(config, bidirectional=True)
    assert {name.split(".")[0] for name in both.state_dict()} == {"core_layer", "core_layer_rev"}
    x = torch.randn(2, 3, 4, 8)
    cells = x.reshape(2, 12, 8)
    expected = both.core_layer(cells) + both.core_layer_rev(cells.flip(1)).flip(1)
    torch.testing.assert_close(both(x), expected.reshape(x.shape))


def test_its_own_target_key_is_read():
    node = {"__target__": "nvsubq.cores.Mamba", "d_model": 8, "d_state": 2}
    assert nvsubquadratic.Mamba(node).core_layer.d_model == 8


def test_errors_of_the_core_reach_the_user():
    from nvsubq.cores import Mamba as MambaCore

    with pytest.raises(ValueError, match="discretization"):
        nvsubquadratic.Mamba(nvsubquadratic.LazyConfig(MambaCore)(d_model=8, discretization="euler"))
    with pytest.raises((TypeError, ValueError), match="d_model"):
        nvsubquadratic.Mamba(nvsubquadratic.LazyConfig(MambaCore)(d_state=2))


def test_public_names():
    assert nvsubquadratic.__all__ == ["PLACEHOLDER", "LazyConfig", "Mamba", "MambaND", "instantiate"]
    assert compat.__all__ == []
