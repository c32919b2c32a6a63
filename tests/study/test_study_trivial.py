"""What is said of a cell beside trivial predictors is as often wrong by chance as it claims to be."""

from __future__ import annotations

import numpy as np
import pytest

from nvsubq.study.trivial import beside, gain, sure_from, verdict


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_no_gain_is_rarely_called_one(seeds):
    """Nearly all of the error is that over seeds, the case where few of them say least."""
    random, items, tries = np.random.default_rng(0), 200, 2000
    numbers = np.arange(items)
    found = []
    for _ in range(tries):
        base = 0.1 + 0.002 * random.standard_normal(items)
        noise = 0.01 * random.standard_normal((seeds, 1)) + 0.002 * random.standard_normal((seeds, items))
        better, error = gain(base, [(numbers, base - one) for one in noise])
        found.append(verdict(better / error, seeds))
    assert 0.01 < found.count("beats") / tries < 0.035  # 0.023, within four of its own standard errors
    assert 0.01 < found.count("worse") / tries < 0.035


def test_one_seed_has_no_verdict():
    assert sure_from(1) is None
    assert verdict(100.0, 1) == "one seed"
    assert verdict(None, 1) == ""


def test_the_best_is_by_the_error_on_the_items_of_the_runs():
    errors = {"a": np.array([9.0, 1.0, 1.0]), "b": np.array([0.0, 2.0, 2.0])}
    last = np.array([1, 2])
    found = beside(errors, [(last, np.array([0.5, 0.7])), (last, np.array([0.4, 0.4]))])
    assert list(found) == ["a", "b"]
    assert found["a"].error == 1.0
    assert found["b"].gain == pytest.approx(1.5)
    assert found["a"].sigmas > 0
