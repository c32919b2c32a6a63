"""One implementation of one core at one size, in a process of its own, driven by lines on standard input.

A fresh process is what makes the peak of its memory mean something; it also keeps a package that hangs,
prints or dies from harming the others. The parent sends a word a line (`first`, `forward`, `both` or
`products`) and gets a JSON object for each.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvsubq.bench.cpu import cases, peers


def main(given: str) -> int:
    """Answers until standard input ends.

    Args:
        given: JSON with `core`, `size`, `implementation`, `threads` and `outputs`, a file that it writes.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a package prints is no answer
        try:
            for answer in _answers(json.loads(given)):
                answers.write(json.dumps(answer) + "\n")
                answers.flush()
        except Exception as error:
            said = (
                str(error) if isinstance(error, ModuleNotFoundError) else f"{type(error).__name__}: {error}"
            )
            answers.write(json.dumps({"problem": said}) + "\n")
            return 1
    return 0


def _answers(asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(asked["threads"])
    bench = Bench(asked["core"], cases.Size(*asked["size"]), asked["implementation"])
    yield {"ready": True}
    for line in sys.stdin:
        word = line.strip()
        yield bench.first(asked["outputs"]) if word == "first" else bench.time(word)


class Bench:
    """A block and its input.

    Args:
        core: key of `cases.CORES`.
        size: of the input.
        implementation: `cases.OURS`, `cases.PORTABLE` or one of `cases.PEERS`.
    """

    def __init__(self, core: str, size: cases.Size, implementation: str) -> None:
        ours = cases.build(core, size, portable=implementation == cases.PORTABLE)
        self.block = ours if implementation not in cases.PEERS else peers.build(implementation, ours)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(*size, generator=generator).requires_grad_()
        self.cotangent = torch.randn(*size, generator=generator)
        self.products = matrix_products(ours, size)
        # Libraries load and threads start at a first call; they are no part of the block.
        some = slice(0, min(16, size.length))
        self._both(self.x[:, some].detach().requires_grad_(), self.cotangent[:, some])

    def first(self, outputs: str) -> dict[str, Any]:
        """The first forward and backward: seconds, and peak memory beyond what was held before.

        Args:
            outputs: file for the output and the gradient of the input.
        """
        before = _start_of_peak()
        start = time.perf_counter()
        found = self._both(self.x, self.cotangent)
        seconds = time.perf_counter() - start
        peak = _peak()
        torch.save(found, outputs)
        return {"seconds": seconds, "memory": None if peak is None or before is None else peak - before}

    def time(self, what: str) -> dict[str, Any]:
        """Seconds of `forward` (without grad), `both` (forward and all gradients) or `products`."""
        run: Callable[[], Any] = {
            "forward": self._forward,
            "both": lambda: self._both(self.x, self.cotangent),
            "products": self._products,
        }[what]
        start = time.perf_counter()
        run()
        return {"seconds": time.perf_counter() - start}

    @torch.no_grad()
    def _forward(self) -> None:
        self.block(self.x)

    def _both(self, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        y = self.block(x)
        wanted = [x, *self.block.parameters()]
        gradients = torch.autograd.grad(y, wanted, cotangent, allow_unused=True)
        return y.detach(), gradients[0]

    @torch.no_grad()
    def _products(self) -> None:
        for given, weight in self.products:
            F.linear(given, weight)


def matrix_products(core: nn.Module, size: cases.Size) -> list[tuple[Tensor, Tensor]]:
    """Input and weight of each matrix product in a core's forward: every projection sees every cell.

    Args:
        core: one of ours.
        size: of its input.

    Example:
        >>> size = cases.Size(2, 3, 8)
        >>> [tuple(weight.shape) for _, weight in matrix_products(cases.build("mamba", size), size)]
        [(32, 8), (33, 16), (16, 1), (8, 16)]
    """
    weights = [module.weight for module in core.modules() if isinstance(module, nn.Linear)]
    if type(core).__name__ == "S5":  # complex matrices on real pairs
        into, out = core.B, core.C
        weights += [into.movedim(-1, 0).flatten(0, 1), out.flatten(1)]  # type: ignore[union-attr, operator]
    return [
        (torch.randn(size.batch, size.length, weight.shape[1]), weight.detach().contiguous())
        for weight in weights
    ]


def _start_of_peak() -> int | None:
    """Bytes held now; where Linux allows it the process's peak is set back to that."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return _peak()
    return _status("VmRSS") or _peak()


def _peak() -> int | None:
    from nvsubq.training.system import peak_memory

    return peak_memory()


def _status(field: str) -> int | None:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
