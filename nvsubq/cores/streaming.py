"""What can be run one cell at a time: cores, models with a core's three methods, and stacks of these."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Modules of torch that treat every cell alike, so that a step of them is a call.
CELLWISE: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Dropout,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Hardswish,
    nn.PReLU,
)


class Streamed:
    """One way to prefill, step and make caches, whatever the model is.

    Args:
        model: a module with `allocate_inference_cache(batch_size, max_seqlen)` and
            `step(x, cache) -> (y, cache)`, as every core is, or an `nn.Sequential`, nested or not, of these
            and of modules that treat every cell alike (`CELLWISE`: `nn.Linear`, norms, activations).

    Raises:
        TypeError: a module that is none of these; the message names it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = list(_layers(model, type(model).__name__))

    @property
    def capturable(self) -> bool | None:
        """Whether steps read and write nothing but tensors at fixed addresses; None where a layer is silent.

        False where any module inside says so, True where all layers with a step do.
        """
        if any(getattr(module, "capturable", None) is False for module in self.model.modules()):
            return False
        said = all(getattr(layer, "capturable", None) for layer in self.layers if is_streaming(layer))
        return True if said else None

    def allocate(self, batch: int, max_seqlen: int) -> list[Any]:
        """A cache for each layer, None for those without one."""
        return [
            layer.allocate_inference_cache(batch, max_seqlen) if is_streaming(layer) else None  # type: ignore[operator]
            for layer in self.layers
        ]

    def prefill(
        self, x: Tensor, caches: list[Any], timesteps: Tensor | None, lengths: Tensor | None
    ) -> Tensor:
        """Map a prompt `[B, L, C]` to `[B, L, C']`; the caches go to its end, or to each row's own.

        Layers whose `forward` takes an `inference_cache` take the prompt at once, others cell by cell.

        Raises:
            ValueError: `lengths` for a layer whose `forward` does not take them.
        """
        for number, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            given = {"integration_timesteps": timesteps, "lengths": lengths}
            if cache is None:
                x = layer(x)
                continue
            given = {name: value for name, value in given.items() if value is not None}
            taken = inspect.signature(layer.forward).parameters
            if "inference_cache" in taken and given.keys() <= taken.keys():
                x = layer(x, inference_cache=cache, **given)
            elif lengths is not None:
                raise ValueError(
                    f"`lengths` need a `forward` with `lengths` and `inference_cache`; that of "
                    f"{type(layer).__name__} has {', '.join(taken)}."
                )
            else:
                cells = []
                for k in range(x.shape[1]):
                    y, caches[number] = self._step_of(layer, x[:, k : k + 1], caches[number], timesteps, k)
                    cells.append(y)
                x = torch.cat(cells, 1)
        return x

    def step(self, x: Tensor, caches: list[Any], timesteps: Tensor | None = None) -> Tensor:
        """Map one cell `[B, 1, C]` to `[B, 1, C']`; `timesteps` are `[B, 1]`."""
        for number, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            if cache is None:
                x = layer(x)
            else:
                x, caches[number] = self._step_of(layer, x, cache, timesteps, 0)
        return x

    @staticmethod
    def _step_of(layer: Any, x: Tensor, cache: Any, timesteps: Tensor | None, k: int) -> tuple[Tensor, Any]:
        if timesteps is None:
            return layer.step(x, cache)
        return layer.step(x, cache, integration_timesteps=timesteps[:, k : k + 1])


def is_streaming(module: nn.Module) -> bool:
    """Whether a module has a step and makes caches."""
    return hasattr(module, "step") and hasattr(module, "allocate_inference_cache")


def _layers(module: nn.Module, name: str) -> Iterator[nn.Module]:
    module = getattr(module, "_orig_mod", module)  # of `torch.compile`, which compiles no step
    if is_streaming(module) or type(module) in CELLWISE:
        yield module
    elif type(module) is nn.Sequential:
        for key, child in module.named_children():
            yield from _layers(child, f"{name}.{key}")
    else:
        raise TypeError(
            f"{name} (a {type(module).__name__}) can't be run one cell at a time: it must have `step` and "
            "`allocate_inference_cache`, or be an nn.Sequential of modules that have, or treat every cell "
            "alike as nn.Linear and nn.LayerNorm do."
        )


def tensors_of(cache: Any) -> Iterator[Tensor]:
    """All tensors in nested dicts, lists and tuples, each once for every place that it has."""
    if isinstance(cache, Tensor):
        yield cache
    elif isinstance(cache, dict):
        for value in cache.values():
            yield from tensors_of(value)
    elif isinstance(cache, (list, tuple)):
        for value in cache:
            yield from tensors_of(value)
