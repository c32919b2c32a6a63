"""Weights as other packages save them, into our cores: the same outputs, or a refusal that lists all."""

from __future__ import annotations

from typing import Any

import lite_mamba
import pytest
import torch
from torch import Tensor, nn

import nvsubq
from nvsubq.compat.weights import load_weights
from nvsubq.cores import RGLRU, S5, S7, Attention, Mamba, Mamba2

# Names as each package saves one layer, with the core that has these sizes.
SAVED: dict[str, tuple[Any, str]] = {
    "mamba_ssm Mamba": (
        lambda: Mamba(16),
        "A_log D in_proj.weight conv1d.weight conv1d.bias x_proj.weight dt_proj.weight dt_proj.bias "
        "out_proj.weight",
    ),
    "mamba_ssm Mamba2": (
        lambda: Mamba2(16, d_state=8, headdim=8),
        "dt_bias A_log D in_proj.weight conv1d.weight conv1d.bias norm.weight out_proj.weight",
    ),
    "huggingface Mamba": (
        lambda: Mamba(16, bias=True),
        "A_log D in_proj.weight in_proj.bias conv1d.weight conv1d.bias x_proj.weight dt_proj.weight "
        "dt_proj.bias out_proj.weight out_proj.bias",
    ),
    "huggingface Mamba2": (
        lambda: Mamba2(16, d_state=8, headdim=8),
        "dt_bias A_log D in_proj.weight conv1d.weight conv1d.bias norm.weight out_proj.weight",
    ),
    "lrnnx S5": (lambda: S5(16, 8), "A B C D log_dt"),
    "lrnnx S7": (
        lambda: S7(16, 8, J=2, residual=True),
        "base_params in_proj.weight x_proj.weight gate_proj.weight",
    ),
    "lrnnx RGLRU": (
        lambda: RGLRU(16),
        "a_log gate_proj.weight in_proj.weight conv1d.weight conv1d.bias recurrent_gate_proj.weight "
        "recurrent_gate_proj.bias input_gate_proj.weight input_gate_proj.bias out_proj.weight",
    ),
}


def outputs(core: nn.Module) -> Tensor:
    with torch.no_grad():
        return core(torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("prefix", ["", "backbone.layers.3.mixer."])
@pytest.mark.parametrize("what", SAVED)
def test_a_layers_own_names(what: str, prefix: str) -> None:
    make, listed = SAVED[what]
    names = listed.split()
    saved, core = make(), make()
    state = saved.state_dict()
    assert set(state) == set(names)
    report = load_weights(core, {prefix + name: weight for name, weight in state.items()}, what.split()[0])
    assert torch.equal(outputs(core), outputs(saved))
    assert report.source == what.split()[0]
    assert report.renamed == ({prefix + name: name for name in names} if prefix else {})
    assert not report.left_out


@pytest.mark.parametrize("event_mode", [False, True])
def test_lrnnx_mamba(event_mode: bool) -> None:
    saved, core = Mamba(16, event_mode=True), Mamba(16, event_mode=event_mode)
    report = load_weights(core, saved.state_dict() | {"dtA_proj.weight": torch.ones(32, 1)})
    assert report.source == "lrnnx"
    assert set(report.left_out) == {"dtA_proj.weight"} | (set() if event_mode else {"dtA_proj.bias"})
    assert torch.equal(outputs(core), outputs(saved))


def test_lrnnx_s5_with_a_column_of_steps() -> None:
    saved, core = S5(16, 8), S5(16, 8)
    load_weights(core, saved.state_dict() | {"log_dt": saved.log_dt.detach()[:, None]})
    assert torch.equal(outputs(core), outputs(saved))


@pytest.mark.parametrize("options", [{}, {"conv_dilations": (1, 3), "d_conv": 3}], ids=str)
def test_lite_mamba(options: dict[str, Any]) -> None:
    theirs, core = lite_mamba.Mamba(16, **options), Mamba(16, **options)
    report = load_weights(core, theirs.state_dict())
    assert report.source == "lite_mamba"
    assert set(report.left_out) == (
        set() if options else {"conv1d_layers.0.weight", "conv1d_layers.0.bias", "conv_gates"}
    )
    torch.testing.assert_close(outputs(core), outputs(theirs), rtol=1e-5, atol=1e-5)


def test_one_layer_of_a_model() -> None:
    model = nn.Sequential(Mamba(16), Mamba(16))
    core = Mamba(16)
    load_weights(core, model.state_dict(), prefix="1.")
    assert torch.equal(outputs(core), outputs(model[1]))
    with pytest.raises(ValueError, match=r"`prefix` \(='2.'\) begins none of the 18 names"):
        load_weights(core, model.state_dict(), prefix="2.")
    with pytest.raises(ValueError, match=r"does not fit Mamba .*: A_log is missing;.*0.A_log has no place"):
        load_weights(core, model.state_dict())


def test_everything_that_is_wrong_is_told_and_nothing_is_changed() -> None:
    core, state = Mamba(16), Mamba(16, d_state=8).state_dict()
    del state["D"]
    before = {name: weight.clone() for name, weight in core.state_dict().items()}
    with pytest.raises(ValueError, match="`state_dict`") as error:
        load_weights(core, state | {"extra": torch.ones(1)})
    assert str(error.value) == (
        "`state_dict` does not fit Mamba (source mamba_ssm): D is missing; extra has no place; "
        "A_log is [32, 8], the core's [32, 16]; x_proj.weight is [17, 32], the core's [33, 32]."
    )
    assert all(torch.equal(weight, before[name]) for name, weight in core.state_dict().items())


@pytest.mark.parametrize(
    ("core", "source", "message"),
    [
        (Mamba(16), "jamba", "`source` (='jamba') must be one of auto, mamba_ssm, huggingface, lrnnx,"),
        (S7(16, 8), "lrnnx", "`core` (an S7 with variant='selective', residual=False) must be selective "),
        (S5(16, 8), "mamba_ssm", "`source` (='mamba_ssm') has no S5, only Mamba, Mamba2."),
        (Attention(16), "auto", "`core` (a Attention) must be one of Mamba, Mamba2, S5, S7, RGLRU."),
    ],
)
def test_refusals(core: Any, source: str, message: str) -> None:
    with pytest.raises(ValueError, match="`") as error:
        load_weights(core, core.state_dict(), source)
    assert str(error.value).startswith(message)


def test_an_empty_state_dict() -> None:
    with pytest.raises(ValueError, match="`state_dict` is empty"):
        load_weights(Mamba(16), {})


def test_public_name() -> None:
    assert nvsubq.load_weights is load_weights
