"""`configs/core/mamba_ssm_*.yaml`: cores of another package, over a stand-in for it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from nvsubq import ConfigError, NDMixer, instantiate
from nvsubq.cli.self_test import core_lacks
from nvsubq.cores import Mamba, Mamba2

CONFIGS = Path(__file__).parents[2] / "configs" / "core"
NAMES = {"mamba_ssm_mamba": "Mamba", "mamba_ssm_mamba2": "Mamba2"}


class _Published(nn.Module):
    """As the package's cores: `[B, L, C]`, no word of the walk; ours compute. Remembers what it was given."""

    ours: type[nn.Module]

    def _build(self, d_model: int, **options: Any) -> None:
        self.inner = self.ours(d_model, **options)
        self.given: list[Tensor] = []

    def forward(self, hidden_states: Tensor, inference_params: Any = None, **kwargs: Any) -> Tensor:
        assert inference_params is None
        assert not kwargs
        self.given.append(hidden_states)
        return self.inner(hidden_states)


class _Mamba(_Published):
    ours = Mamba

    def __init__(
        self, d_model, d_state=16, d_conv=4, expand=2, dt_rank="auto", dt_min=0.001, dt_max=0.1,
        dt_init="random", dt_scale=1.0, dt_init_floor=1e-4, conv_bias=True, bias=False, use_fast_path=True,
        layer_idx=None, device=None, dtype=None,
    ):  # fmt: skip
        super().__init__()
        self._build(d_model, d_state=d_state, d_conv=d_conv, expand=expand, dt_rank=dt_rank)
        self.layer_idx = layer_idx


class _Mamba2(_Published):
    ours = Mamba2

    def __init__(
        self, d_model, d_state=128, d_conv=4, conv_init=None, expand=2, headdim=64, d_ssm=None, ngroups=1,
        A_init_range=(1, 16), D_has_hdim=False, rmsnorm=True, norm_before_gate=False, dt_min=0.001,
        dt_max=0.1, dt_init_floor=1e-4, dt_limit=(0.0, float("inf")), bias=False, conv_bias=True,
        chunk_size=256, use_mem_eff_path=True, layer_idx=None, process_group=None, sequence_parallel=True,
        device=None, dtype=None,
    ):  # fmt: skip
        super().__init__()
        assert process_group is None
        self._build(d_model, d_state=d_state, headdim=headdim, dt_limit=tuple(dt_limit))
        self.layer_idx = layer_idx


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `mamba_ssm` with both classes."""
    module = ModuleType("mamba_ssm")
    for name, made in (("Mamba", _Mamba), ("Mamba2", _Mamba2)):
        own = type(name, (made,), {"__module__": "mamba_ssm", "__init__": made.__init__})
        setattr(module, name, own)
    monkeypatch.setitem(sys.modules, "mamba_ssm", module)


def config(name: str) -> Any:
    return OmegaConf.load(CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_it_names_every_argument_with_its_default(name: str) -> None:
    node = OmegaConf.to_container(config(name))
    theirs = {"Mamba": _Mamba, "Mamba2": _Mamba2}[NAMES[name]].__init__
    names = theirs.__code__.co_varnames[1 : theirs.__code__.co_argcount]
    assert node.pop("_target_") == f"mamba_ssm.{NAMES[name]}"
    assert node.pop("_partial_") is True
    assert list(node) == list(names)
    assert node.pop("d_model") == "???"
    for (key, value), default in zip(node.items(), theirs.__defaults__, strict=True):
        assert value == (list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize("name", NAMES)
def test_options_that_ours_has_are_ours(name: str) -> None:
    """A word of YAML changes the package, not the core."""
    own = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name.removeprefix('mamba_ssm_')}.yaml"))
    for key, value in OmegaConf.to_container(config(name)).items():
        if key in own and key != "_target_":
            assert own[key] == value, key


@pytest.mark.parametrize("name", NAMES)
def test_a_mixer_permutes_for_it_and_gathers_once(name: str, package: None) -> None:
    torch.manual_seed(0)
    mixer = NDMixer(config(name), d_model=64, bidirectional=True)
    x = torch.randn(2, 3, 5, 4, 64)
    y = mixer(x)
    (forth,), (back,) = mixer.core_layer.given, mixer.core_layer_rev.given
    assert forth.data_ptr() == x.data_ptr()  # row-major: the field itself, nothing is copied
    assert torch.equal(back, x.flatten(1, 3).flip(1))
    expected = mixer.core_layer.inner(forth) + mixer.core_layer_rev.inner(back).flip(1)
    torch.testing.assert_close(y, expected.reshape(x.shape))
    y.square().mean().backward()
    assert all(parameter.grad is not None for parameter in mixer.parameters())


def test_doctor_leaves_out_what_cannot_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    file = CONFIGS / "mamba_ssm_mamba.yaml"
    assert core_lacks(CONFIGS / "mamba.yaml") is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert core_lacks(file) == "no package 'mamba_ssm' is installed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert core_lacks(file) == "mamba_ssm runs on CUDA devices alone"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert core_lacks(file) is None


@pytest.mark.parametrize("name", NAMES)
def test_without_the_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(module: str) -> Any:
        if module == "mamba_ssm":
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(module)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ConfigError) as caught:
        instantiate({"mixer": {"core": config(name)}})
    assert str(caught.value).splitlines() == [
        f"mamba_ssm.{NAMES[name]}",
        "  no package 'mamba_ssm' is installed.",
        "  to install it: pip install 'nvsubq[cuda]'.",
        "  at: mixer.core",
    ]
