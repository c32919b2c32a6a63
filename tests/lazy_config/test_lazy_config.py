"""Nodes, and what is built from them."""

from __future__ import annotations

import copy
import doctest
import functools
import inspect
import pickle
import subprocess
import sys
from typing import Any

import pytest
from config_targets import CALLS, Core, Items, Open, OtherCore, Outer, Record, Wrapper, fresh_policy, twice
from omegaconf import DictConfig, OmegaConf
from torch import nn, optim

import nvsubq
from nvsubq import lazy_config
from nvsubq.lazy_config import (
    PLACEHOLDER,
    ConfigError,
    LazyConfig,
    allow_targets,
    as_factory,
    instantiate,
    validate,
)

__all__ = ["fresh_policy"]


def plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False)


def test_public_names_are_pinned() -> None:
    assert set(lazy_config.__all__) == {
        "LazyConfig", "instantiate", "validate", "as_factory", "to_yaml", "from_yaml", "allow_targets",
        "ConfigError", "PLACEHOLDER",
    }  # fmt: skip
    assert PLACEHOLDER == "???"


def test_import_pulls_in_neither_torch_nor_the_rest() -> None:
    code = (
        "import sys, nvsubq.lazy_config as c\n"
        "c.instantiate({'a': [1]}); c.from_yaml('a: 1')\n"
        "heavy = ('torch', 'hydra', 'lightning', 'numpy')\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in heavy))\n"
        "print(sorted(m for m in sys.modules if m.startswith('nvsubq.') and m.count('.') == 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['nvsubq.lazy_config']"]


def test_examples_in_docstrings_hold() -> None:
    failed, attempted = doctest.testmod(lazy_config)
    assert failed == 0
    assert attempted >= 10


# --- LazyConfig


def test_node_holds_the_target_and_what_was_given() -> None:
    node = LazyConfig(Core)(d_model=64, d_state="${size}", dtype=PLACEHOLDER)
    assert isinstance(node, DictConfig)
    assert plain(node) == {
        "_target_": "config_targets.Core", "d_model": 64, "d_state": "${size}", "dtype": "???"
    }  # fmt: skip


def test_partial_node_says_so() -> None:
    assert plain(LazyConfig(Core, partial=True)()) == {"_target_": "config_targets.Core", "_partial_": True}


def test_full_node_holds_every_argument() -> None:
    assert plain(LazyConfig(Core, full=True)(d_state=4)) == {
        "_target_": "config_targets.Core", "d_model": "???", "d_state": 4, "d_conv": 4,
        "dt_limit": [0.0, float("inf")], "dtype": None,
    }  # fmt: skip


def test_full_node_leaves_out_defaults_that_are_no_plain_data() -> None:
    signature = inspect.signature(nn.Conv2d)
    assert list(LazyConfig(nn.Conv2d, full=True)()) == ["_target_", *signature.parameters]
    assert list(LazyConfig(OtherCore, full=True)(width=3)) == ["_target_", "width", "blocks", "scale"]


def test_full_node_skips_what_is_given_by_position() -> None:
    assert plain(LazyConfig(twice, full=True)(_args_=[3])) == {
        "_target_": "config_targets.twice", "y": 2, "_args_": [3]
    }  # fmt: skip


def test_values_of_every_kind() -> None:
    values = {
        "none": None, "yes": True, "int": 3, "float": 0.5, "text": "a b", "list": [1, [2]], "tuple": (1, "x"),
        "dict": {"a": {1: 2}}, "node": LazyConfig(Core)(d_model=1), "reference": "${..x}", "missing": "???",
    }  # fmt: skip
    node = LazyConfig(Open)(**values)
    assert plain(node) == {
        "_target_": "config_targets.Open", **values, "tuple": [1, "x"],
        "node": {"_target_": "config_targets.Core", "d_model": 1},
    }  # fmt: skip


def test_node_is_a_copy_of_what_it_was_given() -> None:
    inner = LazyConfig(Core)(d_model=1)
    node = LazyConfig(Wrapper)(core=inner, layers=[inner])
    inner.d_model = 2
    assert node.core.d_model == node.layers[0].d_model == 1


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (nn.Linear, "torch.nn.Linear"),
        ("torch.nn.modules.linear.Linear", "torch.nn.Linear"),
        (nn.init.xavier_uniform_, "torch.nn.init.xavier_uniform_"),
        (nn.functional.relu, "torch.nn.functional.relu"),
        ("torch.nn.functional.gelu", "torch.nn.functional.gelu"),
        ("torch.nn.functional.conv2d", "torch.nn.functional.conv2d"),
        (optim.AdamW, "torch.optim.AdamW"),
        (optim.Adafactor, "torch.optim.Adafactor"),
        (nn.Embedding.from_pretrained, "torch.nn.Embedding.from_pretrained"),
        (Core.from_width, "config_targets.Core.from_width"),
        (Core.small, "config_targets.Core.small"),
        ("config_targets.Core.from_width", "config_targets.Core.from_width"),
        (Outer.Inner, "config_targets.Outer.Inner"),
        (twice, "config_targets.twice"),
    ],
)
def test_shortest_public_path(target: Any, path: str) -> None:
    assert LazyConfig(target)()._target_ == path


def test_cores_are_named_by_their_package() -> None:
    from nvsubq.cores import Mamba

    assert Mamba.__module__ == "nvsubq.cores.mamba"
    assert LazyConfig(Mamba)(d_model=4)._target_ == "nvsubq.cores.Mamba"
    assert LazyConfig("nvsubq.cores.mamba.Mamba")(d_model=4)._target_ == "nvsubq.cores.Mamba"
    assert LazyConfig(nvsubq.NDMixer)()._target_ == "nvsubq.NDMixer"


def test_package_that_hides_a_name_is_passed_over(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "hiding_package"
    (package / "_inside").mkdir(parents=True)
    (package / "__init__.py").write_text("from ._inside.deep import A, B\n__all__ = ['A']\n")
    (package / "_inside" / "__init__.py").write_text("")
    (package / "_inside" / "deep.py").write_text("class A: pass\nclass B: pass\nclass C: pass\n")
    (package / "open.py").write_text("class D: pass\nclass E: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import hiding_package.open as module

    hiding_package = sys.modules["hiding_package"]
    hiding_package.D = module.D  # reachable, but not listed in __all__
    assert LazyConfig(hiding_package.A)()._target_ == "hiding_package.A"
    assert LazyConfig(module.D)()._target_ == "hiding_package.open.D"
    assert LazyConfig(hiding_package.B)()._target_ == "hiding_package.B"  # not listed, the only public path
    with pytest.raises(ConfigError, match=r"no public path leads back to hiding_package._inside.deep.C\."):
        LazyConfig(sys.modules["hiding_package._inside.deep"].C)


def test_passing_the_object_authorises_its_path_and_nothing_else() -> None:
    import fractions

    text = {"_target_": "fractions.Fraction", "numerator": 1}
    with pytest.raises(ConfigError, match=r"'fractions\.Fraction' is not on the allow-list"):
        instantiate(text)
    LazyConfig(fractions.Fraction)
    assert instantiate(text) == 1
    with pytest.raises(ConfigError, match=r"'fractions\.gcd' is not on the allow-list"):
        instantiate({"_target_": "fractions.gcd"})


# --- instantiate


def test_children_come_first_and_are_plain() -> None:
    node = LazyConfig(Wrapper)(
        core=LazyConfig(Core)(d_model=2),
        layers=[LazyConfig(OtherCore)(width=1), 5],
        options={"a": {"b": [1]}},
    )
    built = instantiate(node)
    assert CALLS == ["Core", "OtherCore", "Wrapper"]
    assert built.values["core"] == Core(2)
    assert built.values["layers"] == [OtherCore(1), 5]
    assert type(built.values["layers"]) is list
    assert type(built.values["options"]) is dict
    assert type(built.values["options"]["a"]["b"]) is list


def test_lists_tuples_and_mappings_of_nodes_are_built() -> None:
    node = LazyConfig(twice)(x=3)
    assert instantiate([node, {"deep": (node, 1)}]) == [6, {"deep": [6, 1]}]
    assert instantiate((node, None)) == [6, None]
    assert instantiate(OmegaConf.create({"a": node, "b": None})) == {"a": 6, "b": None}
    assert instantiate(None) is None


def test_a_node_within_a_mapping_argument_is_built() -> None:
    node = LazyConfig(Open)(losses={"dice": LazyConfig(Core)(d_model=1), "rate": 0.5})
    assert instantiate(node).values == {"losses": {"dice": Core(1), "rate": 0.5}}


def test_node_from_nvsubquadratic_is_read() -> None:
    assert instantiate({"__target__": "config_targets.twice", "x": 4}) == 8
    node = OmegaConf.create({"__target__": "config_targets.twice", "x": 5})
    assert instantiate(node) == 10
    assert plain(LazyConfig(Wrapper)(core=node).core) == {"_target_": "config_targets.twice", "x": 5}


def test_convert_has_no_effect() -> None:
    for convert in ("none", "partial", "object", "all"):
        built = instantiate({"_target_": "config_targets.Open", "_convert_": convert, "a": {"b": [1]}})
        assert built.values == {"a": {"b": [1]}}
        assert type(built.values["a"]) is dict


def test_args_are_positional() -> None:
    assert instantiate({"_target_": "config_targets.twice", "_args_": [3], "y": 5}) == 15
    node = LazyConfig(Items)(_args_=[LazyConfig(Core)(d_model=1), 2], name="n")
    assert instantiate(node).values == {"items": (Core(1), 2), "name": "n"}
    strict = {"_target_": "config_targets.Strict", "_args_": [1], "second": 3}
    assert instantiate(strict).values == {"first": 1, "second": 3}


def test_not_recursive_keeps_nodes_as_mappings() -> None:
    root = OmegaConf.create(
        {
            "size": 3,
            "node": {
                "_target_": "config_targets.Wrapper",
                "_recursive_": False,
                "core": {"_target_": "config_targets.Core", "d_model": "${size}", "d_state": "???"},
                "layers": [{"_target_": "config_targets.Core"}],
            },
        }
    )
    built = instantiate(root.node)
    assert built.values["core"] == {"_target_": "config_targets.Core", "d_model": 3, "d_state": "???"}
    assert built.values["layers"] == [{"_target_": "config_targets.Core"}]
    assert as_factory(built.values["core"])(d_state=1) == Core(3, 1)


def test_late_arguments_are_live_objects() -> None:
    live = object()
    values = [live, {"_target_": "not built"}]
    node = LazyConfig(Wrapper)(core=PLACEHOLDER, options=LazyConfig(Core)(d_model=1))
    built = instantiate(node, core=live, layers=values, options=None)
    assert built.values["core"] is live
    assert built.values["layers"] is values
    assert CALLS == ["Wrapper"]  # the node that was replaced is not built


def test_late_argument_may_be_called_cfg() -> None:
    assert instantiate({"_target_": "config_targets.Open"}, cfg=1, late=2).values == {"cfg": 1, "late": 2}


def test_config_is_not_changed() -> None:
    root = OmegaConf.create({"n": 2, "core": {"_target_": "config_targets.Core", "d_model": "${n}"}})
    before = copy.deepcopy(root)
    OmegaConf.set_readonly(root, True)
    assert instantiate(root.core, d_state=3) == Core(2, 3)
    assert root == before
    assert plain(root) == plain(before)


def test_modules_of_torch() -> None:
    node = LazyConfig(nn.Sequential)(
        _args_=[LazyConfig(nn.Linear)(in_features=3, out_features=4), LazyConfig(nn.GELU)()]
    )
    model = instantiate(node)
    assert str(model[0]) == "Linear(in_features=3, out_features=4, bias=True)"
    optimizer = instantiate(LazyConfig(optim.AdamW, partial=True)(lr=0.1))
    assert (optimizer.func, optimizer.keywords) == (optim.AdamW, {"lr": 0.1})


# --- _partial_


def test_partial_node_builds_a_partial_and_leaves_out_placeholders() -> None:
    root = OmegaConf.create(
        {
            "width": "???",
            "core": {
                "_target_": "config_targets.Core", "_partial_": True, "d_model": "???", "d_state": 8,
                "d_conv": "${width}",
            },
        }
    )  # fmt: skip
    factory = instantiate(root.core)
    assert isinstance(factory, functools.partial)
    assert factory.func is Core
    assert factory.keywords == {"d_state": 8}
    assert factory(d_model=3) == Core(3, 8)
    assert factory(4, d_state=1) == Core(4, 1)
    validate(root.core)


def test_partial_with_late_arguments() -> None:
    factory = instantiate(LazyConfig(Core, partial=True)(d_state=2), dtype="float32")
    assert factory.keywords == {"d_state": 2, "dtype": "float32"}


def test_factory_inside_a_factory() -> None:
    root = OmegaConf.create(
        {
            "core": {"_target_": "config_targets.Core", "_partial_": True, "d_model": "???"},
            "mixer": {"_target_": "config_targets.Wrapper", "_partial_": True, "core": "${core}"},
            "model": {"_target_": "config_targets.Open", "mixer": "${mixer}"},
        }
    )
    mixer = instantiate(root.model).values["mixer"]
    core = mixer().values["core"]
    assert core(d_model=5) == Core(5)
    assert CALLS.count("Core") == 2  # nothing was built before the factory was called


def test_factory_can_be_inspected_copied_pickled_and_wrapped() -> None:
    factory = instantiate(LazyConfig(Core, partial=True)(d_state=2))
    assert list(inspect.signature(factory).parameters) == [
        "d_model",
        "d_state",
        "d_conv",
        "dt_limit",
        "dtype",
    ]
    for other in (copy.deepcopy(factory), pickle.loads(pickle.dumps(factory)), functools.partial(factory)):
        assert other(d_model=1) == Core(1, 2)


# --- as_factory


def test_callable_stays_itself() -> None:
    for core in (Core, twice, functools.partial(Core, d_model=1), lambda: None):
        assert as_factory(core) is core
    factory = as_factory(LazyConfig(Core)())
    assert as_factory(factory) is factory


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("container", [OmegaConf.create, dict])
def test_node_becomes_a_factory(container: Any, partial: bool) -> None:
    values = {"_target_": "config_targets.Core", "d_model": "???", "d_state": 8, "d_conv": 3}
    factory = as_factory(container({**values, **({"_partial_": True} if partial else {})}))
    assert isinstance(factory, functools.partial)
    assert factory.func is Core
    assert factory.keywords == {"d_state": 8, "d_conv": 3}
    assert CALLS == []
    assert factory(d_model=2) == factory(2) == Core(2, 8, 3)


def test_node_of_nvsubquadratic_becomes_a_factory() -> None:
    assert as_factory({"__target__": "config_targets.Core", "d_model": 3})() == Core(3)


def test_products_of_one_factory_share_nothing() -> None:
    node = LazyConfig(Wrapper)(
        core=LazyConfig(Core)(d_model=1), layers=[LazyConfig(Core)(d_model=2)], options=[1]
    )
    factory = as_factory(node)
    assert CALLS == []
    first, second = factory(), factory()
    assert first == second
    for name in ("core", "layers", "options"):
        assert first.values[name] is not second.values[name]
    assert first.values["layers"][0] is not second.values["layers"][0]
    CALLS.clear()
    assert factory(core=5, layers=()).values["core"] == 5
    assert CALLS == ["Wrapper"]  # what the call replaces is not built


def test_factory_of_a_node_can_be_copied_and_pickled() -> None:
    factory = as_factory(LazyConfig(Wrapper)(core=LazyConfig(Core)(d_model=1)))
    for other in (copy.deepcopy(factory), pickle.loads(pickle.dumps(factory))):
        assert other() == Wrapper(core=Core(1), layers=())


def test_factory_with_positional_values() -> None:
    factory = as_factory(LazyConfig(Items)(_args_=[LazyConfig(Core)(d_model=1)]))
    first, second = factory(2), factory()
    assert first.values["items"] == (Core(1), 2)
    assert first.values["items"][0] is not second.values["items"][0]


def test_every_way_to_give_a_core_to_a_mixer() -> None:
    ways = (
        Core,
        functools.partial(Core, d_state=4),
        LazyConfig(Core)(d_state=4),
        LazyConfig(Core, partial=True)(d_model="???"),
        {"__target__": "config_targets.Core", "d_state": 4},
    )
    for core in ways:
        assert isinstance(as_factory(core)(d_model=3), Record)


def test_allow_targets_adds_packages_and_paths() -> None:
    allow_targets("fractions.*", "collections.OrderedDict", "fractions.*")
    assert instantiate({"_target_": "fractions.Fraction", "numerator": 2}) == 2
    assert instantiate({"_target_": "collections.OrderedDict", "a": 1}) == {"a": 1}
