"""Mamba2: every option against the matrix form of its recurrence, and the laws of cores."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nvsubq.cores import Mamba2
from nvsubq.cores.norm import GroupRMSNorm

BLOCKS = torch.tensor(
    [[0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 2, 2, 2], [-1, 4, -1, 4, 4, -1, 4, 5, -1, 5, 4, 4, -1], [-1] * 13]
)
OPTIONS = {
    "plain": {},
    "groups": {"ngroups": 2, "headdim": 2},
    "mlp": {"d_ssm": 8, "bias": True},
    "mlp_groups_hdim": {"d_ssm": 8, "headdim": 2, "ngroups": 2, "D_has_hdim": True, "norm_before_gate": True},
    "no_norm": {"rmsnorm": False, "D_has_hdim": True},
    "norm_first": {"norm_before_gate": True, "bias": True, "conv_bias": False},
    "one_wide": {"d_conv": 1, "headdim": 1, "d_state": 1},
    "clamped": {"dt_limit": (0.02, 0.05), "conv_init": 0.3, "chunk_size": 3},
    "wide": {"expand": 1.5, "headdim": 3, "d_conv": 2},
    "portable": {"use_mem_eff_path": False},
}

every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(**options):
    core = Mamba2(6, **{"d_state": 5, "headdim": 4, "dtype": torch.float64, **options})
    with torch.no_grad():  # no ones or zeros that would hide a wrong factor
        for parameter in core.parameters():
            parameter.add_(0.3 * torch.rand_like(parameter))
    return core


def draw(length, batch=2):
    return torch.randn(batch, length, 6, dtype=torch.float64)


def matrix_form(core, weights, h):
    """`y = ((exp(S_i - S_j), j <= i) * C B^T) (delta x) + D x` for each head: the dual form, L x L."""
    length = h.shape[1]
    N, P, G, D = core.d_state, core.headdim, core.ngroups, core.d_ssm
    H, d_mlp = D // P, int(core.expand * 6) - D
    rows = h @ weights["in_proj.weight"].T + weights.get("in_proj.bias", 0)
    z0, x0, z, x, B, C, dt = torch.split(rows, [d_mlp, d_mlp, D, D, G * N, G * N, H], -1)
    xBC = torch.cat([x, B, C], -1).transpose(1, 2)
    K = weights["conv1d.weight"].shape[-1]
    xBC = F.conv1d(
        F.pad(xBC, (K - 1, 0)), weights["conv1d.weight"], weights.get("conv1d.bias"), groups=xBC.shape[1]
    )
    xBC = F.silu(xBC).transpose(1, 2)
    delta = F.softplus(dt + weights["dt_bias"]).clamp(*core.dt_limit)
    heads = []
    for n in range(H):
        x = xBC[..., n * P : (n + 1) * P]
        g = n // (H // G)
        B = xBC[..., D + g * N : D + (g + 1) * N]
        C = xBC[..., D + (G + g) * N : D + (G + g + 1) * N]
        S = (delta[..., n] * -weights["A_log"][n].exp()).cumsum(1)
        decay = (
            (S[:, :, None] - S[:, None, :])
            .masked_fill(~torch.ones(length, length).tril().bool(), -math.inf)
            .exp()
        )
        skip = weights["D"][n * P : (n + 1) * P] if core.D_has_hdim else weights["D"][n]
        heads.append((decay * (C @ B.transpose(1, 2))) @ (delta[..., n, None] * x) + skip * x)
    y = torch.cat(heads, -1)

    def norm(y):
        blocks = y.split(D // G, -1)
        return (
            torch.cat([b / (b.square().mean(-1, keepdim=True) + 1e-5).sqrt() for b in blocks], -1)
            * weights["norm.weight"]
        )

    if not core.rmsnorm:
        y = y * z * z.sigmoid()
    elif core.norm_before_gate:
        y = norm(y) * z * z.sigmoid()
    else:
        y = norm(y * z * z.sigmoid())
    y = torch.cat([z0 * z0.sigmoid() * x0, y], -1)
    return y @ weights["out_proj.weight"].T + weights.get("out_proj.bias", 0)


@every_option
@pytest.mark.parametrize("length", [1, 2, 19])
def test_equals_the_matrix_form(options, length, laws):
    core, h = make(**options), draw(length)
    weight = torch.randn_like(h)
    y, grad, grads = laws.gradients(core, h, weight)
    h = h.requires_grad_()
    weights = {name: p.detach().clone().requires_grad_() for name, p in core.named_parameters()}
    expected = matrix_form(core, weights, h)
    laws.close(y, expected.detach())
    (expected * weight).sum().backward()
    laws.close(grad, h.grad)
    for name, p in weights.items():
        laws.close(grads[name], torch.zeros_like(p) if p.grad is None else p.grad, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("length", [63, 196, 1000])
def test_equals_the_matrix_form_on_long_walks(length, laws):
    core, h = make(ngroups=2, d_ssm=8), draw(length)
    with torch.no_grad():
        laws.close(core(h), matrix_form(core, dict(core.named_parameters()), h), 1e-9)


@every_option
def test_streaming(options, laws):
    core, x = make(**options), draw(13, batch=3)
    laws.streaming(core, x)


def test_streaming_in_ragged_and_packed_batches(laws):
    core, x = make(d_ssm=8, bias=True), draw(13, batch=3)
    laws.ragged_prefill(core, x)
    laws.packed_prefill(core, x)
    laws.truncated(core, x)
    laws.addresses_stay(core, x)
    laws.empty(core, x)


@every_option
@pytest.mark.parametrize("reverse", [True, False])
def test_sequences(options, reverse, laws):
    laws.sequences(make(**options), draw(13, batch=3), BLOCKS, reverse=reverse)


def test_walks_lengths_and_leaks(laws):
    core, x = make(d_ssm=8, bias=True, ngroups=2), draw(13, batch=3)
    laws.walks(core, x)
    laws.lengths(core, x)
    laws.no_leak(core, x)


@pytest.mark.parametrize("options", [{}, {"d_ssm": 4, "norm_before_gate": True}], ids=["plain", "mlp"])
def test_gradcheck(options):
    core = Mamba2(4, d_state=2, d_conv=2, headdim=2, expand=2, dtype=torch.float64, **options)
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: core(x, reverse=True), (x, *core.parameters()))


def test_autocast(laws):
    laws.autocast(make(ngroups=2, d_ssm=8), draw(9))


def test_dtypes():
    core = Mamba2(8, d_state=4, headdim=4, dtype="bfloat16")
    assert {name for name, p in core.named_parameters() if p.dtype == torch.float32} == {
        "A_log",
        "D",
        "dt_bias",
    }
    cache = core.allocate_inference_cache(2, 5)
    assert cache["conv_state"].dtype == torch.bfloat16
    assert cache["lrnn_state"].dtype == torch.float32
    with torch.no_grad():
        assert core(torch.randn(2, 5, 8).bfloat16(), inference_cache=cache).dtype == torch.bfloat16
        assert core.step(torch.randn(2, 1, 8).bfloat16(), cache)[0].dtype == torch.bfloat16
    assert cache["lrnn_state"].dtype == torch.float32
    core = Mamba2(8, d_state=4, headdim=4)
    assert core.allocate_inference_cache(2, 5, dtype=torch.bfloat16)["lrnn_state"].dtype == torch.float32
    assert Mamba2(8, d_state=4, headdim=4, device="meta").A_log.is_meta


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"conv_bias": False},
            {
                "dt_bias": [2],
                "A_log": [2],
                "D": [2],
                "in_proj.weight": [128 * 2 + 2 * 128 + 2, 64],
                "conv1d.weight": [128 + 2 * 128, 1, 4],
                "norm.weight": [128],
                "out_proj.weight": [64, 128],
            },
        ),
        (
            {"d_ssm": 64, "headdim": 16, "ngroups": 2, "d_state": 8, "D_has_hdim": True, "bias": True},
            {
                "dt_bias": [4],
                "A_log": [4],
                "D": [64],
                "in_proj.weight": [2 * 128 + 2 * 2 * 8 + 4, 64],
                "in_proj.bias": [2 * 128 + 2 * 2 * 8 + 4],
                "conv1d.weight": [64 + 2 * 2 * 8, 1, 4],
                "conv1d.bias": [64 + 2 * 2 * 8],
                "norm.weight": [64],
                "out_proj.weight": [64, 128],
                "out_proj.bias": [64],
            },
        ),
    ],
)
def test_state_dict_is_that_of_mamba_ssm(options, expected):
    assert {name: list(p.shape) for name, p in Mamba2(64, **options).state_dict().items()} == expected
    assert "norm.weight" not in Mamba2(64, rmsnorm=False).state_dict()


def test_init():
    core = Mamba2(512, headdim=1, A_init_range=(2, 4), dt_min=0.01, dt_max=0.02, conv_init=0.1)
    A, dt = core.A_log.exp(), F.softplus(core.dt_bias)
    assert 2 <= A.min() < 2.05
    assert 3.95 < A.max() <= 4
    assert abs(A.mean() - 3) < 0.1
    assert 0.00999 < dt.min() < 0.0101
    assert 0.0198 < dt.max() < 0.02001
    assert 0.099 < core.conv1d.weight.max() <= 0.1
    assert torch.equal(core.D, torch.ones(1024))
    assert torch.allclose(F.softplus(Mamba2(8, headdim=1, dt_init_floor=0.5).dt_bias), torch.tensor(0.5))
    assert {name for name, p in core.named_parameters() if getattr(p, "_no_weight_decay", False)} == {
        "A_log", "D", "dt_bias"
    }  # fmt: skip


def test_reset_follows_torch_generator():
    torch.manual_seed(3)
    expected = Mamba2(8, headdim=4, conv_init=0.1)
    core = Mamba2(8, headdim=4, conv_init=0.1)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.fill_(torch.nan)
    core.reset_parameters()
    assert all(p.isfinite().all() for p in core.parameters())
    torch.manual_seed(3)
    again = Mamba2(8, headdim=4, conv_init=0.1)
    for a, b in zip(expected.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_conv_state_holds_inputs(laws):
    core, x = make(), draw(6)
    cache = core.allocate_inference_cache(2, 6)
    with torch.no_grad():
        core(x, inference_cache=cache)
        rows = core.in_proj(x)[..., 12 : 12 + 12 + 10]
    laws.close(cache["conv_state"], rows[:, -4:].transpose(1, 2))


def test_options_reach_the_ops(monkeypatch):
    import nvsubq.cores.mamba2 as module

    seen = []
    for name in ("ssd_scan", "causal_conv1d", "ssd_state_update", "causal_conv1d_update"):
        op = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, op=op, name=name, **k: seen.append((name, k)) or op(*a, **k)
        )
    core = Mamba2(8, headdim=4, d_state=4, chunk_size=7, use_mem_eff_path=False)
    with torch.no_grad():
        core(torch.randn(1, 5, 8))
        core.step(torch.randn(1, 1, 8), core.allocate_inference_cache(1, 1))
    assert [name for name, _ in seen] == [
        "causal_conv1d",
        "ssd_scan",
        "causal_conv1d_update",
        "ssd_state_update",
    ]
    assert all(k["backend"] == "torch" for _, k in seen)
    assert seen[1][1]["chunk_size"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 48}, r"^`headdim` \(=64\) must divide `d_ssm` \(=96\): one of 1, 2, 3, 4, .* 48, 96\.$"),
        ({"d_model": 64, "d_ssm": 100}, r"`headdim` \(=64\) must divide `d_ssm` \(=100\): one of 1, 2, 4, 5"),
        ({"headdim": 0}, r"`headdim` \(=0\) must divide `d_ssm` \(=128\)"),
        ({"d_ssm": 192}, r"`d_ssm` \(=192\) must lie between 1 and the inner width .* \(=128\)"),
        ({"d_ssm": 0}, r"`d_ssm` \(=0\) must lie between 1"),
        ({"ngroups": 3}, r"`ngroups` \(=3\) must divide the number of heads .* \(=128 / 64 = 2\)"),
        ({"ngroups": 0}, r"`ngroups` \(=0\) must divide"),
        ({"rmsnorm": False, "norm_before_gate": True}, r"`norm_before_gate` \(=True\) must be False with"),
        ({"A_init_range": (0, 16)}, r"`A_init_range` \(=\(0.0, 16.0\)\) must be positive"),
        ({"A_init_range": (16, 1)}, r"`A_init_range` \(=\(16, 1\)\) must be two numbers, the lesser first"),
        ({"dt_limit": (0.1,)}, r"`dt_limit` \(=\(0.1,\)\) must be two numbers"),
        ({"dt_limit": (-1, 1)}, r"`dt_limit` \(=\(-1.0, 1.0\)\) must not be negative"),
        ({"dt_min": 0.2}, r"`dt_min` \(=0.2\) must be positive and at most `dt_max` \(=0.1\)"),
        ({"conv_init": -0.1}, r"`conv_init` \(=-0.1\) must be at least 0"),
        ({"chunk_size": 0}, r"`chunk_size` \(=0\) must be at least 1"),
        ({"d_state": 0}, r"`d_state` \(=0\) must be at least 1"),
        ({"d_conv": 0}, r"`d_conv` \(=0\) must be at least 1"),
        ({"d_model": 0}, r"`d_model` \(=0\) must be at least 1"),
        ({"dtype": "int8"}, r"`dtype` \(='int8'\) must be a real floating dtype"),
    ],
)  # fmt: skip
def test_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        Mamba2(**{"d_model": 64, **options})


def test_what_cannot_be_called():
    core, x = make(), draw(5)
    cache = core.allocate_inference_cache(2, 5)
    with pytest.raises(TypeError, match="use_fast_path"):
        Mamba2(64, use_fast_path=False)
    with pytest.raises(ValueError, match=r"`integration_timesteps` must be None: Mamba2 has no use"):
        core(x, torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"`integration_timesteps` must be None: Mamba2 has no use"):
        core.step(x[:, :1], cache, torch.ones(2))
    with pytest.raises(ValueError, match=r"`hidden_states` must have shape \[B, L, 6\], got \[2, 5, 7\]"):
        core(torch.randn(2, 5, 7))
    with pytest.raises(
        ValueError, match=r"`hidden_states` of a step must have shape \[B, 1, 6\], got \[2, 5, 6\]"
    ):
        core.step(x, cache)
    with pytest.raises(
        ValueError, match=r"`order` \(shape \[2, 5\]\) must have shape \[L\]: a core walks one list"
    ):
        core(x, order=torch.arange(5).repeat(2, 1))
    with pytest.raises(
        ValueError, match=r"`reverse` \(=\[True, False\]\) must be True or False: a core walks one way"
    ):
        core(x, reverse=[True, False])
    with pytest.raises(ValueError, match=r"`reverse` \(=True\) must be False with an `inference_cache`"):
        core(x, inference_cache=cache, reverse=True)
    with pytest.raises(ValueError, match=r"holds 2 sequences, the input has 1"):
        core(x[:1], inference_cache=cache)


@pytest.mark.parametrize("groups", [1, 3])
def test_norm_gradients(groups):
    norm = GroupRMSNorm(6, groups, dtype=torch.float64)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def run(x, weight):
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(run, (x, weight))
    assert torch.autograd.gradcheck(run, (x[:, :0], weight))


def test_norm_is_fp32_inside():
    x = 300 * torch.randn(4, 64).half()  # the sum of squares overflows in fp16
    norm = GroupRMSNorm(64)
    expected = F.rms_norm(x.float(), (64,), eps=1e-5)
    torch.testing.assert_close(norm(x).float(), expected, rtol=1e-3, atol=1e-3)
    assert norm(x).dtype == torch.float16
    with pytest.raises(ValueError, match=r"`width` \(=64\) must be divisible by `groups` \(=3\)"):
        GroupRMSNorm(64, 3)
