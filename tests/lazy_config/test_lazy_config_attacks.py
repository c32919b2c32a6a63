"""What a hostile config must not reach. The list narrows what a config can run; it is no sandbox."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

import pytest
from config_targets import fresh_policy
from omegaconf import OmegaConf

from nvsubq.lazy_config import (
    ConfigError,
    LazyConfig,
    allow_targets,
    as_factory,
    from_yaml,
    instantiate,
    targets,
    validate,
)

__all__ = ["fresh_policy"]


def refused(path: str, text: str, **arguments: Any) -> None:
    """Every way into the config layer refuses the path, for the same reason."""
    node = {"_target_": path, **arguments}
    for call in (
        lambda: instantiate(node),
        lambda: validate({"deep": [node]}),
        lambda: as_factory(node),
        lambda: instantiate({"_target_": "config_targets.Open", "x": {**node, "_partial_": True}}),
        lambda: instantiate({"__target__": path, **arguments}),
        lambda: instantiate(OmegaConf.create({"name": path, "node": {"_target_": "${name}"}})),
        lambda: LazyConfig(path),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["os.system", "builtins.eval", "subprocess.run", "importlib.import_module", "torch.load",
     "functools.partial", "torch.hub.load", "pickle.loads", "hydra.utils.instantiate",
     "omegaconf.OmegaConf.register_new_resolver"],
)  # fmt: skip
def test_what_is_not_listed_is_refused(path: str) -> None:
    refused(path, f"{path!r} is not on the allow-list")


@pytest.mark.parametrize(
    "path",
    ["nvsubqx.cores.A", "nvsubq", "torch.nnx.A", "torchx.nn.Linear", "Torch.nn.Linear", "xnvsubq.cores.A"],
)
def test_entries_end_at_a_dot(path: str) -> None:
    with pytest.raises(ConfigError, match=r"is not on the allow-list|is not a dotted path"):
        instantiate({"_target_": path})


@pytest.mark.parametrize(
    ("path", "really"),
    [
        ("logging.os.system", "os.system"),
        ("logging.os.path.join", "os.path.join"),
        ("logging.sys.exit", "sys.exit"),
        ("logging.weakref.ref", "weakref.ref"),
        ("config_targets.os.system", "os.system"),
        ("config_targets.OrderedDict", "collections.OrderedDict"),
        ("nvsubq.importlib.import_module", "importlib.import_module"),
        ("torch.optim.lr_scheduler.partial", "functools.partial"),
        ("torch.nn.functional.torch.load", "torch.load"),
        ("torch.nn.functional.importlib.import_module", "importlib.import_module"),
    ],
)
def test_alias_is_what_it_really_is(path: str, really: str) -> None:
    allow_targets("logging.*")
    refused(path, f"{path!r} is really {really!r}, which is not on the allow-list.")


def test_alias_of_a_function_is_found_by_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    import config_targets

    aliases = {
        "shell": ("posix.system" if os.name == "posix" else "nt.system", os.system),
        "read": ("pathlib.Path.read_text", pathlib.Path("x").read_text),
        "join": ("builtins.str.join", "x".join),
        "fromkeys": ("builtins.dict.fromkeys", dict.fromkeys),
        "slot": ("builtins.object.__init__", object.__init__),
    }
    for name, (really, value) in aliases.items():
        monkeypatch.setattr(config_targets, name, value, raising=False)
        with pytest.raises(ConfigError) as caught:
            instantiate({"_target_": f"config_targets.{name}"})
        if really.startswith("pathlib"):  # a bound method: whose it is comes first
            assert "'config_targets.read' is really 'pathlib" in str(caught.value)
        elif name == "slot":
            assert "is really 'builtins.object" in str(caught.value)
        else:
            assert f"'config_targets.{name}' is really {really!r}" in str(caught.value)


@pytest.mark.parametrize("value", [functools.partial(os.getcwd), threading.local()])
def test_instance_does_not_hide_a_function(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import config_targets

    monkeypatch.setattr(config_targets, "hidden", value, raising=False)
    with pytest.raises(ConfigError, match=r"whose origin is not known|not a class or function"):
        instantiate({"_target_": "config_targets.hidden"})


def test_inherited_classmethod_counts_where_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    import fractions

    import config_targets

    half = type("Half", (fractions.Fraction,), {"__module__": "config_targets", "__qualname__": "Half"})
    monkeypatch.setattr(config_targets, "Half", half, raising=False)
    with pytest.raises(ConfigError, match=r"is really 'fractions\.Fraction\.from_float', which is not on"):
        instantiate({"_target_": "config_targets.Half.from_float", "f": 0.5})
    allow_targets("fractions.*")
    assert instantiate({"_target_": "config_targets.Half.from_float", "f": 0.5}) == 0.5


IO = {"_target_": "lightning.fabric.plugins.TorchCheckpointIO"}


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("nvsubq.study.worker.main", {"config_text": "{}", "overrides": []}),
        ("nvsubq.models.save_pretrained", {"model": None}),
        ("nvsubq.NDBackbone.save_pretrained", {"self": None}),
        ("lightning.fabric.plugins.TorchCheckpointIO.load_checkpoint", {"self": IO, "weights_only": False}),
        ("lightning.fabric.plugins.TorchCheckpointIO.save_checkpoint", {"self": IO, "checkpoint": {}}),
        ("lightning.fabric.plugins.TorchCheckpointIO.remove_checkpoint", {"self": IO}),
        ("lightning.pytorch.loggers.csv_logs.ExperimentWriter", {}),
    ],
)
def test_allowed_packages_lend_no_file_helpers(
    path: str, arguments: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """What deletes, unpickles or writes, with the argument that says where."""
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "metrics.csv").write_text("mine")
    for name in ("folder", "path", "log_dir"):
        with pytest.raises(ConfigError, match=r"that a config may name\.|is a method: a config builds"):
            instantiate({"_target_": path, **arguments, name: str(folder)})
    assert [(p.name, p.read_text()) for p in folder.iterdir()] == [("metrics.csv", "mine")]


@pytest.mark.parametrize(
    "path",
    ["nvsubq.lazy_config.allow_targets",
     "nvsubq.lazy_config.LazyConfig", "nvsubq.lazy_config.instantiate",
     "nvsubq.lazy_config.create", "nvsubq.lazy_config.targets.allow",
     "nvsubq.allow_targets", "nvsubq.LazyConfig", "nvsubq.as_factory", "nvsubq.ConfigError",
     "nvsubq.compat.nvsubquadratic.LazyConfig", "nvsubq.nd.factory.as_factory",
     "nvsubq.lazy_config.os.system"],
)  # fmt: skip
def test_config_cannot_unlock_the_list(path: str) -> None:
    before = targets.policy()
    arguments = {"_args_": ["os.*"]}
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"never a target|is private"):
            instantiate({"_target_": path, **arguments})
        # not even where the user lists them
        allow_targets("nvsubq.lazy_config.*", "nvsubq.lazy_config.allow_targets", "nvsubq.allow_targets")
    assert "os.*" not in targets.policy()
    assert targets.policy()[: len(before)] == before


def test_objects_of_the_config_layer_cannot_be_authorised() -> None:
    for target in (allow_targets, LazyConfig, instantiate, targets.allow):
        with pytest.raises(ConfigError, match=r"never a target|no public path"):
            LazyConfig(target)


def test_policy_cannot_be_changed_in_place() -> None:
    assert type(targets.policy()) is tuple
    assert type(targets._policy) is tuple


@pytest.mark.parametrize(
    "path",
    ["config_targets.Core.__init__", "config_targets.Core.__class__", "config_targets.__builtins__.eval",
     "config_targets.Core.from_width.__globals__", "torch.nn.Linear.__subclasses__", "nvsubq.cli._hidden.run",
     "torch.nn._reduction.get_enum", "config_targets.Core._hidden", "config_targets.__loader__.get_code",
     "_config_targets.Core"],
)  # fmt: skip
def test_private_components_are_refused(path: str) -> None:
    refused(path, f"{path!r} is private: no component of a target may start with '_'.")


@pytest.mark.parametrize(
    "path", ["config_targets.Core()", "config_targets.Core;os", "config_targets. Core", "a/b.c"]
)
def test_path_is_names_and_dots(path: str) -> None:
    refused(path, f"{path!r} is not a dotted path")


@pytest.fixture
def tripwire(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A package that leaves a mark when any part of it is imported."""
    package = tmp_path / "tripwire_pkg"
    package.mkdir()
    mark = tmp_path / "mark"
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass A: pass\n"
    (package / "__init__.py").write_text(code)
    (package / "part.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield mark
    for name in [name for name in sys.modules if name.startswith("tripwire_pkg")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "path", ["tripwire_pkg.A", "tripwire_pkg.part.A", "tripwire_pkg.part", "tripwire_pkg._a.A"]
)
def test_nothing_is_imported_before_the_check(path: str, tripwire: pathlib.Path) -> None:
    with pytest.raises(ConfigError):
        instantiate({"_target_": path})
    with pytest.raises(ConfigError):
        validate({"a": {"_target_": path}})
    assert not tripwire.exists()
    allow_targets("tripwire_pkg.part.A")
    instantiate({"_target_": "tripwire_pkg.part.A"})
    assert tripwire.exists()


def test_lazy_attribute_of_a_borrowed_module_is_not_touched(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`allowed.alias.name` must not set off the lazy imports of the module behind the alias."""
    mark = tmp_path / "mark"
    code = (
        f"import pathlib\ndef __getattr__(name):\n    pathlib.Path({str(mark)!r}).touch()\n    return print\n"
    )
    (tmp_path / "lazy_stranger.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import config_targets
    import lazy_stranger

    monkeypatch.setattr(config_targets, "stranger", lazy_stranger, raising=False)
    with pytest.raises(ConfigError, match=r"is really 'lazy_stranger\.anything'"):
        instantiate({"_target_": "config_targets.stranger.anything"})
    assert not mark.exists()


def test_both_keys_do_not_smuggle_a_target() -> None:
    for node in (
        {"_target_": "config_targets.twice", "__target__": "os.system"},
        {"_target_": "os.system", "__target__": "config_targets.twice"},
    ):
        with pytest.raises(ConfigError, match="are both given"):
            instantiate({**node, "x": 1})


def test_exact_entry_honours_a_re_export_and_nothing_below_it() -> None:
    allow_targets("config_targets.OrderedDict")
    assert instantiate({"_target_": "config_targets.OrderedDict", "a": 1}) == {"a": 1}
    assert LazyConfig("config_targets.OrderedDict")()._target_ == "config_targets.OrderedDict"
    with pytest.raises(ConfigError, match=r"'collections\.OrderedDict' is not on the allow-list"):
        instantiate({"_target_": "collections.OrderedDict"})
    with pytest.raises(ConfigError, match=r"is really 'builtins\.dict\.fromkeys'|is really 'collections"):
        instantiate({"_target_": "config_targets.OrderedDict.fromkeys", "_args_": [[1]]})


def test_resolver_does_not_bring_in_a_target() -> None:
    root = OmegaConf.create({"node": "${oc.create:{_target_:os.getcwd}}"})
    with pytest.raises(ConfigError, match=r"'os\.getcwd' is not on the allow-list"):
        instantiate(root)


def test_yaml_is_read_by_a_safe_loader() -> None:
    for text in (
        "a: !!python/object/apply:os.getcwd []",
        "a: !!python/name:os.system",
        "!!python/object/new:os.system [ls]",
        "a: !!python/module:os",
    ):
        with pytest.raises(ConfigError, match="the text is not YAML that a config may use"):
            from_yaml(text)


@pytest.mark.parametrize(
    "entry", ["*", "", ".*", "os", "os.**", "*.os", "os.*.path", "o*", "nvsubq.*x", "_os.*", "os._exit", 3]
)
def test_entries_that_are_refused(entry: Any) -> None:
    before = targets.policy()
    with pytest.raises(ConfigError, match=r"^allow-list entry .*"):
        allow_targets("good.*", entry)
    assert targets.policy() == before


def test_messages_for_entries() -> None:
    with pytest.raises(ConfigError) as caught:
        allow_targets("*")
    assert str(caught.value) == "allow-list entry '*' must be 'pkg.*' or an exact dotted path."
    with pytest.raises(ConfigError) as caught:
        allow_targets("pkg._inner.*")
    assert str(caught.value) == "allow-list entry 'pkg._inner.*': no component may start with '_'."


def test_environment_adds_entries() -> None:
    code = (
        "from nvsubq.lazy_config import *\n"
        "for node in ({'_target_': 'fractions.Fraction', 'numerator': 2}, {'_target_': 'os.getpid'}):\n"
        "    try: print(instantiate(node))\n"
        "    except ConfigError as error:\n"
        "        print(str(error).splitlines()[-1 if 'entry' in str(error) else -2])\n"
    )

    def run(value: str) -> list[str]:
        env = {**os.environ, "NVSUBQ_ALLOW_TARGETS": value}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
        )
        return done.stdout.splitlines()

    first, second = run("fractions.*, collections.OrderedDict")
    assert first == "2"
    assert "'os.getpid' is not on the allow-list" in second
    bad = "  allow-list entry in NVSUBQ_ALLOW_TARGETS '*' must be 'pkg.*' or an exact dotted path."
    assert run("fractions.* *") == [bad, bad]


def test_allowing_from_many_threads_loses_nothing() -> None:
    names = [f"pkg{i}.*" for i in range(64)]
    threads = [threading.Thread(target=allow_targets, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(names) <= set(targets.policy())
