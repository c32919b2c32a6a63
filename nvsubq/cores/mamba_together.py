"""Several Mamba cores in one walk through fewer and larger steps: over the same cells, or side by side."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nvsubq.ops.mamba_shares import mamba_shares
from nvsubq.ops.mamba_walks import mamba_walks
from nvsubq.ops.mamba_weights import MambaWeights


class MambaTogether:
    """What a Mamba core can do with others of its kind; each method gives None where it cannot."""

    discretization: str | None
    backend: str | None

    def weights_together(self) -> MambaWeights | None:
        """The weights if they say all that `forward` does: no hook, and no other module in some place."""
        raise NotImplementedError

    def walk_with(
        self, other: nn.Module, hidden_states: Tensor, order: Tensor | None, reverse: tuple[bool, bool]
    ) -> Tensor | None:
        """Run this core and another over the same cells and add them up.

        Args:
            other: the second core.
            hidden_states: input `[B, L, C]`.
            order: `[L]`, the cells in the order of both walks.
            reverse: for each core, whether it walks from the end.

        Returns:
            the sum `[B, L, C]`, or None where it is to be made of two calls: on another device than CUDA,
            with hooks or other modules in some place, and where no compiled kernels serve it.
        """
        if not hidden_states.is_cuda:  # on a CPU there is nothing to gain: no launches, and caches are small
            return None
        weights = _weights_of_like((self, other))
        if weights is None:
            return None
        return mamba_walks(
            hidden_states,
            (weights[0], weights[1]),
            order=order,
            reverse=reverse,
            discretization=self.discretization,  # type: ignore[arg-type]
            backend=self.backend,
        )

    def walk_apart(
        self,
        others: Sequence[nn.Module],
        hidden_states: Tensor,
        orders: Sequence[Tensor | None],
        reverse: Sequence[bool],
    ) -> Tensor | None:
        """Run this core and others, each over its share of the channels.

        Args:
            others: the cores of the shares behind the first.
            hidden_states: input of all cores, side by side, `[B, L, S C]`.
            orders: for each core the cells in the order of its walk, `[L]`, or None.
            reverse: for each core, whether it walks from the end.

        Returns:
            `[B, L, S C]`, or None where it is to be made of one call for each: on another device than a CPU,
            with hooks or other modules in some place, and where no compiled kernels serve it.
        """
        if hidden_states.device.type != "cpu":  # what it saves, waiting for threads, is a CPU's
            return None
        weights = _weights_of_like((self, *others))
        if weights is None:
            return None
        return mamba_shares(
            hidden_states,
            weights,
            orders=orders,
            reverse=reverse,
            discretization=self.discretization,  # type: ignore[arg-type]
            backend=self.backend,
        )


def _weights_of_like(cores: Sequence[object]) -> list[MambaWeights] | None:
    """The weights of cores that can walk together, of one discretization and one backend."""
    hows, found = set(), []
    for core in cores:
        if not isinstance(core, MambaTogether) or (weights := core.weights_together()) is None:
            return None
        hows.add((core.discretization, core.backend))
        found.append(weights)
    return found if len(hows) == 1 else None
