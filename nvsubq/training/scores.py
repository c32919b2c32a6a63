"""How scores are read: which way is better, and how they are written."""

from __future__ import annotations

import math

ERRORS = ("loss", "rmse", "mse")
"""Scores of which less is better."""

SMALL = 1e-3
"""Below it four decimals say too little."""
ROUNDING = 1e-7
"""A deviation of so little of its mean is that of sums in single precision: the mean has no digits there."""


def lower_is_better(name: str) -> bool:
    """Whether less of a metric is better.

    Example:
        >>> lower_is_better("val/mse"), lower_is_better("test/accuracy")
        (True, False)
    """
    return name.rsplit("/", 1)[-1] in ERRORS


def score_text(value: float | None, absent: str = "") -> str:
    """A score with four decimals, or three digits where it is small.

    Example:
        >>> score_text(0.95), score_text(0.000213), score_text(0.0), score_text(None)
        ('0.9500', '2.13e-4', '0.0000', '')
    """
    if value is None:
        return absent
    return _scientific(value, 2) if 0 < abs(value) < SMALL else f"{value:.4f}"


def spread_text(mean: float, deviation: float) -> str:
    """A mean and a deviation: two digits of the deviation, and the mean to the same place.

    Example:
        >>> spread_text(0.95, 0.0004), spread_text(0.00631, 0.000012), spread_text(2.13e-4, 1.7e-5)
        ('0.95000 ± 0.00040', '0.006310 ± 0.000012', '2.13e-4 ± 1.7e-5')
        >>> spread_text(0.95, 0.0)
        '0.9500 ± 0'
    """
    if not math.isfinite(deviation) or deviation <= ROUNDING * abs(mean):
        return f"{score_text(mean)} ± {_scientific(deviation, 1) if deviation else '0'}"
    place = _exponent(deviation, 1) - 1  # of the deviation's second digit
    if 0 < abs(mean) < SMALL and deviation < SMALL:
        return f"{_scientific(mean, max(0, _exponent(mean, 0) - place))} ± {_scientific(deviation, 1)}"
    decimals = max(0, -place)
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"


def _exponent(value: float, digits: int) -> int:
    """The power of ten of a number that is rounded to so many digits behind the first."""
    return int(f"{value:.{digits}e}".split("e")[1])


def _scientific(value: float, digits: int) -> str:
    """
    Example:
        >>> _scientific(2.13e-4, 2), _scientific(1.0, 1)
        ('2.13e-4', '1.0')
    """
    mantissa, _, power = f"{value:.{digits}e}".partition("e")
    return f"{mantissa}e{int(power)}" if int(power or 0) else mantissa
