"""Stand-ins for mamba-ssm's and causal-conv1d's modules: their published call forms, our reference's values.

They hold a caller to the layouts, dtypes and strides that the real ones check, on the CPU.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops import reference

CHUNK = 2048
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _scan(u, delta, A, B, C, D, z, delta_bias, softplus) -> tuple[Tensor, Tensor]:
    def cells_first(t: Tensor | None) -> Tensor | None:
        return t if t is None or t.dim() < 3 else t.movedim(-1, 1)

    y, final = reference.selective_scan(
        *map(cells_first, (u, delta, A, B, C, D, z)),
        delta_bias=delta_bias,
        delta_softplus=softplus,
        return_final_state=True,
    )
    return y.movedim(1, -1), final


def _checked(u, delta, A, B, C, D, z, delta_bias) -> None:
    batch, width, length = u.shape
    assert u.dtype in FLOATS
    assert A.dtype == torch.float32
    assert A.shape[0] == width
    assert A.shape[1] <= 256
    groups = B.shape[1] if B.dim() >= 3 else 1
    for t in (delta, z):
        if t is not None:
            assert t.shape == u.shape
            assert t.dtype == u.dtype
            assert t.stride(-1) == 1 or length == 1
    assert u.stride(-1) == 1 or length == 1
    for t in (B, C):
        if t.dim() == 2:
            assert t.shape == A.shape
            assert t.dtype == torch.float32
        else:
            assert t.shape == (batch, groups, A.shape[1], length)
            assert t.dtype == u.dtype
            assert t.stride(-1) == 1 or length == 1
    for t in (D, delta_bias):
        if t is not None:
            assert t.shape == (width,)
            assert t.dtype == torch.float32
            assert t.is_contiguous()


def selective_scan_cuda() -> ModuleType:
    """The module that mamba-ssm builds: `fwd` with 9 arguments, `bwd` with 14."""
    module = ModuleType("selective_scan_cuda")

    def fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        _checked(u, delta, A, B, C, D, z, delta_bias)
        batch, width, length = u.shape
        states = torch.full((batch, width, -(-length // CHUNK), 2 * A.shape[1]), torch.nan)
        out, final = _scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus)
        states[:, :, -1, 1::2] = final
        if z is None:
            return [out, states]
        return [out, states, _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)[0]]

    def bwd(u, delta, A, B, C, D, z, delta_bias, dout, x, out, dz, delta_softplus, recompute_out_z):
        _checked(u, delta, A, B, C, D, z, delta_bias)
        assert dout.shape == u.shape
        assert dout.dtype == u.dtype
        assert dout.stride(-1) == 1 or dout.shape[-1] == 1
        assert x.is_contiguous()
        assert x.shape[3] == 2 * A.shape[1]
        assert (out is not None) == (z is not None)
        assert dz is None
        assert not recompute_out_z
        given = (u, delta, A, B, C, D, z, delta_bias)
        leaves = [None if t is None else t.detach().requires_grad_() for t in given]
        with torch.enable_grad():
            y, _ = _scan(*leaves, delta_softplus)
        grads = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], dout))
        d_u, d_delta, d_A, d_B, d_C, d_D, d_z, d_bias = (None if t is None else next(grads) for t in leaves)
        wide = [grad.float() for grad in (d_B, d_C)]  # as the kernel adds them up
        return [d_u, d_delta, d_A, *wide, d_D, d_bias, *([] if z is None else [d_z])]

    module.fwd, module.bwd = fwd, bwd  # type: ignore[attr-defined]
    return module


def causal_conv1d() -> ModuleType:
    """The package causal-conv1d; `seen` tells for each call whether the memory was channels-last."""
    module = ModuleType("causal_conv1d")
    module.seen = []  # type: ignore[attr-defined]

    def causal_conv1d_fn(
        x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
        final_states_out=None, activation=None,
    ):  # fmt: skip
        assert activation in (None, "silu", "swish")
        assert 2 <= weight.shape[1] <= 4
        assert x.stride(2) == 1 or x.stride(1) == 1
        channels_last = x.stride(1) == 1 and x.stride(2) > 1
        if channels_last:
            assert x.shape[1] % 8 == x.stride(2) % 8 == x.stride(0) % 8 == 0
        assert bias is None or bias.dtype == weight.dtype
        module.seen.append(channels_last)  # type: ignore[attr-defined]
        width = weight.shape[1]
        wide = None if bias is None else bias.float()
        y = F.conv1d(x.float(), weight.float()[:, None], wide, padding=width - 1, groups=x.shape[1])
        y = y[..., : x.shape[2]]
        return (F.silu(y) if activation else y).to(x.dtype)

    module.causal_conv1d_fn = causal_conv1d_fn  # type: ignore[attr-defined]
    return module
