"""The reference against other derivations: matrix exponentials, dense sums, scipy, mambapy, conv1d."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch
import torch.nn.functional as F
from cases import case_of
from tolerances import assert_close
from torch import Tensor

from nvsubq import ops


@pytest.fixture(autouse=True)
def _reference():
    with ops.use_backend("reference"):
        yield


def dense(decay: Tensor, drive: Tensor, initial: Tensor | None = None) -> Tensor:
    """States of s_k = decay_k s_{k-1} + drive_k along axis 0, by the closed sum over all earlier cells."""
    length = len(drive)
    states = []
    for k in range(length):
        reach = [decay[j + 1 : k + 1].prod(0) for j in range(k + 1)]
        state = sum(r * drive[j] for j, r in enumerate(reach))
        if initial is not None:
            state = state + decay[: k + 1].prod(0) * initial
        states.append(state)
    return torch.stack(states)


def hold(delta: float, a: complex) -> tuple[complex, complex]:
    """Integrate s' = a s + b over delta for a held b: the matrix exponential of [[a, 1], [0, 0]] delta."""
    exact = scipy.linalg.expm(np.array([[a, 1], [0, 0]]) * delta)
    return exact[0, 0], exact[0, 1]


def trapezoid(delta: float, a: complex) -> tuple[complex, complex]:
    """Solve s1 - s0 = delta (a (s0 + s1)/2 + b) for s1."""
    inverse = np.linalg.inv(np.array([[1 - delta * a / 2]]))[0, 0]
    return inverse * (1 + delta * a / 2), inverse * delta


def table(discretization: str, delta_a: float, delta: float, a: complex) -> tuple[complex, complex]:
    if discretization == "no_discretization":
        return a, 1
    rule = trapezoid if discretization == "bilinear" else hold
    decay, gain = rule(delta_a, a)[0], rule(delta, a)[1]
    return decay, {"mamba": delta, "dirac": 1}.get(discretization, gain)


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        *itertools.product(["mamba", "zoh", "async", "bilinear", "dirac"], ["", "-delta_a"]),
        ("no_discretization", ""),
    ],
)
def test_selective_scan_is_the_discretized_equation(name: str, form: str, kind: str) -> None:
    case = case_of("selective_scan", f"{name}{form}" if kind == "real" else f"{name}-complex")
    tensors, options = case.build()
    if kind == "complex" and form:
        tensors["delta_a"] = torch.rand_like(tensors["delta"])
    y = ops.selective_scan(**tensors, **options)
    length, width = 7, 2
    delta = tensors["delta"] + tensors.get("delta_bias", 0)
    delta = F.softplus(delta) if options.get("delta_softplus") else delta
    delta_a = tensors.get("delta_a", delta)
    A, u = tensors["A"], tensors["u"]
    for d in range(width):
        rules = [
            [table(name, float(delta_a[0, k, d]), float(delta[0, k, d]), a.item()) for a in A[d]]
            for k in range(length)
        ]
        decay, gain = (
            torch.tensor([[rule[i] for rule in row] for row in rules], dtype=A.dtype) for i in (0, 1)
        )
        states = dense(decay, gain * tensors["B"][0, :length] * u[0, :length, d, None])
        out = (tensors["C"][0, :length] * states).sum(-1)
        out = 2 * out.real if A.is_complex() else out
        if "D" in tensors:
            out = out + tensors["D"][d] * u[0, :length, d]
        if "z" in tensors:
            out = out * F.silu(tensors["z"][0, :length, d])
        assert_close(f"channel {d}", y[0, :length, d], out, tolerance=1e-11)


def test_selective_scan_gate_groups_and_complex_inputs() -> None:
    case = case_of("selective_scan", "G2")
    tensors, options = case.build()
    y = ops.selective_scan(**tensors, **options)
    delta = F.softplus(tensors["delta"] + tensors["delta_bias"])
    for d in range(6):
        group = d // 3
        decay = torch.exp(delta[0, :, d, None] * tensors["A"][d]) * tensors["decay_gate"][0, :, group]
        drive = delta[0, :, d, None] * tensors["B"][0, :, group] * tensors["u"][0, :, d, None]
        out = (tensors["C"][0, :, group] * dense(decay, drive)).sum(-1) + tensors["D"][d] * tensors["u"][
            0, :, d
        ]
        assert_close(f"channel {d}", y[0, :, d], out * F.silu(tensors["z"][0, :, d]))


def test_selective_scan_with_complex_state_is_a_real_system_of_conjugate_pairs() -> None:
    tensors, options = case_of("selective_scan", "complex-BC").build()
    both = {
        n: torch.cat([t, t.conj().resolve_conj()], -1) if t.is_complex() else t for n, t in tensors.items()
    }
    y, final = ops.selective_scan(**tensors, **options, return_final_state=True)
    y_pairs, final_pairs = ops.selective_scan(**both, **options, return_final_state=True)
    # over conjugate pairs the sum is real already, so 2 Re counts it twice; D u comes once
    skip = tensors["D"] * tensors["u"] * F.silu(tensors["z"])
    assert_close("y", (y_pairs - skip) / 2 + skip, y)
    assert_close("final state", final_pairs, torch.cat([final, final.conj()], -1))


def test_selective_scan_with_fixed_b_and_c_is_the_same_at_every_cell() -> None:
    tensors, options = case_of("selective_scan", "fixed").build()
    per_cell = {
        n: t.expand(3, 19, 6, 4) if n in ("B", "C", "decay_gate") else t for n, t in tensors.items()
    }  # G = D
    assert torch.equal(ops.selective_scan(**tensors, **options), ops.selective_scan(**per_cell, **options))


def test_timesteps_are_a_rate_times_the_step() -> None:
    tensors, options = case_of("selective_scan", "zoh-timesteps").build()
    product = tensors["timesteps"][..., None] * tensors["delta_a"]
    other = {n: t for n, t in tensors.items() if n != "timesteps"} | {"delta_a": product}
    assert torch.equal(ops.selective_scan(**tensors, **options), ops.selective_scan(**other, **options))


def test_event_mode_scales_the_decay_alone() -> None:
    one = torch.ones(1, 2, 1, dtype=torch.float64)
    A = torch.tensor([[-math.log(2)]], dtype=torch.float64)
    y = ops.selective_scan(one, 0.5 * one, A, one, one, delta_a=3 * one)
    assert y.flatten().tolist() == pytest.approx([0.5, 0.5 / 8 + 0.5])


def test_mambapy_agrees() -> None:
    from mambapy.mamba import MambaBlock, MambaConfig

    torch.manual_seed(0)
    block = MambaBlock(MambaConfig(d_model=4, n_layers=1, d_state=3)).double()
    u, delta = torch.randn(2, 9, 8).double(), torch.rand(2, 9, 8).double()
    A, D = -torch.rand(8, 3).double(), torch.randn(8).double()
    B, C = torch.randn(2, 2, 9, 3).double()
    assert_close(
        "y", ops.selective_scan(u, delta, A, B, C, D), block.selective_scan_seq(u, delta, A, B, C, D)
    )


def test_mambapy_parallel_scan_agrees() -> None:
    from mambapy.pscan import pscan

    a, b = torch.rand(2, 9, 4).double(), torch.randn(2, 9, 4).double()
    assert_close("h", ops.linear_scan(a, b), pscan(a[..., None], b[..., None])[..., 0])


def test_linear_scan_with_a_fixed_decay_is_a_recursive_filter() -> None:
    tensors, _ = case_of("linear_scan", "complex-fixed").build()
    h, final = ops.linear_scan(**tensors, return_final_state=True)
    for d, a in enumerate(tensors["a"].tolist()):
        start = a * tensors["initial_state"][:, d, None].numpy()
        filtered, _ = scipy.signal.lfilter([1], [1, -a], tensors["b"][:, :, d].numpy(), axis=1, zi=start)
        assert_close(f"h of {d}", h[:, :, d], torch.from_numpy(filtered))
    assert torch.equal(final, h[:, -1])


@pytest.mark.parametrize("label", ["real", "complex", "complex-a", "complex-b"])
def test_linear_scan_is_the_closed_sum(label: str) -> None:
    tensors, _ = case_of("linear_scan", label).build()
    assert_close("h", ops.linear_scan(**tensors)[1], dense(tensors["a"][1], tensors["b"][1]))


@pytest.mark.parametrize("scale", ["none", "zoh", "bilinear", "sqrt"])
@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
@pytest.mark.parametrize("label", ["real", "complex"])
def test_linear_scan_makes_decay_and_input_scale_from_rates(
    label: str, discretization: str, scale: str
) -> None:
    case = case_of("linear_scan", f"{label}-dt-{discretization}-{scale}")
    tensors, options = case.build()
    a, b, dt = (tensors[n] for n in ("a", "b", "dt"))
    rule = {"zoh": hold, "bilinear": trapezoid}
    shape = (19, 6)
    decay, gain = torch.empty(2, *shape, dtype=torch.complex128)
    for k in range(shape[0]):
        for d in range(shape[1]):
            step, rate = float(dt[0, k]), complex(a[d])
            decay[k, d] = complex(rule[discretization](step, rate)[0])
            held = {"none": 1.0, "sqrt": math.sqrt(1 - abs(complex(decay[k, d])) ** 2)}
            gain[k, d] = held[scale] if scale in held else complex(rule[scale](step, rate)[1])
    expected = dense(decay, gain * b[0])
    got = ops.linear_scan(**tensors, **options)[0]
    assert_close("h", got.to(expected.dtype), expected)


def test_sqrt_scale_of_given_decays() -> None:
    tensors, options = case_of("linear_scan", "complex-sqrt").build()
    scaled = tensors["b"] * (1 - tensors["a"].abs() ** 2).sqrt()
    assert_close("h", ops.linear_scan(**tensors, **options), ops.linear_scan(tensors["a"], scaled))


def test_rglru_scan_is_the_paper_s_recurrence() -> None:
    tensors, _ = case_of("rglru_scan", "all").build()
    y = ops.rglru_scan(**tensors)
    value = {n: t.tolist() for n, t in tensors.items()}

    def sigmoid(v: float) -> float:
        return 1 / (1 + math.exp(-v))

    for d in range(6):
        state = value["initial_state"][1][d]
        for k in range(19):
            r = sigmoid(value["r"][1][k][d] + value["r_bias"][d])
            i = sigmoid(value["i"][1][k][d] + value["i_bias"][d])
            a = sigmoid(value["a_log"][d]) ** (8 * r)
            state = a * state + math.sqrt(1 - a * a) * i * value["x"][1][k][d]
            g = value["gate"][1][k][d]
            gelu = g * (1 + math.erf(g / math.sqrt(2))) / 2
            assert float(y[1, k, d]) == pytest.approx(gelu * state, rel=1e-11, abs=1e-13)


def test_rglru_scan_without_scaling_the_first_input_of_a_sequence() -> None:
    x = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]], dtype=torch.float64)
    wide, logit = torch.full_like(x, 50.0), torch.zeros_like(x)
    a = math.sqrt(0.5)  # decay σ(0)^(c/2) with c = 1
    scaled = math.sqrt(0.5)
    options = {"c": 1.0, "normalize_first": False, "seq_idx": torch.tensor([[-1, 3, 3, 5]])}
    y = ops.rglru_scan(x, logit, wide, torch.zeros(1), **options)
    assert y.flatten().tolist() == pytest.approx([0, 2, a * 2 + scaled * 4, 8])
    state = torch.ones(1, 1)
    y = ops.rglru_scan(x, logit, wide, torch.zeros(1), initial_state=state, **options)
    first = a + scaled * 2
    assert y.flatten().tolist() == pytest.approx([0, first, a * first + scaled * 4, 8])


def test_rglru_gradient_stays_finite_where_the_decay_is_one() -> None:
    x = torch.ones(1, 3, 1, requires_grad=True)
    r = torch.full((1, 3, 1), -200.0, requires_grad=True)
    a_log = torch.full((1,), 40.0, requires_grad=True)
    ops.rglru_scan(x, r, x, a_log).sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (x, r, a_log))


@pytest.mark.parametrize("name", ["all", "D-per-channel", "G1", "G4"])
def test_ssd_scan_is_a_selective_scan_with_one_decay_per_head(name: str) -> None:
    case = case_of("ssd_scan", name)
    t, options = case.build()
    heads, width = t["x"].shape[2:]
    states = t["B"].shape[-1]

    def flat(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.flatten(2)

    D = t.get("D")
    if D is not None:
        D = (D if D.dim() == 2 else D[:, None].expand(heads, width)).flatten()
    bias = None if "dt_bias" not in t else t["dt_bias"].repeat_interleave(width)
    state = None if "initial_state" not in t else t["initial_state"].flatten(1, 2)
    expected, final = ops.selective_scan(
        flat(t["x"]),
        t["dt"].repeat_interleave(width, 2),
        t["A"].repeat_interleave(width)[:, None].expand(-1, states),
        t["B"],
        t["C"],
        D,
        flat(t.get("z")),
        delta_bias=bias,
        delta_softplus=options.get("dt_softplus", False),
        initial_state=state,
        return_final_state=True,
    )
    y, got = ops.ssd_scan(**t, **options, return_final_state=True)
    assert_close("y", flat(y), expected)
    assert_close("final state", got.flatten(1, 2), final)


def test_ssd_scan_is_masked_attention() -> None:
    t, _ = case_of("ssd_scan", "plain").build()
    log_decay = (t["dt"] * t["A"]).cumsum(1)  # (B, L, H)
    mask = torch.ones(19, 19).tril().bool()[None, :, :, None]
    weights = torch.exp(log_decay[:, :, None] - log_decay[:, None]).masked_fill(~mask, 0)
    scores = torch.einsum("blgn,bmgn->blmg", t["C"], t["B"]).repeat_interleave(2, 3)
    expected = torch.einsum("blmh,bmh,bmhp->blhp", scores * weights, t["dt"], t["x"])
    assert_close("y", ops.ssd_scan(**t), expected, tolerance=1e-11)


def test_ssd_scan_keeps_steps_within_the_limit() -> None:
    t, _ = case_of("ssd_scan", "limit").build()
    dt = F.softplus(t.pop("dt") + t.pop("dt_bias"))
    assert ((dt < 0.1) | (dt > 0.5)).any()
    assert torch.equal(
        ops.ssd_scan(dt=dt.clamp(0.1, 0.5), **t), ops.ssd_scan(dt=dt, **t, dt_limit=(0.1, 0.5))
    )


@pytest.mark.parametrize("name", ["plain", "all", "K1", "K7", "dilation2", "dilation4-state"])
def test_causal_conv1d_is_torch_s_convolution(name: str) -> None:
    case = case_of("causal_conv1d", name)
    t, options = case.build()
    dilation = options.get("dilation", 1)
    reach = (t["weight"].shape[1] - 1) * dilation
    x = t["x"].transpose(1, 2)
    state = t.get("initial_state", x.new_zeros(*x.shape[:2], reach))
    padded = torch.cat([state, x], 2)
    expected = F.conv1d(
        padded[..., state.shape[2] - reach :],
        t["weight"][:, None],
        t.get("bias"),
        dilation=dilation,
        groups=len(t["weight"]),
    )
    expected = F.silu(expected) if options.get("activation") else expected
    y, final = ops.causal_conv1d(**t, **options, return_final_state=True)
    assert_close("y", y, expected.transpose(1, 2))
    assert torch.equal(final, padded[..., padded.shape[2] - state.shape[2] :])


def test_causal_conv1d_steps_over_absent_cells_and_stops_at_sequences() -> None:
    x = torch.tensor([[[1.0], [99.0], [2.0], [4.0], [8.0]]])
    weight = torch.tensor([[100.0, 10.0, 1.0]])
    seq_idx = torch.tensor([[0, -1, 0, 0, 1]])
    y, final = ops.causal_conv1d(x, weight, seq_idx=seq_idx, return_final_state=True)
    assert y.flatten().tolist() == [1, 0, 12, 124, 8]
    assert final.flatten().tolist() == [0, 8]
    state = torch.tensor([[[5.0, 7.0, 3.0]]])
    y, final = ops.causal_conv1d(x, weight, seq_idx=seq_idx, initial_state=state, return_final_state=True)
    assert y.flatten().tolist() == [731, 0, 312, 124, 8]
    assert final.flatten().tolist() == [0, 0, 8]
    y, final = ops.causal_conv1d(x, weight, seq_idx=seq_idx - 5, initial_state=state, return_final_state=True)
    assert y.flatten().tolist() == [0, 0, 0, 0, 0]
    assert final.flatten().tolist() == [5, 7, 3]


def test_long_event_gaps_keep_gradients_finite() -> None:
    # The decay underflows to 0; a backward that divides by it would give NaN.
    u = torch.randn(1, 6, 2, requires_grad=True)
    delta = torch.rand(1, 6, 2, requires_grad=True)
    A = torch.full((2, 3), -5.0, requires_grad=True)
    B = torch.randn(1, 6, 3, requires_grad=True)
    timesteps = torch.tensor([[1.0, 1e4, 1.0, 1e6, 1.0, 0.0]])
    for discretization in ("mamba", "zoh", "bilinear", "dirac"):
        y = ops.selective_scan(
            u, delta, A, B, B, delta_a=torch.ones(2), timesteps=timesteps, discretization=discretization
        )
        used = (u, A, B) if discretization == "dirac" else (u, delta, A, B)
        grads = torch.autograd.grad(y.sum(), used)
        assert all(torch.isfinite(grad).all() for grad in (y, *grads))


def test_zoh_has_its_limit_at_a_rate_of_zero() -> None:
    u = torch.ones(1, 2, 1, dtype=torch.float64)
    for kind in (torch.float64, torch.complex128):
        A = torch.zeros(1, 1, dtype=kind, requires_grad=True)
        y = ops.selective_scan(u, 0.5 * u, A, u, u, discretization="zoh")
        factor = 2 if kind.is_complex else 1
        assert y.flatten().tolist() == pytest.approx([0.5 * factor, 1.0 * factor])
        (grad,) = torch.autograd.grad(y.sum(), A)
        # d/dA of [g + (e g + g)], g = Δ + Δ²A/2, e = 1 + ΔA: Δ²/2 + (Δ² + Δ²)
        assert grad.real.item() == pytest.approx(factor * (0.125 + 0.25 + 0.25))
