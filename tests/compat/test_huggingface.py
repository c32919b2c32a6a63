"""Layers of transformers, live: their weights load, and give the same outputs and gradients.

In fp32, the only dtype that these layers keep their states in; 1e-5 for outputs, and for gradients 1e-5 of
their greatest entry (they are sums over up to 1000 cells).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nvsubq import load_weights
from nvsubq.cores import LTV_LRNN, RGLRU, Mamba, Mamba2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # transformers' own imports
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

C = 16
LENGTHS = (1, 2, 63, 196, 1000)


def theirs(kind: str, **options: Any) -> nn.Module:
    """A layer with weights away from where they start."""
    torch.manual_seed(0)
    with contextlib.redirect_stderr(io.StringIO()):  # it tells which kernels it has not found
        if kind == "mamba":
            from transformers import MambaConfig
            from transformers.models.mamba.modeling_mamba import MambaMixer

            layer = MambaMixer(MambaConfig(hidden_size=C, num_hidden_layers=1, **options), layer_idx=0)
        elif kind == "mamba2":
            from transformers import Mamba2Config
            from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

            options = {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1} | options
            layer = Mamba2Mixer(Mamba2Config(hidden_size=C, num_hidden_layers=1, **options), layer_idx=0)
        else:
            from transformers import RecurrentGemmaConfig
            from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
                RecurrentGemmaRecurrentBlock,
            )

            config = RecurrentGemmaConfig(
                hidden_size=C, lru_width=C, num_attention_heads=2, num_hidden_layers=1, **options
            )
            layer = RecurrentGemmaRecurrentBlock(config, layer_idx=0)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith(("gate_weight", "gate_bias")):
                parameter.normal_(std=0.5)
            elif name.endswith("recurrent_param"):
                parameter.uniform_(-6, -2)
            elif parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def outcome(layer: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    x = x.detach().requires_grad_()
    y = run(x)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    return y.detach(), dict(
        zip(("x", *names), torch.autograd.grad((y * weight).sum(), (x, *parameters)), strict=True)
    )


def agree(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        scale = max(1.0, value.abs().max().item())
        torch.testing.assert_close(got[name] / scale, value / scale, rtol=1e-5, atol=1e-5, msg=name)


MAMBA: list[tuple[str, dict[str, Any], Callable[[], LTV_LRNN]]] = [
    ("mamba", {}, lambda: Mamba(C)),
    (
        "mamba",
        {"use_bias": True, "use_conv_bias": False, "state_size": 5, "conv_kernel": 3, "expand": 3},
        lambda: Mamba(C, d_state=5, d_conv=3, expand=3, bias=True, conv_bias=False),
    ),
    ("mamba2", {}, lambda: Mamba2(C, d_state=8, headdim=8)),
    (
        "mamba2",
        {"n_groups": 2, "use_bias": True, "time_step_limit": (0.01, 0.5), "chunk_size": 7},
        lambda: Mamba2(C, d_state=8, headdim=8, ngroups=2, bias=True, dt_limit=(0.01, 0.5)),
    ),
]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("kind", "options", "make"), MAMBA, ids=["mamba", "mamba-all", "mamba2", "mamba2-all"]
)
def test_mamba_and_mamba2(kind: str, options: dict[str, Any], make: Any, length: int) -> None:
    layer, core = theirs(kind, **options), make()
    prefix = "backbone.layers.0.mixer."
    report = load_weights(core, {prefix + name: p for name, p in layer.state_dict().items()}, "huggingface")
    assert report.source == "huggingface"
    assert not report.left_out
    x = torch.randn(2, length, C)
    y, grads = outcome(core, core, x)
    want_y, want = outcome(layer, layer, x)
    torch.testing.assert_close(y, want_y, rtol=1e-5, atol=1e-5)
    agree(grads, want)


def as_rglru(layer: nn.Module) -> RGLRU:
    """RecurrentGemma's block under our names: `a = sigmoid(-recurrent_param)`, gates transposed."""
    own = layer.state_dict()
    taps = own["conv_1d.weight"].shape[2]
    core = RGLRU(C, taps, gate_blocks=2, normalize_first=False, gelu="tanh", bias=True)
    state = {
        "a_log": -own["rg_lru.recurrent_param"][:, None],
        "conv1d.weight": own["conv_1d.weight"],
        "conv1d.bias": own["conv_1d.bias"],
    }
    for ours, linear in (("gate_proj", "linear_y"), ("in_proj", "linear_x"), ("out_proj", "linear_out")):
        state |= {f"{ours}.{part}": own[f"{linear}.{part}"] for part in ("weight", "bias")}
    for ours, gate in (("recurrent_gate_proj", "recurrent_gate"), ("input_gate_proj", "input_gate")):
        state[f"{ours}.weight"] = own[f"rg_lru.{gate}_weight"].transpose(1, 2)
        state[f"{ours}.bias"] = own[f"rg_lru.{gate}_bias"].flatten()
    core.load_state_dict(state)
    return core


@pytest.mark.parametrize("length", LENGTHS)
def test_recurrentgemma(length: int) -> None:
    """The oracle of `normalize_first=False`, gates in blocks, and the GELU by tanh."""
    layer = theirs("recurrentgemma")
    core, x = as_rglru(layer), torch.randn(2, length, C)
    position = torch.arange(length).expand(2, -1)

    def run(x: Tensor) -> Tensor:
        return layer(x, position, None, use_cache=False)[0]

    y, grads = outcome(core, core, x)
    want_y, want = outcome(layer, run, x)
    torch.testing.assert_close(y, want_y, rtol=1e-5, atol=1e-5)
    for ours, other in (
        ("x", want["x"]),
        ("a_log", -want["rg_lru.recurrent_param"][:, None]),
        ("recurrent_gate_proj.weight", want["rg_lru.recurrent_gate_weight"].transpose(1, 2)),
        ("input_gate_proj.weight", want["rg_lru.input_gate_weight"].transpose(1, 2)),
        ("in_proj.weight", want["linear_x.weight"]),
        ("conv1d.weight", want["conv_1d.weight"]),
        ("gate_proj.weight", want["linear_y.weight"]),
    ):
        agree({ours: grads[ours]}, {ours: other})


def test_recurrentgemma_with_resets() -> None:
    """Positions that begin anew are sequences in one row."""
    layer = theirs("recurrentgemma", conv1d_width=1)  # its convolution knows no borders
    position = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3], list(range(8))])
    core, x = as_rglru(layer), torch.randn(2, 8, C)
    seq_idx = (position == 0).int().cumsum(1)
    torch.testing.assert_close(
        core(x, seq_idx=seq_idx), layer(x, position, None, use_cache=False)[0], rtol=1e-5, atol=1e-5
    )
