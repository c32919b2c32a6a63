"""The round trip: `from_yaml(to_yaml(c)) == c`."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import pytest
from config_targets import Core, Wrapper, fresh_policy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, ListConfig, OmegaConf

from nvsubq.lazy_config import ConfigError, LazyConfig, from_yaml, instantiate, to_yaml

__all__ = ["fresh_policy"]


def raw(cfg: Any) -> Any:
    return OmegaConf.to_container(cfg, resolve=False)


def same(a: Any, b: Any) -> bool:
    """Equal in types too: True is not 1, 1.0 is not 1; the order of keys counts."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_nodes_make_the_round_trip() -> None:
    core = LazyConfig(Core, partial=True, full=True)(d_state="${width}")
    root = OmegaConf.create(
        {
            "width": 4,
            "core": core,
            "model": LazyConfig(Wrapper)(core="${core}", layers=(1, "${.x}"), options="???"),
        }
    )
    text = to_yaml(root)
    assert text == (
        "width: 4\n"
        "core:\n"
        "  _target_: config_targets.Core\n"
        "  _partial_: true\n"
        "  d_model: ???\n"
        "  d_state: ${width}\n"
        "  d_conv: 4\n"
        "  dt_limit:\n"
        "  - 0.0\n"
        "  - .inf\n"
        "  dtype: null\n"
        "model:\n"
        "  _target_: config_targets.Wrapper\n"
        "  core: ${core}\n"
        "  layers:\n"
        "  - 1\n"
        "  - ${.x}\n"
        "  options: ???\n"
    )
    again = from_yaml(text)
    assert again == root
    assert same(raw(again), raw(root))
    assert instantiate(again.core)(d_model=1) == Core(1, 4, 4, [0.0, math.inf])


def test_every_container_is_written() -> None:
    assert to_yaml([1, {"a": (2,)}]) == "- 1\n- a:\n  - 2\n"
    assert (
        to_yaml({"a": LazyConfig(Core)(d_model=1)}) == "a:\n  _target_: config_targets.Core\n  d_model: 1\n"
    )
    assert isinstance(from_yaml("- 1"), ListConfig)
    assert isinstance(from_yaml("a: 1"), DictConfig)
    assert from_yaml("") == {}


def test_branch_is_written_with_its_interpolations() -> None:
    root = OmegaConf.create({"n": 1, "a": {"b": "${n}", "c": "${.b}"}})
    assert to_yaml(root.a) == "b: ${n}\nc: ${.b}\n"


def test_foreign_key_is_written_as_ours() -> None:
    text = "core:\n  __target__: config_targets.Core\n  d_model: 1\n"
    ours = text.replace("__target__", "_target_")
    assert to_yaml(from_yaml(text)) == to_yaml(OmegaConf.create(text)) == ours
    assert raw(from_yaml(text)) == {"core": {"_target_": "config_targets.Core", "d_model": 1}}


def test_from_a_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a b.yaml"
    path.write_text("größe: 1\n", encoding="utf-8")
    assert from_yaml(path) == from_yaml(str(path)) == {"größe": 1}
    with pytest.raises(FileNotFoundError):
        from_yaml(tmp_path / "none.yaml")
    path.write_text("a: [1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a b\.yaml is not YAML that a config may use: while parsing"):
        from_yaml(path)
    path.write_text("a: ${\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no viable alternative at input"):
        from_yaml(path)


@pytest.mark.parametrize("text", ["none.yaml", "3", "'a: 1'", "nvsubq.cores.Mamba"])
def test_scalar_is_neither_file_nor_config(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_yaml(text)
    assert str(caught.value) == f"{text!r} is neither an existing file nor a mapping or list in YAML."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2", "found duplicate key a"),
        ("a: [1", "while parsing a flow"),
        ("a: !custom 1", "could not determine a constructor for the tag '!custom'"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: !!binary aGk=", "a is a bytes, which a config cannot hold"),
        ("1.5: 2", "a key is a string or an integer, not 1.5"),
        ("a: {_target_: x.y, __target__: x.z}", "`_target_` and `__target__` are both given"),
    ],
)
def test_yaml_that_is_no_config(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_yaml(text)
    assert problem in str(caught.value)


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True)
WORDS = st.sampled_from(
    ["", " ", "null", "~", "true", "yes", "No", "on", "1", "1.0", "1e3", "1e-3", "+1", "0x1f", "0o7",
     "1_000", "12:30:45", ".5", "5.", "..5", ".inf", "-.INF", "nan", "1e5_0", "_", "2020-01-01",
     "???", "?", "-", "- a", "a: b", "#", "a #b", "'", '"', "\\", "a\nb", " a ", "\ttab", "\r",
     "{", "[", "*a", "&a", "!a", "%", "@", "`", "<<", "=",
     "\x85", "\u2028", "\ufeff", "\U0001f600", "\x00", "\x7f"]
)  # fmt: skip
TEXTS = WORDS | st.text(max_size=12).filter(lambda text: "${" not in text)
REFERENCES = st.sampled_from(["${a}", "${.b}", "${..c.d}", "x${a}y", "${oc.env:HOME}", "${a[0]}", "${${a}}"])
FLOATS = st.floats(allow_nan=False)
INTEGERS = st.integers(-(2**70), 2**70)
LEAVES = st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS | REFERENCES
KEYS = NAMES | WORDS | st.integers(-5, 5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
CONFIGS = st.dictionaries(KEYS, VALUES, max_size=5)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example({"a": 1e5, "b": -0.0, "c": 1e-7, "d": 1e22})
@example({"1": 1, 1: "1"})
@given(CONFIGS)
def test_round_trip(values: dict[Any, Any]) -> None:
    cfg = OmegaConf.create(values)
    again = from_yaml(to_yaml(cfg))
    assert same(raw(again), raw(cfg))
    assert again == cfg
    assert to_yaml(again) == to_yaml(cfg)
