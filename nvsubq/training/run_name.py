"""The name of a run; imports nothing heavy, as it is looked at before Hydra makes a folder of it."""

from __future__ import annotations

import re
from typing import Any

from nvsubq.lazy_config import ConfigError


def check_name(name: Any) -> None:
    """The name is a folder below `paths.runs`.

    Raises:
        ConfigError: it is no plain file name.
    """
    plain = isinstance(name, str) and re.fullmatch(r"[^/\\\x00-\x1f]{1,100}", name) and name.strip(". ")
    if not plain:
        shown = repr(name) if len(str(name)) <= 100 else repr(str(name)[:100]) + "..."
        raise ConfigError(f"`name` (={shown}) must be a file name of 1 to 100 characters, without a path.")
