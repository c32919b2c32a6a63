"""Deterministic splits into train, val and test."""

from __future__ import annotations

import numpy as np

from nvsubq.data.sampling import generator

SPLITS = ("train", "val", "test")


def stratified_split(
    labels: np.ndarray, seed: int, *, val: float, test: float, least: int = 1
) -> dict[str, np.ndarray]:
    """Indices of each split, every class divided in the same proportions.

    Args:
        labels: `[N]` integers.
        seed: the split is a function of it and of `labels`.
        val, test: shares of each class; rounded, at least `least` items each, and train gets the rest.

    Example:
        >>> split = stratified_split(np.repeat([0, 1], 10), 0, val=0.1, test=0.2)
        >>> {name: len(part) for name, part in split.items()}
        {'train': 14, 'val': 2, 'test': 4}
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[generator(seed, "split", int(label)).permutation(len(members))]
        n_val, n_test = (max(least, round(share * len(members))) for share in (val, test))
        parts["val"].append(members[:n_val])
        parts["test"].append(members[n_val : n_val + n_test])
        parts["train"].append(members[n_val + n_test :])
    return {name: np.sort(np.concatenate(chunks)) for name, chunks in parts.items()}
