"""How a public one-step function reaches its backend: as in `call.py`, but autograd records nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nvsubq.ops import dispatch
from nvsubq.ops.call import Op, Output, Tensors


class Update(Op):
    """One cell of a scan: `state`, which changes in place, then the scan's tensors without `initial_state`.

    Args:
        scan: the op of many cells.
        name: of the public function of one cell.
        options: those of the scan's options that it takes.
        check: as in `Op`.
        over_cells: names of tensors that have an axis of cells in the scan, with their ranks here.
        fixed: the scan's other options.
    """

    def __init__(
        self,
        scan: Op,
        name: str,
        options: tuple[str, ...],
        check: Callable[[Mapping[str, Any]], object],
        over_cells: Mapping[str, tuple[int, ...]],
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        tensors = ("state", *(t for t in scan.tensors if t != "initial_state"))
        kinds = {option: scan.options[option] for option in options}
        super().__init__(name, tensors, 1 + scan.required, kinds, check, self._outputs)
        self.scan, self.over_cells, self.fixed = scan, over_cells, fixed or {}

    def advance(self, tensors: Tensors, options: tuple[Any, ...], backend: str | None) -> Tensor:
        """Serve a call of the public function.

        Raises:
            ValueError: an argument that does not fit.
            RuntimeError: the backend named cannot serve the call.
        """
        if torch.compiler.is_compiling():  # an update is no operator: what is traced is the portable function
            from nvsubq.ops import portable

            traced: Tensor = getattr(portable, self.name)(**self.named(tensors, options))
            return traced
        if torch._C._len_torch_dispatch_stack() > 0:
            call: Any = self._prepare(tensors, options, None, None, False, backend)
        else:
            call = self.prepared(tensors, options, None, None, False, backend)
        return call(tensors)

    def as_scan(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the scan of this one cell, by name; its tensors are views."""
        given = {**arguments, **self.fixed, "initial_state": arguments["state"]}
        del given["state"]
        for name, ranks in self.over_cells.items():
            if given[name] is not None and given[name].dim() in ranks:
                given[name] = given[name].unsqueeze(1)
        return given

    def _outputs(self, arguments: Mapping[str, Any]) -> tuple[Output, Output]:
        y, _ = self.scan.outputs(self.as_scan(arguments))
        state = arguments["state"]
        return Output((y.shape[0], *y.shape[2:]), y.dtype), Output(state.shape, state.dtype)

    def _prepare(
        self, tensors: Tensors, options: tuple[Any, ...], seq_idx: Any, order: Any, reverse: Any, backend: Any
    ) -> Any:
        del seq_idx, order, reverse
        arguments = self.named(tensors, options)
        self.check(arguments)
        device = arguments["state"].device
        served = getattr(dispatch.resolve(self.name, backend, device, arguments), self.name)
        prepare = getattr(served, "prepare", None)
        return PlainUpdate(self, served, options) if prepare is None else prepare(self, arguments)


@dataclass(frozen=True)
class PlainUpdate:
    """An update of a backend that is written in PyTorch: a function with the public signature."""

    update: Update
    function: Callable[..., Tensor]
    options: tuple[Any, ...]

    def __call__(self, tensors: Tensors) -> Tensor:
        with torch.no_grad():
            return self.function(**self.update.named(tensors, self.options))
