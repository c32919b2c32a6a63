"""The law: for what we emit, `instantiate(c)` equals `hydra.utils.instantiate(c, _convert_="all")`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import hydra
import pytest
from config_targets import Core, Items, Open, OtherCore, Record, Strict, Wrapper, fresh_policy, twice
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from nvsubq.lazy_config import ConfigError, LazyConfig, from_yaml, instantiate, to_yaml, validate

__all__ = ["fresh_policy"]


def same(a: Any, b: Any) -> bool:
    """Equal values of equal types; partials by what they hold; modules by what they print."""
    if isinstance(a, functools.partial) and isinstance(b, functools.partial):
        names = a.keywords.keys() | b.keywords.keys()
        given = [[factory.keywords.get(name, "not given") for name in names] for factory in (a, b)]
        return a.func is b.func and same(a.args, b.args) and same(*given)
    if type(a) is not type(b):
        return False
    if isinstance(a, Record):
        return same(a.values, b.values)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, nn.Module):
        return repr(a) == repr(b)
    return a == b


def hydras(cfg: Any) -> Any:
    return hydra.utils.instantiate(cfg, _convert_="all")


core = LazyConfig(Core)(d_model=3, dt_limit=(0.0, 0.1))
factory = LazyConfig(Core, partial=True, full=True)()
CONFIGS = {
    "node": core,
    "partial": factory,
    "missing in a partial": LazyConfig(Core, partial=True)(d_model="???", d_state=2),
    "full": LazyConfig(Core, full=True)(d_model=1),
    "list": OmegaConf.create([core, 1, [core, None]]),
    "mapping": OmegaConf.create({"a": core, "b": {"c": [core], "d": None}}),
    "nested": LazyConfig(Wrapper)(core=core, layers=[core, {"x": core}],
                                  options={"a": {"b": core, "c": (1, 2)}}),
    "partial in a node": LazyConfig(Wrapper)(core=factory),
    "node in a partial": LazyConfig(Wrapper, partial=True)(core=core, layers=[factory]),
    "positional": LazyConfig(Items)(_args_=[core, [1], factory], name="x"),
    "positional only": LazyConfig(Strict, partial=True)(_args_=[core]),
    "not recursive": LazyConfig(Wrapper)(_recursive_=False, core=core, layers=[core], options={"a": core}),
    "not recursive, missing": LazyConfig(Wrapper)(_recursive_=False, core=factory),
    "class method": LazyConfig(Core.from_width)(width=4),
    "static method": LazyConfig(Core.small)(),
    "function": LazyConfig(twice)(x=2),
    "open": LazyConfig(Open)(_convert_="none", a=[core], b={"1": {2: 3}}),
    "keyword only": LazyConfig(OtherCore)(width=1, blocks=2),
    "modules": LazyConfig(nn.Sequential)(
        _args_=[LazyConfig(nn.Linear, full=True)(in_features=2, out_features=3), LazyConfig(nn.GELU)()]),
    "relative": LazyConfig(Wrapper)(core=LazyConfig(Core)(d_model=1, d_state="${.d_model}"),
                                    layers="${.core}"),
    "strings": LazyConfig(Open)(a="", b="${.a}", c="x${.a}y", d="null"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_hydra(name: str) -> None:
    cfg = CONFIGS[name]
    expected = hydras(cfg)
    assert same(instantiate(cfg), expected)
    assert same(instantiate(from_yaml(to_yaml(cfg))), expected)
    assert same(instantiate(OmegaConf.to_container(cfg, resolve=False)), expected)
    validate(cfg)


def test_equals_hydra_inside_a_root() -> None:
    root = OmegaConf.create(
        {
            "width": 5,
            "later": "???",
            "core": LazyConfig(Core, partial=True)(d_model="???", d_state="${width}", d_conv="${later}"),
            "leaf": LazyConfig(Core)(d_model="${width}"),
            "model": LazyConfig(Wrapper)(
                core="${core}", layers=["${leaf}", "${leaf}"], options={"mixer": "${mixer}", "n": "${width}"}
            ),
            "mixer": LazyConfig(Wrapper, partial=True)(core="${core}", options="${leaf}"),
        }
    )
    for name in ("core", "leaf", "model", "mixer"):
        assert same(instantiate(root[name]), hydras(root[name])), name


def test_late_arguments_equal_hydra() -> None:
    values = {"d_model": 7, "dtype": "x"}
    assert same(instantiate(core, **values), hydra.utils.instantiate(core, _convert_="all", **values))
    assert same(instantiate(factory, **values), hydra.utils.instantiate(factory, _convert_="all", **values))


NAMES = st.sampled_from(["a", "b", "c", "core", "x1"])
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(max_size=5).filter(lambda text: "${" not in text and "\\" not in text and text != "???")
)  # fmt: skip


def nodes(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def open_node(arguments: dict[str, Any], partial: bool) -> Any:
        return LazyConfig(Open, partial=partial)(**arguments)

    def core_node(arguments: dict[str, Any], partial: bool, full: bool) -> Any:
        late = {} if partial else {"d_model": 1}
        return LazyConfig(Core, partial=partial, full=full)(**{**late, **arguments})

    def items_node(args: list[Any], partial: bool) -> Any:
        return LazyConfig(Items, partial=partial)(_args_=args)

    some = st.dictionaries(NAMES, values, max_size=3)
    core_arguments = st.dictionaries(
        st.sampled_from(["d_state", "d_conv", "dt_limit", "dtype"]), values, max_size=3
    )
    return (
        st.builds(open_node, some, st.booleans())
        | st.builds(core_node, core_arguments, st.booleans(), st.booleans())
        | st.builds(items_node, st.lists(values, max_size=3), st.booleans())
    )


VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3) | nodes(inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(nodes(VALUES))
def test_equals_hydra_for_any_node(cfg: Any) -> None:
    expected = hydras(cfg)
    assert same(instantiate(cfg), expected)
    assert same(instantiate(from_yaml(to_yaml(cfg))), expected)


# --- the layout of config.md: a group of cores, referenced by interpolation


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    files = {
        "config.yaml": "defaults: [{core: mamba}, {model: backbone}, _self_]\nwidth: 8\n",
        "core/mamba.yaml": to_yaml(LazyConfig(Core, partial=True, full=True)(d_state="${width}")),
        "core/other.yaml": to_yaml(LazyConfig(OtherCore, partial=True)(width="???", blocks=2)),
        "model/backbone.yaml": to_yaml(
            {
                "_target_": "config_targets.Wrapper",
                "core": LazyConfig(Wrapper, partial=True)(core="${core}", layers=[1]),
            }
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def composed(conf: Path, *overrides: str) -> Any:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def test_core_is_one_word(conf: Path) -> None:
    for overrides, built in (
        ([], Core(3, 8)),
        (["width=2"], Core(3, 2)),
        (["core.d_state=64", "core.d_conv=2"], Core(3, 64, 2)),
        (["core=other", "core.blocks=5"], OtherCore(3, blocks=5)),
    ):
        cfg = composed(conf, *overrides)
        validate(cfg)
        mixer = instantiate(cfg.model).values["core"]
        core = mixer().values["core"](3)
        if isinstance(core, Core):
            core.values["dt_limit"] = built.values["dt_limit"]  # a list from YAML, a tuple in Python
        assert core == built


def test_editing_the_target_keeps_the_old_arguments(conf: Path) -> None:
    """The trap of Hydra's issue 1896, for which the config group is there."""
    cfg = composed(conf, "core._target_=config_targets.Strict")
    with pytest.raises(ConfigError) as caught:
        validate(cfg)
    text = str(caught.value)
    assert "no argument 'd_model'." in text
    assert "`_target_` was probably edited while" in text
    assert "Choose by the config group, as in core=s5." in text
    assert caught.value.key == "core"


def test_option_of_another_core(conf: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(composed(conf, "core=other", "+core.d_state=3"))
    assert "no argument 'd_state'." in str(caught.value)


def test_resolved_config_builds_the_same(conf: Path) -> None:
    cfg = composed(conf)
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert same(instantiate(from_yaml(to_yaml(resolved.model))), instantiate(cfg.model))
