"""What Hydra leaves out when an override names no key: which keys there are, and which one was meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from nvsubq.cli.errors import hydra_message, nearest
from nvsubq.cli.paths import PRIMARY, config_dir

SHOWN = 40
OTHER = ("hydra", "study")
"""Folders of configs that are no groups of a training."""


def explain(error: Exception, arguments: Sequence[str]) -> str | None:
    """The message for an override of an unknown key; None for any other error.

    Args:
        error: what Hydra raised.
        arguments: those of the command line.
    """
    found = re.search(r"Could not override '([^'@]+)'", str(error))
    if found is None:
        return None
    key = found.group(1).replace("/", ".")
    parent, _, name = key.rpartition(".")
    node = _node(parent, arguments)
    if node is None:
        return hydra_message(str(error))
    keys = _keys(node, parent)
    if name in keys:
        if OmegaConf.is_interpolation(node, name) or not isinstance(node.get(name), DictConfig):
            return hydra_message(str(error))
        # The key is there, but no group of the defaults list: a saved config is overridden key by key.
        return (
            f"{key!r} is no group of this config, so that it cannot be exchanged as a whole; "
            f"its keys can be changed ({key}.NAME=VALUE)."
        )
    place = repr(parent) if parent else "the config"
    value = next((a.partition("=")[2] for a in arguments if a.partition("=")[0] == key), "")
    more = ", ..." if len(keys) > SHOWN else ""
    hint = nearest(name, keys) or _other_options(parent, name)
    lines = [
        f"no key {name!r} in {place} (override {key}={value}).{hint}",
        f"Keys there: {', '.join(keys[:SHOWN])}{more}",
    ]
    return "\n  ".join(lines)


def _other_options(group: str, name: str) -> str:
    """Which options of a config group have the key: `` It belongs to core=mamba.``"""
    pattern = re.compile(rf"^{re.escape(name)}:", re.MULTILINE)
    folder = config_dir() / group if group else config_dir() / "none"
    found = [
        f"{group}={file.stem}" for file in sorted(folder.glob("*.yaml")) if pattern.search(file.read_text())
    ]
    return f" It belongs to {', '.join(found)}." if found else ""


def _keys(node: DictConfig, parent: str) -> list[str]:
    """The keys that an override may name in a node; at the top the groups as well."""
    keys = [str(key) for key in node if not str(key).startswith("_")]
    if not parent:
        keys += [p.name for p in config_dir().iterdir() if p.is_dir() and p.name not in (*keys, *OTHER)]
    return keys


def _node(parent: str, arguments: Sequence[str]) -> DictConfig | None:
    """The node `parent` of the config that the arguments ask for without the bad ones."""
    from hydra import compose, initialize_config_dir

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-name", "-cn", default=PRIMARY.removesuffix(".yaml"))
    parser.add_argument("--config-dir", "-cd")
    options, rest = parser.parse_known_args(list(arguments))
    # Group choices alone decide which keys there are; of a sweep's choices the first stands for all.
    groups = [re.sub(r"^(\w+=[^,{\[(]*),.*", r"\1", a) for a in rest if re.match(r"^[a-z/]+=[\w,]+$", a)]
    # Hydra looks for the primary config in one folder alone, for the groups in the others too.
    home, other = config_dir(), None
    if options.config_dir:
        home, other = Path(options.config_dir).resolve(), home
        if not (home / f"{options.config_name}.yaml").is_file():
            home, other = other, home
        groups.append(f"hydra.searchpath=[file://{other}]")
    while True:
        try:
            with initialize_config_dir(str(home), version_base="1.3"):
                config = compose(options.config_name, overrides=groups)
            break
        except Exception as error:
            found = re.search(r"Could not override '([^'@]+)'", str(error))
            bad = [g for g in groups if found and g.startswith(f"{found.group(1)}=")]
            if not bad:
                return None
            groups.remove(bad[0])
    node = OmegaConf.select(config, parent) if parent else config
    return node if isinstance(node, DictConfig) else None
