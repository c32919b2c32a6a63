"""`generate`: a model goes on from a prompt, cell by cell, with its own outputs as inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nvsubq.cores.base import check_timesteps
from nvsubq.cores.streaming import Streamed, tensors_of

Head = Callable[[Tensor], Tensor]


def generate(
    model: nn.Module,
    prompt: Tensor,
    steps: int,
    *,
    head: Head | None = None,
    integration_timesteps: Tensor | None = None,
    lengths: Tensor | None = None,
    cuda_graph: bool | None = None,
) -> Tensor:
    """Go on from a prompt: the model's output at a cell, through `head`, is its input at the next.

    The prompt is taken at once where `forward` takes an `inference_cache`; then there is one `step` for each
    cell. Every call makes caches of its own, so that two calls do not know of each other. Nothing is recorded
    for autograd. The model runs as it is: call `model.eval()` where it has dropout.

    On a GPU the step is captured in a CUDA graph and replayed, which spares the host's time for each kernel.
    That asks that a step reads and writes nothing but tensors at fixed addresses. The recurrent cores do, and
    say so by `capturable = True`, which a model of yours may say as well. `Attention` does not (it looks at
    one more key in each step): where it is in the model, nothing is captured.

    Args:
        model: a core, or any module with `allocate_inference_cache(batch_size, max_seqlen)` and
            `step(x, cache) -> (y, cache)`, or an `nn.Sequential` of these, of `nn.Linear`, norms and
            activations.
        prompt: `[B, L, C]`, L at least 1.
        steps: cells to generate.
        head: maps the model's output `[B, 1, C']` to the next input `[B, 1, C]`, which is also what is
            returned: a projection, a clamp, a draw. None: the output itself.
        integration_timesteps: `[B, L + steps - 1]`, for models that take them: of the prompt's cells, then of
            the generated ones, without the last, which no step reads.
        lengths: `[B]` in 1 .. L: the prompt's rows end there, and each goes on from its own end.
        cuda_graph: None captures on a GPU where the model is capturable; True insists; False never does.

    Returns:
        the generated cells `[B, steps, C]`, without the prompt, in the prompt's dtype.

    Raises:
        TypeError: a model that can't be run one cell at a time.
        ValueError: a prompt that is not `[B, L, C]` or empty, fewer than 0 steps, `lengths` or timesteps of
            another shape, a head that makes no input of the model, `cuda_graph=True` off the GPU or for a
            step that can't be replayed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nvsubq import generate
        >>> from nvsubq.cores import Mamba
        >>> model = nn.Sequential(nn.Linear(3, 8), Mamba(8), nn.LayerNorm(8), nn.Linear(8, 3))
        >>> generate(model, torch.randn(2, 5, 3), steps=4).shape
        torch.Size([2, 4, 3])
        >>> generate(Mamba(8), torch.randn(2, 5, 8), 4, head=lambda y: y.clamp(-1, 1)).shape
        torch.Size([2, 4, 8])
    """
    if prompt.dim() != 3 or prompt.shape[1] < 1:
        raise ValueError(
            f"`prompt` must have shape [B, L, C] with L of at least 1, got {list(prompt.shape)}."
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"`steps` (={steps!r}) must be an int of at least 0.")
    batch, length, _ = prompt.shape
    streamed = Streamed(model)
    graphed = _is_graphed(streamed, prompt, cuda_graph)
    if integration_timesteps is not None:
        integration_timesteps = check_timesteps(integration_timesteps, batch, max(length + steps - 1, length))
    last = _last_cells(prompt, lengths)
    with torch.no_grad():
        generated = prompt.new_empty(batch, steps, prompt.shape[2])
        if steps == 0:
            return generated
        caches = streamed.allocate(batch, length + steps)
        timed = None if integration_timesteps is None else integration_timesteps[:, :length]
        y = streamed.prefill(prompt, caches, timed, lengths)
        cell = _Cell(streamed, caches, head, prompt, integration_timesteps is not None)
        generated[:, :1] = cell.feed(y[torch.arange(batch, device=y.device), last, None])
        advance = cell.captured() if graphed and steps > 2 else cell.advance
        for k in range(1, steps):
            if integration_timesteps is not None:
                cell.set_timesteps(integration_timesteps[:, length + k - 1 : length + k])
            advance()
            generated[:, k : k + 1] = cell.x
    return generated


class _Cell:
    """The cell that goes round: `x` `[B, 1, C]` at a fixed address, from which `advance` makes the next."""

    def __init__(
        self, streamed: Streamed, caches: list[Any], head: Head | None, prompt: Tensor, timed: bool
    ) -> None:
        self.streamed, self.caches, self.head = streamed, caches, head
        self.x = torch.empty_like(prompt[:, :1])
        self.timesteps = torch.empty_like(prompt[:, :1, 0]) if timed else None

    def set_timesteps(self, timesteps: Tensor) -> None:
        """Take those `[B, 1]` of the next step."""
        assert self.timesteps is not None
        self.timesteps.copy_(timesteps)

    def feed(self, y: Tensor) -> Tensor:
        """Make the next input of an output `[B, 1, C']`."""
        following = y if self.head is None else self.head(y)
        if not isinstance(following, Tensor) or following.shape != self.x.shape:
            shown = list(following.shape) if isinstance(following, Tensor) else type(following).__name__
            made = "`model` makes" if self.head is None else "`head` makes"
            raise ValueError(
                f"{made} {shown} of a cell, but the next input must have shape {list(self.x.shape)}: "
                "give a `head` that maps an output to an input."
            )
        return self.x.copy_(following)

    def advance(self) -> None:
        """Run one step."""
        self.feed(self.streamed.step(self.x, self.caches, self.timesteps))

    def captured(self) -> Callable[[], None]:
        """Capture `advance` in a CUDA graph, and return what replays it; cell and caches stay as they are.

        Raises:
            ValueError: a step that puts new tensors into its cache.
        """
        device = self.x.device
        with torch.cuda.device(device), _no_autocast_cache():
            held = [self.x, *tensors_of(self.caches)]
            before, numbers = [tensor.clone() for tensor in held], torch.cuda.get_rng_state(device)
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):  # what is made on first use is made before the capture
                for _ in range(2):
                    self.advance()
            here.wait_stream(aside)
            if any(a is not b for a, b in zip(held[1:], tensors_of(self.caches), strict=True)):
                raise ValueError(
                    "`model` puts new tensors into its cache at each step, which a graph can't follow: "
                    "let it change them in place, or give `cuda_graph=False`."
                )
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.advance()
            for tensor, value in zip(held, before, strict=True):
                tensor.copy_(value)
            torch.cuda.set_rng_state(numbers, device)
        return graph.replay


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """A graph must not use a cast weight that somebody else frees, nor leave one behind."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def _is_graphed(streamed: Streamed, prompt: Tensor, cuda_graph: bool | None) -> bool:
    if cuda_graph is None:
        return prompt.device.type == "cuda" and streamed.capturable is True
    if not cuda_graph:
        return False
    if prompt.device.type != "cuda":
        raise ValueError(f"`cuda_graph` (=True) needs a `prompt` on a GPU, this one is on {prompt.device}.")
    if streamed.capturable is False:
        raise ValueError(
            "`cuda_graph` (=True) can't capture a model with a layer that says `capturable = False`."
        )
    return True


def _last_cells(prompt: Tensor, lengths: Tensor | None) -> Tensor:
    """The last cell of each row of the prompt, `[B]`."""
    batch, length, _ = prompt.shape
    if lengths is None:
        return torch.full((batch,), length - 1, device=prompt.device)
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise ValueError(
            f"`lengths` (shape {list(lengths.shape)}, {lengths.dtype}) must be integers of shape [{batch}]."
        )
    if batch and not 1 <= int(lengths.min()) <= int(lengths.max()) <= length:
        raise ValueError(f"`lengths` (={lengths.tolist()}) must be in 1 .. L (={length}).")
    return lengths.to(prompt.device) - 1
