"""Interpolations resolve from the root that a node is attached to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from config_targets import CALLS, Core, Open, Wrapper, fresh_policy
from omegaconf import DictConfig, OmegaConf

from nvsubq.lazy_config import ConfigError, LazyConfig, as_factory, from_yaml, instantiate, to_yaml, validate

__all__ = ["fresh_policy"]

TEXT = """
width: 8
name: core
missing: ???
core:
  _target_: config_targets.Core
  _partial_: true
  d_model: ???
  d_state: ${width}
  d_conv: ${.d_state}
model:
  _target_: config_targets.Wrapper
  core: ${core}
  layers: [1, "${...name}s"]
  options:
    mixer: {_target_: config_targets.Wrapper, _partial_: true, core: "${core}"}
    rate: ${width}
"""


@pytest.fixture
def root() -> DictConfig:
    cfg = from_yaml(TEXT)
    assert isinstance(cfg, DictConfig)
    return cfg


def test_branch_resolves_against_its_root(root: DictConfig) -> None:
    built = instantiate(root.model)
    assert built.values["core"](d_model=1) == Core(1, 8, 8)
    assert built.values["layers"] == [1, "cores"]
    assert built.values["options"]["mixer"]().values["core"](d_model=2) == Core(2, 8, 8)
    root.width = 3
    assert instantiate(root.model.options.mixer)().values["core"](d_model=2) == Core(2, 3, 3)
    assert as_factory(root.model.options.mixer)().values["core"](d_model=2) == Core(2, 3, 3)
    assert as_factory(root.model.options.mixer.core)(d_model=1) == Core(1, 3, 3)


def test_swapping_the_group_swaps_the_core(root: DictConfig) -> None:
    root.core = LazyConfig("config_targets.OtherCore", partial=True)(width="???", blocks=2)
    core = instantiate(root.model).values["core"]
    assert core(width=1).values["blocks"] == 2


def test_copy_of_a_branch_keeps_its_root(root: DictConfig) -> None:
    assert instantiate(copy.deepcopy(root.model)).values["core"](d_model=1) == Core(1, 8, 8)


def test_problem_is_told_where_it_is_used_and_where_it_is_written(root: DictConfig) -> None:
    root.core.d_sate = 1
    with pytest.raises(ConfigError) as caught:
        instantiate(root.model.options)
    assert caught.value.key == "model.options.mixer.core"
    assert str(caught.value).endswith("\n  at: model.options.mixer.core (written at core)")
    with pytest.raises(ConfigError) as caught:
        validate(root)
    assert "no argument 'd_sate'" in str(caught.value)
    assert str(caught.value).count("no argument") == 1  # three references, one problem


def test_detached_node_keeps_its_interpolations_until_it_is_attached(root: DictConfig) -> None:
    node = LazyConfig(Wrapper)(
        core=LazyConfig(Core)(d_model="${width}", d_state="${.d_model}"), layers="${name}"
    )
    with pytest.raises(ConfigError) as caught:
        instantiate(node)
    assert str(caught.value) == (
        "2 nodes have problems\n\n"
        "config_targets.Wrapper\n  argument 'layers': Interpolation key 'name' not found.\n\n"
        "config_targets.Core\n  argument 'd_model': Interpolation key 'width' not found.\n"
        "  argument 'd_state': Interpolation key 'width' not found.\n  at: core"
    )
    root.model = node
    built = instantiate(root.model)
    assert built == Wrapper(core=Core(8, 8), layers="core")
    with pytest.raises(ConfigError):  # the node itself was copied, not moved
        instantiate(node)


def test_two_references_build_two_objects(root: DictConfig) -> None:
    root.leaf = LazyConfig(Core)(d_model=1)
    root.pair = ["${leaf}", "${leaf}"]
    first, second = instantiate(root.pair)
    assert first == second
    assert first is not second
    assert CALLS == ["Core", "Core"]


def test_placeholder_behind_a_reference(root: DictConfig) -> None:
    root.core.d_conv = "${missing}"
    root.core.d_state = "n${missing}"
    assert instantiate(root.core).keywords == {}
    node = {"missing": "???", "a": {"_target_": "config_targets.Core", "d_model": "${missing}"}}
    with pytest.raises(ConfigError, match=r"argument 'd_model' is \?\?\? and needs a value\."):
        instantiate(OmegaConf.create(node).a)


def test_target_and_flags_may_be_references() -> None:
    root = OmegaConf.create(
        {
            "kind": "Core", "lazy": True, "args": [3],
            "a": {"_target_": "config_targets.${kind}", "_partial_": "${lazy}", "_args_": "${args}"},
        }
    )  # fmt: skip
    assert instantiate(root.a)() == Core(3)
    root.lazy = False
    assert instantiate(root.a) == Core(3)


def test_late_argument_replaces_a_broken_reference() -> None:
    assert instantiate(LazyConfig(Core)(d_model="${nowhere}"), d_model=2) == Core(2)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"x": "${x}"}, "argument 'x': Recursive interpolation detected."),
        ({"x": "${nosuch:1}"}, "argument 'x': Unsupported interpolation type nosuch."),
        (
            {"x": "${oc.env:NVSUBQ_NOT_SET}"},
            "argument 'x': KeyError raised while resolving interpolation: "
            "\"Environment variable 'NVSUBQ_NOT_SET' not found\".",
        ),
    ],
)
def test_reference_that_does_not_resolve(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        instantiate({"_target_": "config_targets.Open", **values})
    assert str(caught.value).splitlines()[1] == f"  {text}"


def test_nodes_that_contain_each_other() -> None:
    root = OmegaConf.create(
        {
            "a": {"_target_": "config_targets.Open", "x": "${b}"},
            "b": {"_target_": "config_targets.Open", "x": ["${a}"]},
        }
    )
    for call in (instantiate, validate):
        with pytest.raises(ConfigError) as caught:
            call(root)
        assert "'a' contains itself by an interpolation." in str(caught.value)


def test_environment_and_created_containers() -> None:
    root = OmegaConf.create(
        {"_target_": "config_targets.Open", "x": "${oc.create:{a:1}}", "y": "${oc.decode:'[1,2]'}"}
    )
    assert instantiate(root) == Open(x={"a": 1}, y=[1, 2])


def test_struct_and_read_only_configs(root: DictConfig) -> None:
    OmegaConf.set_struct(root, True)
    OmegaConf.set_readonly(root, True)
    validate(root.model)
    assert instantiate(root.model).values["core"](d_model=1) == Core(1, 8, 8)
    assert from_yaml(to_yaml(root)) == root
