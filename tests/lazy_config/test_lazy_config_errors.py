"""What is wrong with a config, word for word."""

from __future__ import annotations

import builtins
import functools
import importlib
import math
import pathlib
import pickle
import traceback
from typing import Any

import numpy
import pytest
import torch
from config_targets import CALLS, Core, Items, OddError, OtherCore, fresh_policy, nameless, outer
from omegaconf import OmegaConf
from torch import nn

from nvsubq.lazy_config import ConfigError, LazyConfig, as_factory, instantiate, plan, to_yaml, validate

__all__ = ["fresh_policy"]

SIGNATURE = "signature: Core(d_model, d_state=16, d_conv=4, dt_limit=(0.0, inf), dtype=None)"
CORE = "config_targets.Core"


def message(call: Any, *args: Any, kind: type[Exception] = ConfigError, **kwargs: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


def test_the_form_of_an_error() -> None:
    root = OmegaConf.create({"model": {"mixer": {"core": {"_target_": CORE, "d_model": 3, "d_sate": 1}}}})
    for call in (instantiate, validate):
        with pytest.raises(ConfigError) as caught:
            call(root)
        assert str(caught.value) == (
            "config_targets.Core\n"
            "  no argument 'd_sate'. Did you mean 'd_state'?\n"
            f"  {SIGNATURE}\n"
            "  at: model.mixer.core"
        )
        assert caught.value.key == "model.mixer.core"
        last = traceback.format_exception_only(type(caught.value), caught.value)[0]
        assert last.startswith("nvsubq.lazy_config.ConfigError: config_targets.Core\n")
    assert CALLS == []


def test_a_node_is_named_by_where_it_is_attached() -> None:
    root = OmegaConf.create({"model": {"cores": [1, {"_target_": CORE, "d_model": 3, "d_sate": 1}]}})
    assert message(instantiate, root.model.cores[1]).endswith("\n  at: model.cores[1]")
    assert message(as_factory, root.model.cores[1]).endswith("\n  at: model.cores[1]")


def test_unknown_keyword_fails_where_it_is_written() -> None:
    assert message(LazyConfig(Core), d_sate=16) == (
        f"config_targets.Core\n  no argument 'd_sate'. Did you mean 'd_state'?\n  {SIGNATURE}"
    )
    assert message(LazyConfig(Core), heads=1, d_con=2) == (
        "config_targets.Core\n"
        "  no argument 'heads'.\n"
        "  no argument 'd_con'. Did you mean 'd_conv'?\n"
        f"  {SIGNATURE}"
    )


def test_missing_arguments() -> None:
    assert message(instantiate, {"core": {"_target_": CORE}}) == (
        f"config_targets.Core\n  missing argument 'd_model'.\n  {SIGNATURE}\n  at: core"
    )
    assert message(instantiate, {"_target_": CORE, "d_model": "???", "dtype": "???"}) == (
        "config_targets.Core\n"
        "  argument 'd_model' is ??? and needs a value.\n"
        "  argument 'dtype' is ??? and needs a value.\n"
        f"  {SIGNATURE}"
    )


def test_a_misspelt_required_argument_is_told_once() -> None:
    assert message(instantiate, {"_target_": CORE, "d_modle": 3}) == (
        f"config_targets.Core\n  no argument 'd_modle'. Did you mean 'd_model'?\n  {SIGNATURE}"
    )


def test_arguments_that_stayed_from_another_class() -> None:
    node = {"core": {"_target_": "config_targets.OtherCore", "_partial_": True, "d_conv": 4, "expand": 2}}
    assert message(instantiate, node) == (
        "config_targets.OtherCore\n"
        "  no argument 'd_conv'.\n"
        "  no argument 'expand'.\n"
        "  none of these is near an argument of config_targets.OtherCore: "
        "`_target_` was probably edited while\n"
        "  the old class's arguments stayed (Hydra merges mappings). "
        "Choose by the config group, as in core=s5.\n"
        f"  signature: OtherCore(width, *, blocks=1, scale={math.pi}, guard=...)\n"
        "  at: core"
    )
    near = {"_target_": "config_targets.OtherCore", "_partial_": True, "d_conv": 4, "block": 2}
    assert "stayed" not in message(instantiate, near)
    assert "stayed" not in message(LazyConfig(OtherCore), d_conv=4)


def test_late_arguments_are_checked() -> None:
    node = LazyConfig(Core)(d_model=1)
    assert message(instantiate, node, in_channels=3) == (
        f"config_targets.Core\n  no argument 'in_channels' (given to `instantiate`).\n  {SIGNATURE}"
    )
    assert message(instantiate, {"a": node}, d_model=3) == (
        "'d_model' has no target to go to: the config has no `_target_`."
    )
    assert message(instantiate, node, _partial_=True) == (
        "'_partial_' belongs into the config, not into the call of `instantiate`."
    )


def test_positional_values_are_checked() -> None:
    assert message(instantiate, {"_target_": "config_targets.twice", "_args_": [1, 2, 3]}) == (
        "config_targets.twice\n  3 values by position, at most 2 fit.\n  signature: twice(x, y=2)"
    )
    assert message(LazyConfig("config_targets.twice"), _args_=[1], x=2) == (
        "config_targets.twice\n"
        "  argument 'x' is given twice, by position and by name.\n"
        "  signature: twice(x, y=2)"
    )
    for args, kind in ((3, "int"), ({"a": 1}, "dict"), ("ab", "str")):
        text = message(instantiate, {"_target_": "config_targets.Items", "_args_": args})
        assert text == f"config_targets.Items\n  `_args_` must be a list, not a {kind}."
        assert "`_args_` must be a list." in message(LazyConfig(Items), _args_=args)
    assert message(instantiate, {"_target_": "config_targets.Items", "_args_": [1, "???"]}) == (
        "config\n  element 1 is ??? and needs a value.\n  at: _args_"
    )
    assert "no argument 'first'" in message(instantiate, {"_target_": "config_targets.Strict", "first": 1})


def test_flags_are_true_or_false() -> None:
    for name in ("_partial_", "_recursive_"):
        node = {"_target_": CORE, "d_model": 1, name: "yes"}
        assert (
            message(instantiate, node) == f"config_targets.Core\n  `{name}` must be true or false, not 'yes'."
        )
    node = {"_target_": CORE, "d_model": 1, "_partial_": "???"}
    assert "`_partial_` must be true or false, not ???." in message(instantiate, node)


@pytest.mark.parametrize(
    "slip", ["_traget_", "_targt_", "_target", "target_", "__target_", "_Target_", "_tagret_"]
)
def test_near_miss_of_target(slip: str) -> None:
    assert message(instantiate, {"core": {slip: CORE, "d_model": 1}}) == (
        f"config\n  no key {slip!r} here. Did you mean '_target_'?\n  at: core"
    )
    with pytest.raises(ConfigError, match=f"no argument '{slip}'. Did you mean '_target_'"):
        instantiate({"_target_": "config_targets.Open", slip: CORE})
    with pytest.raises(ConfigError, match="no key"):
        as_factory({slip: CORE})


def test_plain_word_target_is_a_slip_only_before_a_target() -> None:
    assert "Did you mean '_target_'?" in message(instantiate, {"target": CORE, "d_model": 1})
    assert instantiate({"target": "dice", "x": {"target": "???"}} | {"x": {"target": "a.b"}}) == {
        "target": "dice",
        "x": {"target": "a.b"},
    }


@pytest.mark.parametrize(
    ("slip", "meant"), [("_partail_", "_partial_"), ("_arg_", "_args_"), ("_recursive", "_recursive_")]
)
def test_near_miss_of_another_special_key(slip: str, meant: str) -> None:
    line = f"no argument {slip!r}. Did you mean {meant!r}?"
    for target in (CORE, "config_targets.Open"):
        assert line in message(instantiate, {"_target_": target, "d_model": 1, slip: True})
        assert line in message(LazyConfig(target), **{slip: True})


@pytest.mark.parametrize("name", ["_partial_", "_args_", "_recursive_", "_convert_"])
def test_special_key_without_target(name: str) -> None:
    assert message(instantiate, {"core": {name: True, "d_model": 1}}) == (
        f"config\n  no key {name!r} without `_target_`.\n  at: core"
    )


def test_target_that_is_no_path() -> None:
    assert message(instantiate, {"_target_": 3}) == "config\n  `_target_` must be a dotted path, not a int."
    assert message(instantiate, {"_target_": None}).endswith("must be a dotted path, not a NoneType.")
    assert message(instantiate, {"_target_": "???"}) == "config\n  `_target_` is ??? and needs a value."
    for text in ("Core", "config_targets.", "config targets.Core", "a..b", ""):
        assert f"{text!r} is not a dotted path such as 'nvsubq.cores.Mamba'." in message(LazyConfig, text)


def test_both_targets() -> None:
    node = {"_target_": CORE, "__target__": CORE, "d_model": 1}
    line = "`_target_` and `__target__` are both given; one names the target."
    assert message(instantiate, node) == f"config\n  {line}"
    assert message(instantiate, OmegaConf.create({"core": node})) == f"config\n  {line}\n  at: core"
    assert message(to_yaml, {"core": node}) == f"config\n  core: {line}"
    assert f"argument 'd_model': {line}" in message(LazyConfig(Core), d_model=node)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("config_targets.Cor", "'config_targets' has no 'Cor'. Did you mean 'config_targets.Core'?"),
        ("config_targets.Core.from_widht", "'config_targets.Core' has no 'from_widht'. "
         "Did you mean 'config_targets.Core.from_width'?"),
        ("config_targets.Zzz", "'config_targets' has no 'Zzz'."),
        ("nvsubq.coers.Mamba", "'nvsubq' has no 'coers'. Did you mean 'nvsubq.cores'?"),
        ("torch.nn.Lineer", "'torch.nn' has no 'Lineer'. Did you mean 'torch.nn.Linear'?"),
        ("config_targets.constant", "is a int, not a class or function."),
        ("torch.nn.functional", "is a module, not a class or function."),
    ],
)  # fmt: skip
def test_path_that_leads_nowhere(path: str, text: str) -> None:
    assert message(instantiate, {"core": {"_target_": path, "x": {"_target_": CORE, "d_model": 1}}}) == (
        f"{path}\n  {text}\n  at: core"
    )
    assert message(LazyConfig, path) == f"{path}\n  {text}"


def test_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the allow-list's own is named with the extra that brings it."""
    real = importlib.import_module

    def without(name: str) -> Any:
        if name == "mamba_ssm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    assert message(instantiate, {"core": {"_target_": "mamba_ssm.Mamba", "d_model": 8}}) == (
        "mamba_ssm.Mamba\n"
        "  no package 'mamba_ssm' is installed.\n"
        "  to install it: pip install 'nvsubq[cuda]'.\n"
        "  at: core"
    )


def test_package_that_does_not_import(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_pkg").mkdir()
    (tmp_path / "broken_pkg" / "__init__.py").write_text(
        "def __getattr__(name):\n    if name == 'lazy':\n        raise RuntimeError('no driver')\n"
        "    raise AttributeError(name)\n"
    )
    (tmp_path / "broken_pkg" / "needs.py").write_text("import not_there_at_all\n")
    (tmp_path / "broken_pkg" / "wrong.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    from nvsubq.lazy_config import allow_targets

    allow_targets("broken_pkg.*")
    assert message(LazyConfig, "broken_pkg.needs.A").endswith(
        "cannot import 'broken_pkg.needs': No module named 'not_there_at_all'"
    )
    assert message(LazyConfig, "broken_pkg.wrong.A").endswith(
        "cannot import 'broken_pkg.wrong': ZeroDivisionError: division by zero"
    )
    assert message(LazyConfig, "broken_pkg.lazy").endswith(
        "cannot import 'broken_pkg.lazy': RuntimeError: no driver"
    )


def test_not_allowed() -> None:
    assert message(instantiate, {"core": {"_target_": "nvsbuq.cores.Mamba"}}) == (
        "nvsbuq.cores.Mamba\n"
        "  'nvsbuq.cores.Mamba' is not on the allow-list (nvsubq.*, torch.nn.*, torch.optim.*, lightning.*, "
        "torchmetrics.*, mamba_ssm.*, config_targets.*). Did you mean 'nvsubq.cores.Mamba'?\n"
        "  to allow it: nvsubq.allow_targets('nvsbuq.cores.Mamba') in code, or NVSUBQ_ALLOW_TARGETS; "
        "never in a config.\n"
        "  at: core"
    )


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (nameless, "<lambda>\n  a lambda cannot be a target: a config could not name it. "
         "Define a function in a module."),
        (outer(), "outer.<locals>.Local\n  'outer.<locals>.Local' is local: a config could not name it. "
         "Define it at the top of a module."),
        (Core._hidden, "Core._hidden\n  'config_targets.Core._hidden' is private: "
         "no component of a target may start with '_'."),
        (3, "3\n  a target is a class, a function or a dotted path, not an instance of int."),
        (functools.partial(Core), "a target is a class, a function or a dotted path, "
         "not an instance of partial."),
        (nn.functional.gelu, "no public path leads back to torch._C._nn.gelu. Pass one as a string."),
    ],
)  # fmt: skip
def test_objects_that_cannot_be_targets(target: Any, text: str) -> None:
    assert message(LazyConfig, target).endswith(text)


def test_class_of_main_cannot_be_a_target() -> None:
    made: Any = type("Mine", (), {"__module__": "__main__"})
    assert message(LazyConfig, made) == (
        "Mine\n  'Mine' is defined in __main__: a config could not name it. Move it into a module."
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.float32, "is a torch.dtype, which a config cannot hold. Write it as a string, 'float32'."),
        (pathlib.PurePosixPath("a/b"), "is a pathlib.PurePosixPath, which a config cannot hold. "
         "Write it as a string, 'a/b'."),
        (numpy.float64(1), "is a numpy.float64, which a config cannot hold. "
         "It holds None, bool, int, float, str, list, tuple, dict and nodes."),
        (b"x", "is a bytes, which a config cannot hold. "
         "It holds None, bool, int, float, str, list, tuple, dict and nodes."),
        (nn.GELU, "is a type, which a config cannot hold. "
         "Pass a node, LazyConfig(...)(...), and let `instantiate` build it."),
        (nn.Identity(), "is a torch.nn.modules.linear.Identity, which a config cannot hold. "
         "Pass a node, LazyConfig(...)(...), and let `instantiate` build it."),
        (LazyConfig(nn.GELU), "is a nvsubq.lazy_config.LazyConfig, which a config cannot hold. "
         "Pass a node, LazyConfig(...)(...), and let `instantiate` build it."),
    ],
)  # fmt: skip
def test_values_that_are_no_plain_data(value: Any, text: str) -> None:
    assert (
        message(LazyConfig(Core), dtype=value)
        == f"config_targets.Core\n  argument 'dtype' {text}\n  {SIGNATURE}"
    )
    deep = message(LazyConfig(Core), dtype={"a": [1, value]})
    assert deep == f"config_targets.Core\n  argument 'dtype'.a[1] {text}\n  {SIGNATURE}"
    assert message(to_yaml, {"dtype": value}) == f"config\n  dtype {text}"
    assert message(validate, {"dtype": [value]}) == f"config\n  dtype[0] {text}"


def test_keys_are_strings_or_integers() -> None:
    line = "a key is a string or an integer, not 1.5."
    assert f"argument 'dtype': {line}" in message(LazyConfig(Core), dtype={1.5: 2})
    assert message(to_yaml, {1.5: 2}) == f"config\n  {line}"
    assert "argument names are strings, not 3." in message(
        instantiate, {"_target_": CORE, "d_model": 1, 3: 4}
    )


def test_special_keys_that_a_node_writes_itself() -> None:
    assert "`_partial_` is written by LazyConfig(target, partial=True)." in message(
        LazyConfig(Core), _partial_=True
    )
    for name in ("_target_", "__target__"):
        assert "`_target_` is the target of LazyConfig itself." in message(LazyConfig(Core), **{name: "a.b"})


def test_interpolation_that_cannot_be_parsed() -> None:
    assert message(LazyConfig(Core), d_model="${").splitlines()[1] == (
        "  argument 'd_model': no viable alternative at input '${'."
    )
    assert message(instantiate, {"core": {"a": "${"}}) == (
        "config\n  no viable alternative at input '${'.\n  at: core.a"
    )


def test_what_is_no_config() -> None:
    assert message(instantiate, 3) == "instantiate takes a config (a mapping or a list), not int."
    assert message(validate, "a.b") == "validate takes a config (a mapping or a list), not str."
    assert message(instantiate, None, x=1).endswith("not NoneType.")
    assert message(instantiate, LazyConfig(Core)).endswith("not nvsubq.lazy_config.LazyConfig.")
    assert (
        message(as_factory, 3, kind=TypeError)
        == "`core` (=3) must be a class, a function or a config node, not int."
    )
    assert message(as_factory, LazyConfig(Core), kind=TypeError) == (
        "`core` (=LazyConfig(config_targets.Core)) has no arguments yet: call it, LazyConfig(...)(...)."
    )
    root = OmegaConf.create({"core": {"d_model": 1}})
    with pytest.raises(
        ConfigError, match="a factory needs a node with `_target_`, this mapping has none"
    ) as caught:
        as_factory(root.core)
    assert caught.value.key == "core"


def test_all_problems_in_one_error() -> None:
    root = OmegaConf.create(
        {
            "data": {"root": "???"},
            "core": {"_target_": CORE, "_partial_": True, "d_model": "???", "d_sate": 1},
            "model": {
                "_target_": "config_targets.Wrapper",
                "cor": 1,
                "core": "${core}",
                "layers": [{"_target_": "os.getcwd"}, {"_traget_": CORE}, "${nothing}"],
                "options": {"_target_": "config_targets.OtherCore", "blocks": 2},
            },
        }
    )
    with pytest.raises(ConfigError) as caught:
        validate(root)
    assert caught.value.key == "data"
    allowed = (
        "(nvsubq.*, torch.nn.*, torch.optim.*, lightning.*, torchmetrics.*, mamba_ssm.*, config_targets.*)"
    )
    assert str(caught.value) == (
        "7 nodes have problems\n"
        "\n"
        "config\n  'root' is ??? and needs a value.\n  at: data\n"
        "\n"
        f"config_targets.Core\n  no argument 'd_sate'. Did you mean 'd_state'?\n  {SIGNATURE}\n  at: core\n"
        "\n"
        "config_targets.Wrapper\n  no argument 'cor'. Did you mean 'core'?\n"
        "  signature: Wrapper(core=None, layers=(), options=None)\n  at: model\n"
        "\n"
        "config\n  element 2: Interpolation key 'nothing' not found.\n  at: model.layers\n"
        "\n"
        f"os.getcwd\n  'os.getcwd' is not on the allow-list {allowed}.\n"
        "  to allow it: nvsubq.allow_targets('os.getcwd') in code, or NVSUBQ_ALLOW_TARGETS; "
        "never in a config.\n"
        "  at: model.layers[0]\n"
        "\n"
        "config\n  no key '_traget_' here. Did you mean '_target_'?\n  at: model.layers[1]\n"
        "\n"
        "config_targets.OtherCore\n  missing argument 'width'.\n"
        f"  signature: OtherCore(width, *, blocks=1, scale={math.pi}, guard=...)\n  at: model.options"
    )
    assert CALLS == []
    assert message(instantiate, root) == str(caught.value)


def test_validate_knows_what_will_be_given_late() -> None:
    root = OmegaConf.create(
        {"model": {"_target_": CORE, "d_state": 1}, "n": {"_target_": CORE, "d_model": "???"}}
    )
    validate(root, late={"model": ["d_model"], "n": ("d_model",)})
    validate(root.model, late=["d_model"])
    validate({"_target_": CORE}, late=["d_model"])
    assert "no argument 'd_modle' (given to `instantiate`). Did you mean 'd_model'?" in message(
        validate, root.model, late=["d_modle"]
    )
    assert "at: n" in message(validate, root, late={"model": ["d_model"]})


def test_error_of_a_constructor_keeps_its_type_and_says_where() -> None:
    root = OmegaConf.create({"model": {"core": {"_target_": CORE, "d_model": -1}}})
    with pytest.raises(ValueError, match=r"`d_model` \(=-1\) must be at least 0\.") as caught:
        instantiate(root)
    assert type(caught.value) is ValueError
    assert caught.value.__notes__ == ["while building config_targets.Core at model.core"]
    with pytest.raises(ValueError, match="must be at least 0") as caught:
        instantiate({"_target_": CORE, "d_model": -1})
    assert caught.value.__notes__ == ["while building config_targets.Core"]


def test_error_inside_a_factory_says_where() -> None:
    root = OmegaConf.create({"core": {"_target_": CORE, "_partial_": True}})
    for factory in (instantiate(root.core), as_factory(root.core)):
        with pytest.raises(ValueError, match="must be at least 0") as caught:
            factory(d_model=-1)
        assert caught.value.__notes__ == ["while building config_targets.Core at core"]
        assert message(factory, d_modle=3) == (
            "config_targets.Core\n  no argument 'd_modle'. Did you mean 'd_model'?\n"
            f"  missing argument 'd_model'.\n  {SIGNATURE}\n  at: core"
        )


def test_factory_says_that_too_much_was_given() -> None:
    factory = as_factory(LazyConfig("config_targets.twice")(x=1))
    assert message(factory, 1) == (
        "config_targets.twice\n"
        "  argument 'x' is given twice, by position and by name.\n"
        "  signature: twice(x, y=2)"
    )
    assert message(as_factory(LazyConfig("config_targets.twice")()), 1, 2, 3) == (
        "config_targets.twice\n  3 values by position, at most 2 fit.\n  signature: twice(x, y=2)"
    )


def test_notes_before_python_311(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10 has no `add_note`: the note joins the message where that is plain text."""

    def has_no_add_note(value: Any, name: str) -> bool:
        return name != "add_note" and builtins.hasattr(value, name)

    monkeypatch.setattr(plan, "hasattr", has_no_add_note, raising=False)
    note = "while building config_targets.fail at x"
    for kind, expected in (("value", ValueError), ("key", KeyError), ("odd", OddError)):
        with pytest.raises(expected) as caught:
            instantiate({"x": {"_target_": "config_targets.fail", "kind": kind}})
        assert caught.value.__notes__ == [note]
        text = {"value": f"wrong value\n{note}", "key": "'gone'", "odd": "(3, 'here')"}[kind]
        assert str(caught.value) == text


def test_error_travels_between_processes() -> None:
    with pytest.raises(ConfigError) as caught:
        instantiate({"core": {"_target_": CORE}})
    other = pickle.loads(pickle.dumps(caught.value))
    assert type(other) is ConfigError
    assert (str(other), other.key) == (str(caught.value), "core")


def test_long_signatures_are_cut_at_an_argument() -> None:
    text = message(LazyConfig("config_targets.many"), opton_3="b").splitlines()
    assert text[1] == "  no argument 'opton_3'. Did you mean 'option_3'?"
    assert text[2].startswith("  signature: many(*, option_0='a value', option_1='a value', ")
    assert text[2].endswith("'a value', ...)")
    assert 380 < len(text[2]) < 420
