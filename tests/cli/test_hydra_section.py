"""What lies below `hydra:` in a config is looked at before Hydra acts on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

MADE = "made_by_a_config"

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "callback": (
        {"callbacks": {"x": {"_target_": "os.mkdir", "path": MADE}}},
        r"`hydra.callbacks.x._target_` (='os.mkdir') is refused",
    ),
    "callback below a callback": (
        {"callbacks": {"x": {"_target_": "nvsubq.cli.sweep.SweepTable", "y": [{"_target_": "os.mkdir"}]}}},
        r"`hydra.callbacks.x.y.0._target_` (='os.mkdir') is refused",
    ),
    "callback of a name that Hydra uses": (
        {"callbacks": {"job": {"_target_": "os.mkdir", "path": MADE}}},
        r"`hydra.callbacks.job._target_` (='os.mkdir') is refused",
    ),
    "a logger's file": (
        {"job_logging": {"handlers": {"y": {"filename": {"()": "os.mkdir"}}}}},
        r"`hydra.job_logging.handlers.y.filename.()` (='os.mkdir') is refused",
    ),
    "callback by interpolation": (
        {"callbacks": {"x": "${node}"}},
        r"`hydra.callbacks.x._target_` (='os.mkdir') is refused",
    ),
    "callback that is known later": (
        {"callbacks": {"x": {"_target_": "${hydra.job.id}"}}},
        r"`hydra.callbacks.x._target_` cannot be resolved",
    ),
    "one of Hydra's functions": (
        {"callbacks": {"x": {"_target_": "hydra.utils.get_method", "path": "os.system"}}},
        r"(='hydra.utils.get_method') is refused",
    ),
    "launcher": (
        {"launcher": {"_target_": "subprocess.Popen"}},
        r"`hydra.launcher._target_` (='subprocess.Popen') is refused",
    ),
    "sweeper": (
        {"sweeper": {"_target_": "os.system"}},
        r"`hydra.sweeper._target_` (='os.system') is refused",
    ),
    "a logger's class": (
        {"job_logging": {"handlers": {"console": {"class": "os.mkdir"}}}},
        r"`hydra.job_logging.handlers.console.class` (='os.mkdir') is refused",
    ),
    "a logger's factory": (
        {"hydra_logging": {"handlers": {"y": {"()": "os.mkdir", "path": MADE}}}},
        r"`hydra.hydra_logging.handlers.y.()` (='os.mkdir') is refused",
    ),
    "a logger's stream": (
        {"job_logging": {"handlers": {"console": {"stream": "ext://os.environ"}}}},
        r"`hydra.job_logging.handlers.console.stream` (='ext://os.environ') is refused",
    ),
    "the list of allowed targets": (
        {"job": {"env_set": {"NVSUBQ_ALLOW_TARGETS": "os.*"}}},
        r"`hydra.job.env_set.NVSUBQ_ALLOW_TARGETS` (='os.*') is refused",
    ),
    "a preloaded library": (
        {"job": {"env_set": {"LD_PRELOAD": "x.so"}}},
        r"`hydra.job.env_set.LD_PRELOAD` (='x.so') is refused",
    ),
}


def experiment(here: Path, section: dict[str, Any]) -> tuple[str, ...]:
    """An experiment of someone else's; the arguments that name it."""
    folder = here / "theirs" / "experiment"
    folder.mkdir(parents=True)
    config: dict[str, Any] = {"defaults": ["mnist"], "hydra": section}
    if "${node}" in str(section):
        config["node"] = {"_target_": "os.mkdir", "path": MADE}
    (folder / "theirs.yaml").write_text("# @package _global_\n" + OmegaConf.to_yaml(OmegaConf.create(config)))
    return "--config-dir", "theirs", "experiment=theirs"


@pytest.mark.parametrize(("name", "flags"), [*((name, []) for name in REFUSED), ("callback", ["-m"])])
def test_refused(name, flags, train, here, capsys):
    section, message = REFUSED[name]
    assert train(*flags, *experiment(here, section), small=False) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") <= 2
    assert [path.name for path in here.iterdir()] == ["theirs"]


def test_what_the_user_lists_is_called(train, here, monkeypatch):
    from nvsubq.lazy_config import targets

    monkeypatch.setattr(targets, "_from_environment", lambda: ("hydra.experimental.callback.Callback",))
    section = {"callbacks": {"x": {"_target_": "hydra.experimental.callback.Callback"}}}
    assert train(*experiment(here, section), "core=rglru", "trainer.fast_dev_run=true", small=False) == 0


def test_what_is_harmless_goes_on(train, here):
    section = {"job": {"env_set": {"OMP_NUM_THREADS": "1"}}, "run": {"dir": "runs/mine/${now:%Y}"}}
    rest = ("hydra/job_logging=default", "core=rglru", "trainer.fast_dev_run=true")
    assert train(*experiment(here, section), *rest, small=False) == 0
