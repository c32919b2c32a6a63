"""Figures made from times, and how they are written."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile.

    Example:
        >>> quartiles([5.0, 1.0, 2.0, 4.0, 3.0])
        (2.0, 3.0, 4.0)
    """
    if len(times) < 2:
        return times[0], times[0], times[0]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, middle, high


def ratio(times: Sequence[float], ours: Sequence[float]) -> float | None:
    """Median over the rounds that both have of how many times as long one took; None without any.

    Example:
        >>> ratio([4.0, 6.0, 9.0], [2.0, 2.0])
        2.5
    """
    pairs = list(zip(times, ours, strict=False))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def digits(value: float) -> str:
    """Three digits, or more before the point.

    Example:
        >>> [digits(value) for value in (1.234, 45.67, 1234.56)]
        ['1.23', '45.7', '1235']
    """
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def mebibytes(count: int | None) -> str:
    """Bytes in MiB; nothing for None.

    Example:
        >>> mebibytes(3 * 2**30)
        '3,072 MiB'
    """
    return "" if count is None else f"{count / 2**20:,.0f} MiB"


def short(problem: str) -> str:
    """The word that stands in a table for a problem, whose whole text stands below it.

    Example:
        >>> short("not installed: pip install mambapy"), short("RuntimeError: no kernel")
        ('not installed', 'failed')
    """
    for kind in ("skipped", "disagrees", "not installed", "not there", "out of memory"):
        if problem.startswith(kind):
            return kind
    return "failed"
