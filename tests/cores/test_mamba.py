"""Mamba against lite-mamba and mambapy (same weights), and against cores.md's formulas cell by cell."""

from __future__ import annotations

import math
from typing import Any

import lite_mamba
import mambapy.mamba
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.cores import Mamba

# fp32 against other packages: their scans add in another order; gradients are compared at their own scale
ORACLE = {"rtol": 1e-5, "atol": 1e-5}
LENGTHS = [1, 2, 63, 196, 1000]
KEYS = {
    "A_log": (32, 16),
    "D": (32,),
    "in_proj.weight": (64, 16),
    "conv1d.weight": (32, 1, 4),
    "conv1d.bias": (32,),
    "x_proj.weight": (33, 32),
    "dt_proj.weight": (32, 1),
    "dt_proj.bias": (32,),
    "out_proj.weight": (16, 32),
}


def make(**options: Any) -> Mamba:
    torch.manual_seed(3)
    core = Mamba(16, **options)
    with torch.no_grad():  # away from the initial A and D, which are the same in all channels
        core.A_log += 0.3 * torch.randn_like(core.A_log)
        core.D += torch.randn_like(core.D)
        if len(core.conv_dilations) > 1:
            core.conv_gates += torch.randn_like(core.conv_gates)
    return core


DILATED = {"conv_dilations": (1, 2, 5), "d_conv": 3}


def by_hand(core: Mamba, h: Tensor, dt: Tensor | None = None) -> Tensor:
    """cores.md's equations, one cell after the other."""
    x, z = core.in_proj(h).chunk(2, -1)
    K = core.d_conv
    window = F.pad(x, (0, 0, K - 1, 0)).unfold(1, K, 1)  # (B, L, D, K)
    x = (window * core.conv1d.weight[:, 0]).sum(-1)
    x = F.silu(x if core.conv1d.bias is None else x + core.conv1d.bias)
    rows = core.x_proj(x)
    low, B, C = rows[..., : core.dt_rank + 2 * core.d_state].split(
        [core.dt_rank, core.d_state, core.d_state], -1
    )
    gate = torch.sigmoid(rows[..., -core.d_state :] + 4) if core.a_modulation else torch.ones_like(B)
    delta = F.softplus(core.dt_proj(low))
    A = -core.A_log.exp()
    if core.a_init == "s4d_lin":
        A = torch.complex(A, core.A_imag)
    clock = core.dtA_proj.bias if core.event_mode else core.dt_proj.bias
    s, outputs = torch.zeros(len(h), core.d_inner, core.d_state, dtype=A.dtype), []
    for k in range(h.shape[1]):
        d = delta[:, k, :, None]
        d_a = d if dt is None else dt[:, k, None, None] * F.softplus(clock)[:, None]
        if core.discretization == "bilinear":
            decay, scale = (1 + d_a * A / 2) / (1 - d_a * A / 2), d / (1 - d * A / 2)
        else:
            decay = torch.exp(d_a * A)
            scale = {"mamba": d, "zoh": (torch.exp(d * A) - 1) / A, "dirac": 1.0}[core.discretization]
        s = gate[:, k, None] * decay * s + scale * B[:, k, None] * x[:, k, :, None]
        read = (s * C[:, k, None]).sum(-1)
        outputs.append((2 * read.real if A.is_complex() else read) + core.D * x[:, k])
    return core.out_proj(torch.stack(outputs, 1) * F.silu(z))


def compare(
    ours: Mamba, theirs: torch.nn.Module, mine: Tensor, other: Tensor, x: Tensor, x_other: Tensor
) -> None:
    torch.testing.assert_close(mine, other, **ORACLE)
    torch.manual_seed(1)
    weight = torch.randn_like(mine)
    (mine * weight).sum().backward()
    (other * weight).sum().backward()
    parameters = dict(theirs.named_parameters(remove_duplicate=False))
    pairs = {name: (p.grad, parameters[name].grad) for name, p in ours.named_parameters()}
    pairs["x"] = (x.grad, x_other.grad)
    for name, (got, want) in pairs.items():
        scale = want.abs().max().clamp(min=1.0)
        torch.testing.assert_close(got / scale, want / scale, **ORACLE, msg=lambda m, n=name: f"{n}: {m}")


class TestOracles:
    @pytest.mark.parametrize("length", LENGTHS)
    @pytest.mark.parametrize(
        "options", [{}, {"bias": True, "conv_bias": False, "dt_rank": 3, "d_conv": 3}, DILATED], ids=str
    )
    def test_lite_mamba(self, length, options):
        ours = make(**options)
        theirs = lite_mamba.Mamba(16, **options)
        missing = theirs.load_state_dict(ours.state_dict(), strict=False)
        assert not missing.unexpected_keys
        assert all(key.startswith(("conv_gates", "conv1d_layers.0")) for key in missing.missing_keys)
        x = torch.randn(2, length, 16, requires_grad=True)
        x_other = x.detach().clone().requires_grad_()
        compare(ours, theirs, ours(x), theirs(x_other), x, x_other)

    @pytest.mark.parametrize("length", LENGTHS)
    def test_mambapy(self, length):
        ours = make(d_state=8, expand=3)
        config = mambapy.mamba.MambaConfig(d_model=16, n_layers=1, d_state=8, expand_factor=3)
        theirs = mambapy.mamba.MambaBlock(config)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(2, length, 16, requires_grad=True)
        x_other = x.detach().clone().requires_grad_()
        compare(ours, theirs, ours(x), theirs(x_other), x, x_other)

    @torch.no_grad()
    def test_lite_mamba_step(self):
        ours = make()
        theirs = lite_mamba.Mamba(16)
        theirs.load_state_dict(ours.state_dict(), strict=False)
        cache = ours.allocate_inference_cache(2, 20)
        conv_state, ssm_state = theirs.allocate_inference_cache(2, 20)
        for _ in range(20):
            x = torch.randn(2, 1, 16)
            y, _ = ours.step(x, cache)
            want, conv_state, ssm_state = theirs.step(x, conv_state, ssm_state)
            torch.testing.assert_close(y, want, **ORACLE)
        torch.testing.assert_close(cache["lrnn_state"], ssm_state, **ORACLE)
        torch.testing.assert_close(cache["conv_state"], conv_state[0], **ORACLE)

    @torch.no_grad()
    def test_steps_of_dilated_branches(self):
        """Against lite-mamba's forward: its own step takes the taps of a dilated branch in reverse."""
        ours, x = make(**DILATED), torch.randn(2, 20, 16)
        theirs = lite_mamba.Mamba(16, **DILATED)
        theirs.load_state_dict(ours.state_dict())
        cache = ours.allocate_inference_cache(2, 20)
        _, ssm_state = theirs.allocate_inference_cache(2, 20)
        assert [list(state.shape) for state in cache["conv_state"]] == [[2, 32, 3], [2, 32, 5], [2, 32, 11]]
        steps = [ours.step(x[:, k : k + 1], cache)[0] for k in range(20)]
        torch.testing.assert_close(torch.cat(steps, 1), theirs(x), **ORACLE)
        assert cache["lrnn_state"].shape == ssm_state.shape


class TestFormulas:
    @pytest.mark.parametrize("timesteps", [False, True])
    @pytest.mark.parametrize(
        "options",
        [{}, {"a_init": "s4d_lin", "d_state": 5}, {"a_modulation": True}, {"event_mode": True}],
        ids=str,
    )
    @pytest.mark.parametrize("discretization", ["mamba", "zoh", "bilinear", "dirac"])
    def test_by_hand(self, discretization, options, timesteps):
        """In fp64 to 1e-10, with gradients: forward is the definition, term by term."""
        core = make(discretization=discretization, bias=True, dtype=torch.float64, **options).double()
        x = torch.randn(2, 17, 16, dtype=torch.float64, requires_grad=True)
        dt = torch.rand(2, 17, dtype=torch.float64, requires_grad=True)
        args = (dt,) if timesteps else ()
        wanted = [x, *args, *core.parameters()]
        got, want = core(x, *args), by_hand(core, x, *args)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        weight = torch.randn_like(got)
        # dirac with timesteps has no use for delta, hence none for `dt_proj.weight`
        got = torch.autograd.grad((got * weight).sum(), wanted, allow_unused=True, materialize_grads=True)
        want = torch.autograd.grad((want * weight).sum(), wanted, allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)

    def test_discretizations_differ(self):
        x = torch.randn(2, 9, 16)
        names = Mamba.discretizations
        outputs = [make(discretization=name, dt_min=0.5, dt_max=1.0)(x) for name in names]
        for i, first in enumerate(outputs):
            assert all((first - other).abs().max() > 1e-4 for other in outputs[:i])

    @pytest.mark.parametrize("discretization", ["mamba", "zoh", "bilinear", "dirac"])
    def test_long_event_gaps(self, discretization):
        """Fault 4: decays that underflow give finite gradients, and forget."""
        core = make(discretization=discretization)
        x = torch.randn(1, 12, 16, requires_grad=True)
        dt = torch.ones(1, 12)
        dt[:, 6] = 1e6
        dt.requires_grad_()
        y = core(x, dt)
        y.sum().backward()
        for name, tensor in [("x", x), ("dt", dt), *core.named_parameters()]:
            if (discretization, name) != ("dirac", "dt_proj.weight"):  # which has no part in it
                assert torch.isfinite(tensor.grad).all(), name
        if discretization != "bilinear":  # whose decay tends to -1 instead
            changed = x.detach().clone()
            changed[:, :3] += 1.0
            torch.testing.assert_close(core(changed, dt)[:, 6:], y[:, 6:], **ORACLE)

    def test_ones_are_not_the_plain_mode(self):
        """With timesteps the decay's step is that of the bias, not of the input."""
        core, x = make(), torch.randn(1, 8, 16)
        with torch.no_grad():
            core.dt_proj.weight.zero_()
            torch.testing.assert_close(core(x, torch.ones(1, 8)), core(x), **ORACLE)
            core.dt_proj.weight.fill_(5.0)
            core.x_proj.weight *= 5.0
            assert (core(x, torch.ones(1, 8)) - core(x)).abs().max() > 1e-3

    @torch.no_grad()
    def test_no_drift_in_bf16(self):
        """Fault 10: the state of a long bf16 walk follows the fp64 recurrence of the same bf16 inputs."""
        length, core = 400, make().bfloat16()
        x = torch.randn(1, length, 16).bfloat16()
        with torch.autocast("cpu", enabled=False):
            cache = core.allocate_inference_cache(1, length)
            core(x, inference_cache=cache)
            stepped = core.allocate_inference_cache(1, length)
            for k in range(length):
                core.step(x[:, k : k + 1], stepped)
        scale = cache["lrnn_state"].abs().max()
        assert cache["lrnn_state"].dtype == stepped["lrnn_state"].dtype == torch.float32
        assert ((cache["lrnn_state"] - stepped["lrnn_state"]).abs().max() / scale) < 0.02


class TestParameters:
    def test_state_dict(self):
        core = Mamba(16)
        assert {key: tuple(value.shape) for key, value in core.state_dict().items()} == KEYS
        biased = Mamba(16, bias=True, conv_bias=False).state_dict().keys()
        assert biased == (KEYS.keys() | {"in_proj.bias", "out_proj.bias"}) - {"conv1d.bias"}

    def test_initial_values(self):
        torch.manual_seed(0)
        core = Mamba(64, d_state=5, dt_min=0.01, dt_max=0.2, dt_scale=2.0, dtype=torch.bfloat16)
        assert core.A_log.dtype == core.D.dtype == torch.float32
        torch.testing.assert_close(core.A_log.exp(), torch.arange(1.0, 6).expand(128, 5))
        assert (core.D == 1).all()
        assert core.dt_proj.weight.abs().max() <= 2.0 / math.sqrt(4)
        assert core.dt_proj.weight.abs().max() > 0.9 * 2.0 / math.sqrt(4)
        exact = Mamba(64, dt_min=0.01, dt_max=0.2)
        dt = F.softplus(exact.dt_proj.bias)
        assert 0.00999 <= dt.min() < 0.02
        assert 0.1 < dt.max() <= 0.2001
        assert exact.A_log._no_weight_decay
        assert exact.D._no_weight_decay
        assert exact.dt_proj.bias._no_reinit

    def test_options(self):
        floor = Mamba(16, dt_min=1e-6, dt_max=1e-5, dt_init_floor=1e-3)
        torch.testing.assert_close(F.softplus(floor.dt_proj.bias), torch.full((32,), 1e-3))
        constant = Mamba(16, dt_init="constant", dt_rank=4, dt_scale=3.0)
        assert (constant.dt_proj.weight == 1.5).all()
        assert constant.dt_proj.weight.shape == (32, 4)
        assert Mamba(33).dt_rank == 3
        assert Mamba(10, expand=1.5).d_inner == 15
        assert Mamba(8, layer_idx=4).layer_idx == 4

    def test_reset_parameters(self):
        core = make()
        torch.manual_seed(5)
        core.reset_parameters()
        first = {name: value.clone() for name, value in core.state_dict().items()}
        torch.manual_seed(5)
        core.reset_parameters()
        for name, value in core.state_dict().items():
            assert torch.equal(value, first[name]), name
        assert (core.D == 1).all()

    def test_cache(self):
        cache = Mamba(16, d_conv=3).allocate_inference_cache(2, 50, dtype=torch.bfloat16)
        assert cache.keys() == {"conv_state", "lrnn_state", "seqlen_offset"}
        assert cache["conv_state"].shape == (2, 32, 3)
        assert cache["conv_state"].dtype == torch.bfloat16
        assert cache["lrnn_state"].shape == (2, 32, 16)
        assert cache["lrnn_state"].dtype == torch.float32
        assert cache["seqlen_offset"] == 0

    @torch.no_grad()
    def test_conv_state_holds_inputs(self):
        """Fault 2: a prefill that stores the convolution's outputs."""
        core, x = make(), torch.randn(2, 9, 16)
        cache = core.allocate_inference_cache(2, 9)
        core(x, inference_cache=cache)
        inputs = core.in_proj(x)[..., :32].transpose(1, 2)
        torch.testing.assert_close(cache["conv_state"], inputs[..., -4:])


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (
                {"discretization": "euler"},
                "`discretization` (='euler') of Mamba must be one of 'mamba', 'zoh', 'bilinear', 'dirac'.",
            ),
            ({"dt_init": "zeros"}, "`dt_init` (='zeros') must be 'random' or 'constant'."),
            ({"conv_dilations": ()}, "`conv_dilations` (=()) must be one or more positive integers."),
            ({"conv_dilations": (1, 0)}, "`conv_dilations` (=(1, 0)) must be one or more positive integers."),
            ({"conv_dilations": 2.5}, "`conv_dilations` (=(2.5,)) must be one or more positive integers."),
            ({"a_init": "hippo"}, "`a_init` (='hippo') must be 's4d_real' or 's4d_lin'."),
            ({"dt_rank": "half"}, "`dt_rank` (='half') must be 'auto' or an int."),
            ({"dt_rank": 0}, "`dt_rank` (=0) must be at least 1."),
            ({"d_state": 0}, "`d_state` (=0) must be at least 1."),
            ({"d_conv": 0}, "`d_conv` (=0) must be at least 1."),
            ({"expand": 0.01}, "`expand` (=0.01) times `d_model` (=16) must be at least 1."),
            ({"dt_min": 0.2}, "`dt_min` (=0.2) must be positive and at most `dt_max` (=0.1)."),
        ],
    )
    def test_constructor(self, options, text):
        with pytest.raises(ValueError, match="`") as error:
            Mamba(16, **options)
        assert str(error.value) == text


class TestEventCheckpoints:
    """The clock of events, and the weight beside it that STREAM's package has and does not use."""

    def test_load_into_event_mode(self) -> None:
        source, core = make(event_mode=True), make(event_mode=True)
        state = source.state_dict() | {"dtA_proj.weight": torch.randn(32, 1)}
        core.load_state_dict(state)
        assert torch.equal(core.dtA_proj.bias, source.dtA_proj.bias)
        assert "dtA_proj.weight" in state

    def test_load_into_plain_mode(self) -> None:
        core = torch.nn.Sequential(make())
        source = make(event_mode=True).state_dict() | {"dtA_proj.weight": torch.randn(32, 1)}
        core.load_state_dict({f"0.{name}": value for name, value in source.items()})
        assert torch.equal(core[0].dt_proj.bias, source["dt_proj.bias"])

    def test_plain_ones_load_into_event_mode(self) -> None:
        source, core = make(), make(event_mode=True)
        core.load_state_dict(source.state_dict())
        assert torch.equal(core.dtA_proj.bias, source.dt_proj.bias)

    def test_assigned_plain_ones_are_two_parameters(self) -> None:
        source, core = make(), make(event_mode=True)
        core.load_state_dict(source.state_dict(), assign=True)
        assert torch.equal(core.dtA_proj.bias, source.dt_proj.bias)
        assert core.dtA_proj.bias.data_ptr() != core.dt_proj.bias.data_ptr()

    def test_what_is_missing_beside_it_is_still_told(self) -> None:
        state = make().state_dict()
        del state["dt_proj.bias"]
        with pytest.raises(RuntimeError, match=r'Missing key.*"dt_proj.bias".*"dtA_proj.bias"'):
            make(event_mode=True).load_state_dict(state)


def test_a_decays_gate_starts_near_one() -> None:
    core, x = Mamba(16, a_modulation=True), torch.randn(2, 9, 16)
    gates = torch.sigmoid(core.x_proj(torch.randn(100, 32))[:, -16:] + 4)
    assert 0.9 < gates.mean() < 1
    assert core(x).isfinite().all()


def test_complex_rates_start_as_s4d_lin() -> None:
    core = Mamba(16, d_state=3, a_init="s4d_lin")
    want = torch.complex(torch.tensor([-0.5] * 3), math.pi * torch.arange(3.0))
    torch.testing.assert_close(core._rates().detach(), want.expand(32, 3))
    assert core.allocate_inference_cache(1, 1)["lrnn_state"].dtype == torch.complex64


def test_what_stands_in_for_x_proj_is_called() -> None:
    """An adapter with a weight of its own, or a hook, says more than the weight."""

    class Adapted(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 1

    core, x = Mamba(8), torch.randn(2, 5, 8)
    plain = core(x)
    hook = core.x_proj.register_forward_hook(lambda module, args, output: output + 1)
    hooked = core(x)
    hook.remove()
    assert torch.equal(core(x), plain)
    adapted = Adapted(core.x_proj.in_features, core.x_proj.out_features, bias=False)
    adapted.load_state_dict(core.x_proj.state_dict())
    core.x_proj = adapted
    assert torch.equal(core(x), hooked)
    assert not torch.allclose(hooked, plain)
