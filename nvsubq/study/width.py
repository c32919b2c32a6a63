"""The width at which a model has as many parameters as the budget allows, found by building and counting."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from nvsubq.lazy_config import ConfigError, instantiate

WIDEST = 2048


@dataclass(frozen=True)
class Width:
    """A width, the parameters of the model that has it, and the budget.

    Example:
        >>> f"{Width(32, 20600, 20000).deviation:+.1%}"
        '+3.0%'
    """

    width: int
    parameters: int
    budget: int

    @property
    def deviation(self) -> float:
        """How far the parameters are from the budget, as a fraction of it."""
        return self.parameters / self.budget - 1


def find_width(config: DictConfig, budget: int, step: int = 1) -> Width:
    """The multiple of `step` whose model is nearest to the budget; of two as near, the narrower one.

    Args:
        config: of a run; not changed. Every stage of the model gets the same width.
        budget: parameters of the whole model.
        step: what the width must be a multiple of.

    Raises:
        ConfigError: no width could be built; the last reason is named.
    """
    from nvsubq.training.build import build_datamodule, complete_model

    config = config.copy()
    complete_model(config, build_datamodule(config))
    best: Width | None = None
    reason: Exception | None = None
    for width in range(step, WIDEST + 1, step):
        try:
            count = parameters(config, width)
        except ValueError as error:  # a core that needs more than this, or another multiple
            reason = error
            continue
        if best is None or abs(count - budget) < abs(best.parameters - budget):
            best = Width(width, count, budget)
        if count > budget:
            break
    if best is None:
        raise ConfigError(
            f"no multiple of {step} up to {WIDEST} is a width that builds this model: {reason}", "model.dims"
        )
    return best


def parameters(config: DictConfig, width: int) -> int:
    """Parameters of the model of a completed config, whose widths are set."""
    config.model.dims = [width] * len(config.model.depths)
    return sum(p.numel() for p in instantiate(config.model).parameters())
