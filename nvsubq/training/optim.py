"""AdamW with decay groups, and one learning-rate schedule: linear warm-up, then a cosine or a constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SCHEDULES = ("cosine", "constant")


def ranks_of(model: nn.Module) -> dict[str, int]:
    """The number of axes of each parameter, by name: where weights are sharded they are flat."""
    return {_plain(name): p.ndim for name, p in model.named_parameters()}


def _plain(name: str) -> str:
    """The name of a parameter without the modules that FSDP puts around others."""
    return name.replace("_fsdp_wrapped_module.", "")


def parameter_groups(
    model: nn.Module, weight_decay: float, ranks: dict[str, int] | None = None
) -> list[dict[str, Any]]:
    """Splits parameters into one group that decays and one that does not.

    Vectors and scalars (biases, norms, per-channel rates) never decay, nor does any parameter whose full name
    is in ``model.no_weight_decay()``. Frozen parameters are left out.

    Args:
        model: a module; its method ``no_weight_decay() -> set[str]`` is honoured where it has one.
        weight_decay: the decay of the first group.
        ranks: axes of the parameters (`ranks_of`), from before they were sharded.

    Raises:
        ValueError: ``no_weight_decay()`` names a parameter that the model does not have.

    Example:
        >>> groups = parameter_groups(nn.Linear(3, 4), 0.1)
        >>> [(len(g["params"]), g["weight_decay"]) for g in groups]
        [(1, 0.1), (1, 0.0)]
    """
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    named = dict(model.named_parameters())
    # A parameter shared between modules goes by its first name alone, so both lists are consulted.
    if unknown := sorted(exempt - {name for name, _ in model.named_parameters(remove_duplicate=False)}):
        raise ValueError(
            f"`no_weight_decay()` names {unknown[0]!r}, which is no parameter of {type(model).__name__}."
        )
    trainable = {name: p for name, p in named.items() if p.requires_grad}
    ranks = ranks_of(model) | (ranks or {})
    decays = [p for name, p in trainable.items() if ranks[_plain(name)] >= 2 and name not in exempt]
    rests = [p for name, p in trainable.items() if ranks[_plain(name)] < 2 or name in exempt]
    groups = [{"params": decays, "weight_decay": weight_decay}, {"params": rests, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def schedule(
    kind: str,
    total_steps: float,
    warmup: float,
    final: float,
    clock: Callable[[], float] | None = None,
) -> Callable[[int], float]:
    """The factor on the learning rate at each optimizer step, counted from 0.

    Args:
        kind: "cosine" or "constant".
        total_steps: optimizer steps of the whole training; infinite where only a clock ends it.
        warmup: fraction of them over which the factor rises linearly to 1.
        final: the factor at the last step of a cosine.
        clock: how much of the training's time is over, in [0, 1]. Warm-up and cosine go by the steps or by
            the clock, whichever is further on.

    Example:
        >>> factor = schedule("cosine", 100, warmup=0.1, final=0.0)
        >>> factor(0), factor(9), round(factor(99), 4)
        (0.1, 1.0, 0.0)
    """
    if not math.isfinite(total_steps) and clock is None:
        total_steps = 1
    by_steps = math.isfinite(total_steps)
    rise = max(1, round(warmup * total_steps)) if warmup and by_steps else 0

    def factor(step: int) -> float:
        time = clock() if clock is not None else 0.0
        # The larger is the one that is further on: in the warm-up, then in the cosine.
        risen = [(step + 1) / rise if rise else 1.0] if by_steps else []
        risen += [time / warmup if warmup else 1.0] if clock is not None else []
        if max(risen) < 1.0:
            return max(risen)
        if kind == "constant":
            return 1.0
        over = (step - rise + 1) / max(1, total_steps - rise) if by_steps else 0.0
        progress = min(1.0, max(over, (time - warmup) / max(1.0 - warmup, 1e-9)))
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    fused: bool = True,
    ranks: dict[str, int] | None = None,
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; `fused` is its fast form, taken where every parameter is real.

    Raises:
        ValueError: the model has no parameter to train.
    """
    groups = parameter_groups(model, weight_decay, ranks)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no parameter to train.")
    real = all(p.is_floating_point() for group in groups for p in group["params"])
    # None, not False: torch then picks the grouped form on a GPU.
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True if fused and real else None)
