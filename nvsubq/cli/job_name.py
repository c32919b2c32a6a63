"""The folder of a sweep's job: named by what is swept, and short enough for a file system."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

LIMIT = 100
"""Bytes of a name; most file systems end at 255, and a path holds more than one."""


def folder(overrides: str) -> str:
    """A file name for a job: its overrides, as far as there is room, then a hash of them all.

    Example:
        >>> folder("core=s5,seed=0")
        'core=s5,seed=0'
    """
    name = overrides.replace("/", "_") or "job"
    if len(name.encode()) <= LIMIT:
        return name
    digest = hashlib.sha256(overrides.encode()).hexdigest()[:8]
    return f"{name.encode()[: LIMIT - 9].decode(errors='ignore')}_{digest}"


# Jobs on other machines resolve it too: they import this module with the callback of the sweep.
OmegaConf.register_new_resolver("job_folder", folder, replace=True)


def leave_out_constants(config: DictConfig) -> None:
    """Lets Hydra name jobs by the keys that a sweep varies; where it varies none, by all of them.

    Every job composes its config again, here or elsewhere, with the overrides of `hydra:` that the sweep was
    given: one that excludes the others is added to them.

    Args:
        config: of the sweep, `hydra` in it.
    """
    given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    swept = {key.lstrip("+~").split("@")[0] for key in config.hydra.sweeper.get("params") or ()}
    swept |= {one.key_or_group for one in given if one.is_sweep_override()}
    constant = dict.fromkeys(one.key_or_group for one in given if one.key_or_group not in swept)
    if swept:
        config.hydra.overrides.hydra.append(
            f"hydra.job.config.override_dirname.exclude_keys={_list(constant)}"
        )


def _list(keys: Iterable[str]) -> str:
    return f"[{','.join(repr(key) for key in keys)}]"
