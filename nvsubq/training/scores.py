"""How scores are read: which way is better, and how they are written."""

from __future__ import annotations

ERRORS = ("loss", "rmse", "mse")
"""Scores of which less is better."""

SMALL = 1e-3
"""Below it four decimals say too little."""


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
    """A mean and a deviation, the deviation in the mean's own form.

    Example:
        >>> spread_text(0.95, 0.0004), spread_text(2.13e-4, 1.7e-5)
        ('0.9500 ± 0.0004', '2.13e-4 ± 1.7e-5')
    """
    small = 0 < abs(mean) < SMALL
    return f"{score_text(mean)} ± {_scientific(deviation, 1) if small else f'{deviation:.4f}'}"


def _scientific(value: float, digits: int) -> str:
    """
    Example:
        >>> _scientific(2.13e-4, 2), _scientific(1.0, 1)
        ('2.13e-4', '1.0')
    """
    mantissa, power = f"{value:.{digits}e}".split("e")
    return f"{mantissa}e{int(power)}" if int(power) else mantissa
