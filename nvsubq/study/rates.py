"""The learning rate of each core: the best of the same few values for every core, on the same cell."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nvsubq.study.runs import Folder, Planned

SCORE = "val/mse"


@dataclass
class Choice:
    """What was seen of a core.

    Args:
        core: which.
        scores: rate -> error on validation; infinite where the run failed, absent where it is not done.
        rate: the chosen one; None while a run is missing, or where all failed.
        reason: why there is none.
    """

    core: str
    scores: dict[float, float] = field(default_factory=dict)
    rate: float | None = None
    reason: str = ""


def choose(planned: Planned, folder: Folder, core: str) -> Choice:
    """The learning rate of a core by the runs that are done."""
    runs = planned.choosing(core)
    if not runs:
        return Choice(core, rate=planned.study.rates[0])
    found = Choice(core)
    for run in runs:
        if folder.done(run):
            value = folder.figures(run)["metrics"].get(SCORE)
            found.scores[run.rate] = math.inf if value is None else float(value)
        elif folder.failure(run) is not None:
            found.scores[run.rate] = math.inf
    if len(found.scores) < len(runs):
        found.reason = "the learning rate is not chosen yet"
        return found
    best = min(found.scores, key=lambda rate: found.scores[rate])
    if math.isinf(found.scores[best]):
        found.reason = "it failed with every learning rate"
        if any(folder.done(run) for run in runs):
            found.reason = f"no run has {SCORE}: `steps` must reach the end of an epoch"
    else:
        found.rate = best
    return found
