"""Mamba blocks of other packages with a given block's weights. Nothing is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nvsubq.bench.packages import version

if TYPE_CHECKING:
    from torch import nn

    from nvsubq.cores import Mamba


def build(name: str, ours: Mamba) -> nn.Module:
    """A peer's block with our weights, which maps `[B, L, C]` to `[B, L, C]`.

    Args:
        name: one of `nvsubq.bench.cpu.cases.PEERS`.
        ours: the block whose sizes and weights it gets.

    Raises:
        ModuleNotFoundError: the package is not installed.
        RuntimeError: its parameters have other names or shapes than they had.
    """
    if version(name) is None:
        raise ModuleNotFoundError(f"{name} is not installed: pip install {name}", name=name)
    return _BUILDERS[name](ours)


def _mambapy(ours: Mamba) -> nn.Module:
    from mambapy.mamba import MambaBlock, MambaConfig

    block = MambaBlock(MambaConfig(d_model=ours.d_model, n_layers=1, d_state=ours.d_state))
    block.load_state_dict(ours.state_dict())
    return block


def _lite_mamba(ours: Mamba) -> nn.Module:
    import lite_mamba

    block = lite_mamba.Mamba(ours.d_model, d_state=ours.d_state)
    found = block.load_state_dict(ours.state_dict(), strict=False)
    # Its branches share the first convolution's weights with `conv1d`; a single branch has no use for gates.
    alien = [key for key in found.missing_keys if not key.startswith(("conv_gates", "conv1d_layers.0"))]
    if found.unexpected_keys or alien:
        raise RuntimeError(f"lite-mamba names its parameters otherwise: {found.unexpected_keys + alien}.")
    return block


def _transformers(ours: Mamba) -> nn.Module:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = MambaConfig(hidden_size=ours.d_model, state_size=ours.d_state, num_hidden_layers=1)
    block = MambaMixer(config, layer_idx=0)  # without its CUDA kernels: its loop over time
    block.load_state_dict(ours.state_dict())
    return block


_BUILDERS: dict[str, Callable[[Mamba], nn.Module]] = {
    "mambapy": _mambapy,
    "lite-mamba": _lite_mamba,
    "transformers": _transformers,
}
