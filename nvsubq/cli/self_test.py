"""Small runs of every op and core, for `nvsubq doctor`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""Largest error allowed, relative to the largest value: fp32 over 37 cells, summed in another order."""

B, L, D, N, H, K = 2, 37, 8, 4, 2, 4


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _cases() -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    """For each op its tensors, which get gradients, and its other arguments."""
    rates = torch.arange(1.0, N + 1).repeat(D, 1)
    return {
        "selective_scan": (
            {
                "u": _draw(B, L, D, seed=0),
                "delta": _draw(B, L, D, seed=1),
                "A": -rates,
                "B": _draw(B, L, N, seed=2),
                "C": _draw(B, L, N, seed=3),
                "D": _draw(D, seed=4),
                "z": _draw(B, L, D, seed=5),
                "delta_bias": _draw(D, seed=6),
            },
            {"delta_softplus": True},
        ),
        "linear_scan": ({"a": _draw(B, L, D, seed=0).sigmoid(), "b": _draw(B, L, D, seed=1)}, {}),
        "rglru_scan": (
            {
                "x": _draw(B, L, D, seed=0),
                "r": _draw(B, L, D, seed=1),
                "i": _draw(B, L, D, seed=2),
                "a_log": _draw(D, seed=3),
            },
            {},
        ),
        "ssd_scan": (
            {
                "x": _draw(B, L, H, D, seed=0),
                "dt": _draw(B, L, H, seed=1),
                "A": -torch.arange(1.0, H + 1),
                "B": _draw(B, L, 1, N, seed=2),
                "C": _draw(B, L, 1, N, seed=3),
                "D": _draw(H, seed=4),
            },
            {"dt_softplus": True},
        ),
        "causal_conv1d": (
            {"x": _draw(B, L, D, seed=0), "weight": _draw(D, K, seed=1), "bias": _draw(D, seed=2)},
            {"activation": "silu"},
        ),
    }


OPS = ("selective_scan", "linear_scan", "rglru_scan", "ssd_scan", "causal_conv1d")


def op_error(op: str, backend: str, device: str) -> str:
    """Compares an op's output and gradients with those of the reference.

    Returns:
        Both errors, relative to the largest value of the reference.

    Raises:
        ArithmeticError: one is above the tolerance.

    Example:
        >>> op_error("causal_conv1d", "reference", "cpu")
        '0.0e+00 / 0.0e+00'
    """
    tensors, options = _cases()[op]
    wanted, own = (_run(op, tensors, options, name, device) for name in ("reference", backend))
    errors = [_relative(a, b) for a, b in zip(own, wanted, strict=True)]
    output, gradient = errors[0], max(errors[1:])
    text = f"{output:.1e} / {gradient:.1e}"
    if not max(output, gradient) <= TOLERANCE:  # not a number is too large as well
        raise ArithmeticError(f"{text} is above {TOLERANCE:.0e}")
    return text


def _run(
    op: str, tensors: dict[str, Tensor], options: dict[str, Any], backend: str, device: str
) -> list[Tensor]:
    """The output and the gradient of each tensor, on the CPU."""
    from nvsubq import ops

    inputs = {name: value.to(device, copy=True).requires_grad_() for name, value in tensors.items()}
    output = getattr(ops, op)(**inputs, **options, backend=backend)
    weights = _draw(*output.shape, seed=9).to(device)
    gradients = torch.autograd.grad((output * weights).sum(), list(inputs.values()))
    return [value.detach().cpu() for value in (output, *gradients)]


def _relative(own: Tensor, wanted: Tensor) -> float:
    return float((own - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))


def core_lacks(config: Path) -> str | None:
    """Why a core of another package cannot run here, or None; ours run everywhere.

    Args:
        config: the file, such as ``configs/core/mamba_ssm_mamba.yaml``.
    """
    package = _package(config)
    if package == "nvsubq":
        return None
    if importlib.util.find_spec(package) is None:
        return f"no package {package!r} is installed"
    return None if torch.cuda.is_available() else f"{package} runs on CUDA devices alone"


def _package(config: Path) -> str:
    from nvsubq.lazy_config import from_yaml

    return str(from_yaml(config)._target_).split(".")[0]


def core_runs(config: Path) -> str:
    """Builds a core from its config and runs it forward and backward.

    Args:
        config: the file, such as ``configs/core/mamba.yaml``.

    Returns:
        Its number of parameters, in words.

    Raises:
        ArithmeticError: a value is not finite, or a parameter has no gradient.
    """
    from nvsubq.lazy_config import from_yaml, instantiate

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        core = instantiate(from_yaml(config))(d_model=64)
    device = "cpu" if _package(config) == "nvsubq" else "cuda"
    core, x = core.to(device), _draw(2, 32, 64, seed=0).to(device).requires_grad_()
    y = core(x)
    if y.shape != x.shape:
        raise ArithmeticError(f"the output has shape {tuple(y.shape)}, not {tuple(x.shape)}")
    y.square().mean().backward()
    for label, value in (("output", y), ("input's gradient", x.grad)):
        if value is None or not value.isfinite().all():
            raise ArithmeticError(f"the {label} is not finite")
    for label, parameter in core.named_parameters():
        if parameter.grad is None or not parameter.grad.isfinite().all():
            raise ArithmeticError(f"the gradient of `{label}` is missing or not finite")
    return f"{sum(p.numel() for p in core.parameters()):,} parameters"
