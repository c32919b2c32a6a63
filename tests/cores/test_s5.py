"""S5 against s5-pytorch (same weights), and against cores.md's formulas cell by cell."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from nvsubq.cores import S5
from nvsubq.cores.hippo import hippo_blocks, hippo_normal_eigen

with warnings.catch_warnings():  # it uses `torch.jit.script`, which torch has deprecated
    warnings.simplefilter("ignore")
    from s5.init import make_DPLR_HiPPO
    from s5.s5_model import S5SSM

# fp32 against fp32: s5-pytorch computes its phases in fp32, so a whole core agrees to 1e-4 only
ORACLE = {"rtol": 1e-4, "atol": 1e-4}
LENGTHS = [1, 2, 63, 196, 1000]


def make(d_state: int = 8, **options: Any) -> S5:
    torch.manual_seed(3)
    return S5(6, d_state, **options)


def by_hand(core: S5, u: Tensor, dt_k: Tensor | None = None) -> Tensor:
    """cores.md's equations, one cell after the other, in complex128."""
    rate, B, C = (torch.view_as_complex(p.double()) for p in (core.A, core.B, core.C))
    if core.clip_eigs:
        rate = torch.complex(rate.real.minimum(torch.tensor(-1e-4)), rate.imag)
    dt = core.log_dt.double().exp() * core.step_rescale
    u = u.double()
    s, outputs = torch.zeros(len(u), core.d_state, dtype=torch.complex128), []
    for k in range(u.shape[1]):
        dt_a = dt if dt_k is None else dt_k[:, k, None] * dt
        dt_b = dt_a if core.symmetric_timesteps else dt
        if core.discretization == "bilinear":
            decay, gamma = (1 + dt_a * rate / 2) / (1 - dt_a * rate / 2), dt_b / (1 - dt_b * rate / 2)
        else:
            decay = torch.exp(dt_a * rate)
            gamma = 1.0 if core.discretization == "dirac" else (torch.exp(dt_b * rate) - 1) / rate
        s = decay * s + gamma * (u[:, k].to(B.dtype) @ B.T)
        outputs.append((2 if core.conj_sym else 1) * (s @ C.T).real + core.D.double() * u[:, k])
    return torch.stack(outputs, 1)


class TestOracle:
    @pytest.mark.parametrize("length", LENGTHS)
    @pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
    def test_s5_pytorch(self, length, discretization):
        ours = make(16, discretization=discretization)
        torch.manual_seed(4)
        size = torch.zeros(16, dtype=torch.complex64)
        eye = torch.eye(16, dtype=torch.complex64)
        theirs = S5SSM(size, eye, eye, 6, 16, 0.001, 0.1, discretization=discretization, bcInit="dense")
        named = {"Lambda": ours.A, "B": ours.B, "C": ours.C, "D": ours.D, "log_step": ours.log_dt}
        with torch.no_grad():
            for name, value in named.items():
                value = torch.view_as_complex(value) if name in ("Lambda", "C") else value
                target = getattr(theirs, name)
                target.data = value.reshape(target.shape).clone()

        x = torch.randn(2, length, 6, requires_grad=True)
        x_other = x.detach().clone().requires_grad_()
        got = ours(x)
        want = torch.stack([theirs(row) for row in x_other])
        torch.testing.assert_close(got, want, **ORACLE)
        weight = torch.randn_like(got)
        (got * weight).sum().backward()
        (want * weight).sum().backward()
        pairs = {name: (value.grad, getattr(theirs, name).grad) for name, value in named.items()}
        pairs["x"] = (x.grad, x_other.grad)
        for name, (mine, other) in pairs.items():
            other = (torch.view_as_real(other) if other.is_complex() else other).reshape(mine.shape)
            scale = other.abs().max().clamp(min=1.0)
            text = {"msg": lambda text, name=name: f"{name}: {text}"}
            torch.testing.assert_close(mine / scale, other / scale, **ORACLE, **text)

    def test_hippo(self):
        eigenvalues, basis = hippo_normal_eigen(12)
        want = torch.as_tensor(make_DPLR_HiPPO(12)[0])
        torch.testing.assert_close(eigenvalues, want, rtol=1e-12, atol=1e-12)
        eye = torch.eye(12, dtype=torch.complex128)
        torch.testing.assert_close(basis.mH @ basis, eye, rtol=1e-12, atol=1e-12)
        n = torch.arange(12.0, dtype=torch.float64)
        normal = (basis * eigenvalues) @ basis.mH
        skew = torch.sqrt(torch.outer(2 * n + 1, 2 * n + 1)) / 2
        want = torch.triu(skew, 1) - torch.tril(skew, -1) - torch.eye(12) / 2
        torch.testing.assert_close(normal.real, want, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("conj_sym", [False, True])
    def test_blocks(self, conj_sym):
        """Block after block, each as s5-pytorch diagonalises it; V^-1 and V stay inverse."""
        size = 12 if conj_sym else 6
        values, basis = hippo_blocks(12, 2, half=conj_sym)
        want = torch.as_tensor(make_DPLR_HiPPO(size)[0])[:6]
        torch.testing.assert_close(values, want.repeat(2), rtol=1e-12, atol=1e-12)
        assert basis.shape == (2 * size, 12)
        assert not basis[:size, 6:].any()
        assert not basis[size:, :6].any()
        eye = torch.eye(12, dtype=torch.complex128)
        torch.testing.assert_close(basis.mH @ basis, eye, rtol=1e-12, atol=1e-12)
        core = S5(6, 12, conj_sym=conj_sym, blocks=2, dtype=torch.float64)
        torch.testing.assert_close(torch.view_as_complex(core.A.detach()), values)


class TestFormulas:
    @pytest.mark.parametrize("timesteps", [False, True])
    @pytest.mark.parametrize(
        "options",
        [{}, {"conj_sym": True}, {"symmetric_timesteps": True, "blocks": 2}, {"clip_eigs": True}],
        ids=str,
    )
    @pytest.mark.parametrize("discretization", ["zoh", "bilinear", "dirac", "async"])
    def test_by_hand(self, discretization, options, timesteps):
        """In fp64 to 1e-10, with gradients."""
        core = make(discretization=discretization, **options, step_rescale=1.7, dtype=torch.float64)
        core.A.data[0, 0] = 0.01  # has been trained past stability
        x = torch.randn(2, 17, 6, dtype=torch.float64, requires_grad=True)
        dt = torch.rand(2, 17, dtype=torch.float64, requires_grad=True)
        args = (dt,) if timesteps else ()
        wanted = [x, *args, *core.parameters()]
        got, want = core(x, *args), by_hand(core, x, *args)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        weight = torch.randn_like(got)
        got = torch.autograd.grad((got * weight).sum(), wanted)
        want = torch.autograd.grad((want * weight).sum(), wanted)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("conj_sym", [False, True])
    @torch.no_grad()
    def test_worst_state(self, conj_sym):
        """Phases of a hundred radians a step: fp32 in, fp32 out, but every state within 1e-5 of fp64."""
        core = make(64, conj_sym=conj_sym)
        core.log_dt.fill_(-2.3)
        phases = core.A[:, 1] * core.log_dt.exp()
        assert phases.abs().max() > 50
        x = torch.randn(2, 196, 6)
        cache, exact = core.allocate_inference_cache(2, 196), core.double().allocate_inference_cache(2, 196)
        core.float()(x, inference_cache=cache)
        core.double()(x.double(), inference_cache=exact)
        error = (cache["lrnn_state"] - exact["lrnn_state"]).abs()
        assert error.max() / exact["lrnn_state"].abs().max() < 1e-5

    def test_async_is_zoh(self):
        x, dt = torch.randn(2, 9, 6), torch.rand(2, 9)
        zoh, other = make(), make(discretization="async")
        assert torch.equal(zoh(x), other(x))
        assert torch.equal(zoh(x, dt), other(x, dt))

    def test_unit_timesteps_are_none(self):
        x = torch.randn(2, 30, 6)
        for name in S5.discretizations:
            core = make(discretization=name)
            torch.testing.assert_close(core(x, torch.ones(2, 30)), core(x), rtol=1e-5, atol=1e-5)

    def test_conj_sym_is_the_whole_system(self):
        """N states of a conjugate half, twice their real part, are the 2N states of both halves."""
        half, whole = make(5, conj_sym=True), make(10)
        with torch.no_grad():
            for name, axis in (("A", 0), ("B", 0), ("C", 1)):
                value = getattr(half, name)
                getattr(whole, name).copy_(torch.cat([value, value * torch.tensor([1.0, -1.0])], axis))
            whole.log_dt.copy_(half.log_dt.repeat(2))
            whole.D.copy_(half.D)
        x = torch.randn(2, 40, 6)
        torch.testing.assert_close(half(x), whole(x), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("discretization", ["zoh", "bilinear", "dirac"])
    def test_rate_zero_and_tiny(self, discretization):
        """The input coefficient has its limit, dt, at a rate of 0, and finite gradients."""
        core = make(3, discretization=discretization)
        with torch.no_grad():
            core.A.copy_(torch.tensor([[0.0, 0.0], [-1e-9, 1e-9], [-1e-3, 0.0]]))
        x = torch.ones(1, 4, 6)
        y = core(x)
        y.square().sum().backward()
        for name, parameter in core.named_parameters():
            assert torch.isfinite(parameter.grad).all(), name
        core.double()
        with torch.no_grad():
            core.A[0] = torch.tensor([-1e-7, 0.0])  # by hand needs a rate to divide by
            torch.testing.assert_close(y.double(), by_hand(core, x), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("discretization", ["zoh", "dirac"])
    def test_long_event_gaps(self, discretization):
        """Fault 4: decays that underflow give finite gradients, and forget."""
        core = make(discretization=discretization)
        x = torch.randn(1, 12, 6, requires_grad=True)
        dt = torch.ones(1, 12)
        dt[:, 6] = 1e6
        dt.requires_grad_()
        y = core(x, dt)
        y.sum().backward()
        for name, tensor in [("x", x), ("dt", dt), *core.named_parameters()]:
            assert torch.isfinite(tensor.grad).all(), name
        changed = x.detach().clone()
        changed[:, :3] += 1.0
        torch.testing.assert_close(core(changed, dt)[:, 6:], y[:, 6:], rtol=1e-5, atol=1e-5)

    def test_discretizations_and_rescale_matter(self):
        x = torch.randn(2, 9, 6)
        outputs = [make(discretization=name)(x) for name in ("zoh", "bilinear", "dirac")]
        outputs += [make(step_rescale=2.0)(x), make(conj_sym=True)(x)]
        for i, first in enumerate(outputs):
            assert all((first - other).abs().max() > 1e-4 for other in outputs[:i])


class TestParameters:
    @pytest.mark.parametrize("conj_sym", [False, True])
    def test_state_dict(self, conj_sym):
        core = make(4, conj_sym=conj_sym)
        shapes = {key: tuple(value.shape) for key, value in core.state_dict().items()}
        assert shapes == {"A": (4, 2), "B": (4, 6, 2), "C": (6, 4, 2), "D": (6,), "log_dt": (4,)}
        for parameter in (core.A, core.D, core.log_dt):
            assert parameter._no_weight_decay

    def test_initial_values(self):
        torch.manual_seed(0)
        core = S5(200, 32, conj_sym=True, dt_min=0.01, dt_max=0.2, dtype=torch.bfloat16)
        assert core.A.dtype == core.D.dtype == core.log_dt.dtype == torch.float32
        assert core.B.dtype == core.C.dtype == torch.bfloat16
        torch.testing.assert_close(core.A[:, 0], torch.full((32,), -0.5))
        torch.testing.assert_close(
            core.A[:, 1].double(), hippo_normal_eigen(64)[0].imag[:32].float().double()
        )
        assert (core.A[:, 1] < 0).all()  # one of each conjugate pair
        assert 0.0099 < core.log_dt.exp().min() < 0.02
        assert 0.1 < core.log_dt.exp().max() < 0.201
        # complex norms: V is unitary, so E|B|^2 = 1/d_model and E|C|^2 = 1/(2N)
        assert core.B.float().square().sum(-1).mean().item() == pytest.approx(1 / 200, rel=0.1)
        assert core.C.float().square().sum(-1).mean().item() == pytest.approx(1 / 64, rel=0.1)

    def test_a_real_system_without_conj_sym(self):
        """All eigenpairs of a real system: the output's imaginary part, which Re drops, was 0."""
        core = make(10)
        B, C = (torch.view_as_complex(p.detach().double()) for p in (core.B, core.C))
        _, basis = hippo_normal_eigen(10)
        assert (basis @ B).imag.abs().max() < 1e-6
        assert (C @ basis.mH).imag.abs().max() < 1e-6

    def test_reset_parameters(self):
        core = make()
        want = {name: value.clone() for name, value in core.state_dict().items()}
        with torch.no_grad():
            for parameter in core.parameters():
                parameter.zero_()
        torch.manual_seed(3)
        core.reset_parameters()
        for name, value in core.state_dict().items():
            assert torch.equal(value, want[name]), name

    def test_cache(self):
        cache = make().allocate_inference_cache(2, 50)
        assert cache.keys() == {"lrnn_state", "ssm_state", "seqlen_offset"}
        assert cache["lrnn_state"] is cache["ssm_state"]
        assert cache["lrnn_state"].shape == (2, 8)
        assert cache["lrnn_state"].dtype == torch.complex64
        assert make(dtype="float64").allocate_inference_cache(2, 50)["lrnn_state"].dtype == torch.complex128

    @pytest.mark.parametrize("grad", [True, False])
    def test_state_names_stay_one_tensor(self, grad):
        core = make()
        with torch.set_grad_enabled(grad):
            cache = core.allocate_inference_cache(2, 5)
            core(torch.randn(2, 4, 6), inference_cache=cache)
            assert cache["lrnn_state"] is cache["ssm_state"]
            core.step(torch.randn(2, 1, 6), cache)
            assert cache["lrnn_state"] is cache["ssm_state"]

    @torch.no_grad()
    def test_parameters_are_read_at_each_step(self):
        """The cache keeps no copies of matrices: training between two steps is seen."""
        core, x = make(), torch.randn(1, 1, 6)
        first, _ = core.step(x, core.allocate_inference_cache(1, 5))
        cache = core.allocate_inference_cache(1, 5)
        core.C.mul_(2.0)
        second, _ = core.step(x, cache)
        torch.testing.assert_close(second - core.D * x, 2 * (first - core.D * x))

    @torch.no_grad()
    def test_step_without_length_axis(self):
        core, x = make(), torch.randn(2, 6)
        caches = [core.allocate_inference_cache(2, 5) for _ in range(2)]
        for dt in (None, torch.rand(2)):
            flat, _ = core.step(x, caches[0], dt)
            long, _ = core.step(x[:, None], caches[1], None if dt is None else dt[:, None])
            assert flat.shape == (2, 6)
            assert torch.equal(flat, long[:, 0])


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (
                {"discretization": "euler"},
                "`discretization` (='euler') of S5 must be one of 'zoh', 'bilinear', 'dirac', 'async'.",
            ),
            ({"d_state": 0}, "`d_state` (=0) must be at least 1."),
            ({"blocks": 3}, "`blocks` (=3) must divide `d_state` (=8)."),
            ({"step_rescale": 0.0}, "`step_rescale` (=0.0) must be positive."),
            ({"dt_max": 1e-4}, "`dt_min` (=0.001) must be positive and at most `dt_max` (=0.0001)."),
        ],
    )
    def test_constructor(self, options, text):
        with pytest.raises(ValueError, match="`") as error:
            S5(6, **({"d_state": 8} | options))
        assert str(error.value) == text
