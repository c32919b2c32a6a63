"""Which keys of a config say nothing of what is learned: where a run lies, how it is watched and shown."""

from __future__ import annotations

NO_CONTENT = (
    "resume", "paths", "threads", "baselines", "report", "callbacks", "logger", "metrics_csv",
    "data.num_workers",
)  # fmt: skip
"""With all below them. A study's runs are named by a hash of the other keys: a change here orphans those."""


def is_below(key: str, keys: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of `keys` or below one.

    Example:
        >>> is_below("logger.csv.name", ("logger",)), is_below("loggers", ("logger",))
        (True, False)
    """
    return any(key == one or key.startswith(f"{one}.") for one in keys)
