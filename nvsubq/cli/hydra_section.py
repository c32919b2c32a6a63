"""What a config may say below `hydra:`, looked at before Hydra acts on it.

Hydra builds callbacks, launcher, sweeper and logging from there, sets environment variables, and knows no
list of allowed targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nvsubq.lazy_config import ConfigError
from nvsubq.lazy_config.targets import listed_by_user

TARGETS = ("hydra._internal.core_plugins.", "hydra.experimental.callbacks.", "hydra_plugins.")
"""Hydra's own, and its plugins', which someone has installed."""

CALLBACKS = ("nvsubq.cli.sweep.SweepTable",)
LOGGING = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")

VARIABLES = ("CUDA_", "NCCL_", "GLOO_", "OMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "TORCH_NUM", "TOKENIZERS_")
"""Beginnings of what `hydra.job.env_set` may set: how fast something runs, not what runs."""


@contextmanager
def guarded() -> Iterator[None]:
    """While it lasts, Hydra composes no config whose `hydra:` is refused.

    Between composing and acting Hydra has no hook, so its loader's method is wrapped.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    load = ConfigLoaderImpl.load_configuration

    def checked(self: Any, *args: Any, **kwargs: Any) -> DictConfig:
        config = load(self, *args, **kwargs)
        check(config.hydra)
        return config

    ConfigLoaderImpl.load_configuration = checked  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign]


def check(section: DictConfig) -> None:
    """Raise for what Hydra would do with `hydra:` and a config may not ask for.

    Raises:
        ConfigError: it names the key, its value and what is allowed.
    """
    for name in ("callbacks", "launcher", "sweeper"):
        _check_targets(_value(section, name, "hydra"), f"hydra.{name}")
    for name in ("hydra_logging", "job_logging"):
        _check_logging(_value(section, name, "hydra"), f"hydra.{name}")
    for name, value in _items(section.job.env_set, "hydra.job.env_set"):
        if not str(name).startswith(VARIABLES):
            raise ConfigError(
                f"`hydra.job.env_set.{name}` (={value!r}) is refused: a config may set variables that begin "
                f"with {', '.join(VARIABLES)}. Set others in your shell.",
                "hydra.job.env_set",
            )


def _items(node: Any, key: str) -> Iterator[tuple[Any, Any]]:
    """Names and values of a config, interpolations resolved; none of what is no config."""
    if not isinstance(node, (DictConfig, ListConfig)) or node._is_none():
        return
    names: Any = node if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        if not OmegaConf.is_missing(node, name):
            yield name, _value(node, name, key)


def _value(node: Any, name: Any, key: str) -> Any:
    try:
        return node[name]
    except OmegaConfBaseException as error:
        if name == "filename":  # of a log file, which may lie in the folder of a job that has not begun
            return None
        reason = str(error).partition("\n")[0]  # what it will be later nobody knows
        raise ConfigError(f"`{key}.{name}` cannot be resolved: {reason}", key) from error


def _check_targets(value: Any, key: str) -> None:
    for name, inner in _items(value, key):
        if name == "_target_" and not _is_known(inner):
            allowed = ", ".join((*(f"{prefix}*" for prefix in TARGETS), *CALLBACKS))
            raise ConfigError(
                f"`{key}._target_` (={inner!r}) is refused: it must be of {allowed}, or of what you list in "
                "NVSUBQ_ALLOW_TARGETS.",
                key,
            )
        _check_targets(inner, f"{key}.{name}")


def _is_known(target: Any) -> bool:
    if not isinstance(target, str):
        return False
    return target.startswith(TARGETS) or target in CALLBACKS or listed_by_user(target)


def _check_logging(value: Any, key: str) -> None:
    for name, inner in _items(value, key):
        text = inner if isinstance(inner, str) else ""
        refused = (
            name == "()"
            or (name == "class" and inner not in LOGGING)
            or (text.startswith(("ext://", "cfg://")) and text not in STREAMS)
        )
        if refused:
            raise ConfigError(
                f"`{key}.{name}` (={inner!r}) is refused: loggers are made of {', '.join(LOGGING)}, on "
                f"{' or '.join(STREAMS)}.",
                key,
            )
        _check_logging(inner, f"{key}.{name}")
