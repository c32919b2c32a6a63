"""RG-LRU: against its recurrence in closed form, its initialisation, and the laws of cores."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nvsubq.cores import RGLRU, reorder_cache

BLOCKS = torch.tensor(
    [[0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 2, 2, 2], [-1, 4, -1, 4, 4, -1, 4, 5, -1, 5, 4, 4, -1], [-1] * 13]
)
OPTIONS = {
    "plain": {},
    "bias": {"bias": True, "expand": 2},
    "narrow": {"expand": 0.5, "conv_bias": False, "d_conv": 2, "c": 3.0},
    "one_wide": {"d_conv": 1, "a_init_range": (0.5, 0.5)},
    "portable": {"use_fast_path": False},
    "blocks": {"gate_blocks": 3, "a_init": "a_c"},
    "tanh": {"gelu": "tanh", "expand": 2, "gate_blocks": 2},
    "unscaled_first": {"normalize_first": False, "bias": True},
    "unscaled_first_tanh": {"normalize_first": False, "gelu": "tanh", "gate_blocks": 2},
}

every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(**options):
    return RGLRU(6, **{"dtype": torch.float64, **options})


def draw(length, batch=2):
    return torch.randn(batch, length, 6, dtype=torch.float64)


def closed_form(core, weights, h):
    """`s_i = sum_{j <= i} a^(c (r_{j+1} + ... + r_i)) sqrt(1 - a^(2 c r_j)) i_j x_j`, all pairs at once."""

    def linear(name, x):
        weight = weights[f"{name}.weight"]
        weight = torch.block_diag(*weight) if weight.dim() == 3 else weight
        return x @ weight.T + weights.get(f"{name}.bias", 0)

    gate = linear("gate_proj", h)
    if core.gelu == "erf":
        gate = gate / 2 * (1 + torch.erf(gate / math.sqrt(2)))
    else:
        gate = gate / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    x = linear("in_proj", h)
    K = core.d_conv
    padded = F.pad(x, (0, 0, K - 1, 0))
    x = sum(padded[:, j : j + x.shape[1]] * weights["conv1d.weight"][:, 0, j] for j in range(K))
    x = x + weights.get("conv1d.bias", 0)
    a = 1 / (1 + (-weights["a_log"][:, 0]).exp())
    power = core.c / (1 + (-linear("recurrent_gate_proj", x)).exp())
    scale = (1 - a ** (2 * power)).sqrt()
    if not core.normalize_first:
        scale = torch.cat([torch.ones_like(scale[:, :1]), scale[:, 1:]], 1)
    held = scale * x / (1 + (-linear("input_gate_proj", x)).exp())
    total = power.cumsum(1)
    later = torch.ones(h.shape[1], h.shape[1]).tril().bool()[..., None]
    spans = (total[:, :, None] - total[:, None, :]).masked_fill(~later, 0)
    decay = (a**spans).masked_fill(~later, 0)
    return linear("out_proj", gate * (decay * held[:, None]).sum(2))


@every_option
@pytest.mark.parametrize("length", [1, 2, 19])
def test_equals_the_closed_form(options, length, laws):
    core, h = make(**options), draw(length)
    weight = torch.randn_like(h)
    y, grad, grads = laws.gradients(core, h, weight)
    h = h.requires_grad_()
    weights = {name: p.detach().clone().requires_grad_() for name, p in core.named_parameters()}
    expected = closed_form(core, weights, h)
    laws.close(y, expected.detach())
    (expected * weight).sum().backward()
    laws.close(grad, h.grad)
    for name, p in weights.items():
        laws.close(grads[name], p.grad, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("length", [63, 196, 1000])
def test_equals_the_closed_form_on_long_walks(length, laws):
    core, h = make(), draw(length)
    with torch.no_grad():
        laws.close(core(h), closed_form(core, dict(core.named_parameters()), h), 1e-9)


@every_option
def test_streaming(options, laws):
    core, x = make(**options), draw(13, batch=3)
    laws.streaming(core, x)


@pytest.mark.parametrize("options", [{}, {"normalize_first": False}], ids=["scaled", "unscaled_first"])
def test_streaming_in_ragged_and_packed_batches(options, laws):
    core, x = make(bias=True, **options), draw(13, batch=3)
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
    core, x = make(bias=True), draw(13, batch=3)
    laws.walks(core, x)
    laws.lengths(core, x)
    laws.no_leak(core, x)


def test_a_row_begins_at_its_first_cell(laws):
    """Whatever is walked before it: nothing, absent cells, or chunks without a cell of this row."""
    core, x = make(normalize_first=False), draw(7, batch=4)
    seq_idx = torch.tensor([[5] * 7, [-1, -1, -1, 5, 5, 5, 5], [-1] * 6 + [0], [1, 1, 1, 1, 0, 0, 0]])
    order = torch.tensor([2, 0, 1, 3, 6, 5, 4])
    with torch.no_grad():
        want = core(x, seq_idx=seq_idx, order=order)
        cache = core.allocate_inference_cache(4, 7)
        assert not cache["begun"].any()
        first = core(x[:, :3], seq_idx=seq_idx[:, :3], order=order[:3], inference_cache=cache)
        assert cache["begun"].tolist() == [True, False, False, True]
        core(x[:, :0], inference_cache=cache)
        assert cache["begun"].tolist() == [True, False, False, True]
        # The fourth row's first sequence ends at a border of chunks: seq_idx is not told to the cache.
        second = core(
            x[:3, 3:], seq_idx=seq_idx[:3, 3:], order=order[3:] - 3, inference_cache=_rows(cache, 3)
        )
        laws.close(torch.cat([first[:3], second], 1), want[:3])


def _rows(cache, count):
    return reorder_cache(cache, torch.arange(count))


def test_gradcheck():
    core = RGLRU(3, d_conv=2, bias=True, dtype=torch.float64)
    x = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: core(x, reverse=True), (x, *core.parameters()))


def test_autocast(laws):
    laws.autocast(make(), draw(9))


def test_a_is_uniform_in_the_range():
    core = RGLRU(4096)
    a = core.a_log.sigmoid()
    low, high = 0.9, 0.999
    assert low - 1e-6 <= a.min() < low + 1e-3
    assert high - 1e-3 < a.max() <= high + 1e-6
    counts = a.flatten().histc(10, low, high)
    assert (counts - 409.6).abs().max() < 100  # five standard deviations of a tenth
    core = RGLRU(512, a_init_range=(0.2, 0.3))
    assert 0.2 <= core.a_log.sigmoid().min() < core.a_log.sigmoid().max() <= 0.3
    assert RGLRU(512, a_init_range=(0.99999999, 0.999999999)).a_log.isfinite().all()


def test_the_papers_initialisation_draws_a_to_the_c():
    core = RGLRU(512, a_init="a_c", c=8.0, a_init_range=(0.2, 0.3))
    decays = core.a_log.detach().double().sigmoid() ** 8
    assert 0.2 <= decays.min() < 0.21
    assert 0.29 < decays.max() <= 0.3


def test_long_memory_and_closed_gates_stay_finite():
    core = make()
    with torch.no_grad():
        core.a_log[0], core.a_log[1] = 80.0, -80.0  # a is 1 and 0 to rounding
    x = (100 * draw(50)).requires_grad_()
    y = core(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in core.parameters())


def test_cache(laws):
    core, x = make(), draw(6)
    cache = core.allocate_inference_cache(2, 6)
    assert {key: list(state.shape) for key, state in cache.items() if key != "seqlen_offset"} == {
        "conv_state": [2, 6, 4], "lrnn_state": [2, 6, 1], "ssm_state": [2, 6, 1]
    }  # fmt: skip
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            core(x[:, :5], inference_cache=cache)
            assert cache["ssm_state"] is cache["lrnn_state"]
            laws.close(cache["conv_state"], core.in_proj(x[:, 1:5]).transpose(1, 2))
            core.step(x[:, 5:], cache)
            assert cache["ssm_state"] is cache["lrnn_state"]
            laws.close(cache["conv_state"], core.in_proj(x[:, 2:]).transpose(1, 2))


def test_dtypes():
    core = RGLRU(8, dtype="bfloat16")
    assert {name for name, p in core.named_parameters() if p.dtype == torch.float32} == {"a_log"}
    assert core.a_log._no_weight_decay
    cache = core.allocate_inference_cache(2, 5)
    assert cache["conv_state"].dtype == torch.bfloat16
    with torch.no_grad():
        assert core(torch.randn(2, 5, 8).bfloat16(), inference_cache=cache).dtype == torch.bfloat16
        assert core.step(torch.randn(2, 1, 8).bfloat16(), cache)[0].dtype == torch.bfloat16
    assert cache["lrnn_state"].dtype == torch.float32
    assert RGLRU(8).allocate_inference_cache(2, 5, dtype=torch.bfloat16)["lrnn_state"].dtype == torch.float32
    assert RGLRU(8, device="meta").a_log.is_meta


def test_state_dict():
    assert {name: list(p.shape) for name, p in RGLRU(6, expand=2).state_dict().items()} == {
        "a_log": [12, 1],
        "gate_proj.weight": [12, 6],
        "in_proj.weight": [12, 6],
        "conv1d.weight": [12, 1, 4],
        "conv1d.bias": [12],
        "recurrent_gate_proj.weight": [12, 12],
        "recurrent_gate_proj.bias": [12],
        "input_gate_proj.weight": [12, 12],
        "input_gate_proj.bias": [12],
        "out_proj.weight": [6, 12],
    }
    biased = set(RGLRU(6, bias=True, conv_bias=False).state_dict()) - set(RGLRU(6).state_dict())
    assert biased == {"gate_proj.bias", "in_proj.bias", "out_proj.bias"}


def test_reset_follows_torch_generator():
    torch.manual_seed(3)
    expected = RGLRU(8)
    core = RGLRU(8)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.fill_(torch.nan)
    core.reset_parameters()
    assert all(p.isfinite().all() for p in core.parameters())
    torch.manual_seed(3)
    for a, b in zip(expected.parameters(), RGLRU(8).parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": 0}, r"^`c` \(=0\) must be positive\.$"),
        ({"a_init_range": (0.0, 0.9)}, r"`a_init_range` \(=\(0.0, 0.9\)\) must satisfy 0 < low <= high < 1"),
        ({"a_init_range": (0.9, 0.5)}, r"`a_init_range` \(=\(0.9, 0.5\)\) must satisfy"),
        ({"a_init_range": (0.9, 1)}, r"`a_init_range` \(=\(0.9, 1.0\)\) must satisfy"),
        ({"gate_blocks": 4}, r"`gate_blocks` \(=4\) must divide the inner width \(=6\)"),
        ({"a_init": "b"}, r"`a_init` \(='b'\) must be one of 'a', 'a_c'"),
        ({"gelu": "sigmoid"}, r"`gelu` \(='sigmoid'\) must be one of 'erf', 'tanh'"),
        ({"a_init_range": (0.9,)}, r"`a_init_range` \(=\(0.9,\)\) must be two finite numbers"),
        ({"expand": 0}, r"`expand` \(=0\) must give at least one channel of `d_model` \(=6\)"),
        ({"d_conv": 0}, r"`d_conv` \(=0\) must be at least 1"),
        ({"dtype": "int8"}, r"`dtype` \(='int8'\) must be a real floating dtype"),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        RGLRU(6, **options)


def test_what_cannot_be_called():
    core, x = make(), draw(5)
    cache = core.allocate_inference_cache(2, 5)
    with pytest.raises(TypeError, match="d_state"):
        RGLRU(d_model=64, d_state=1, d_conv=4)
    with pytest.raises(ValueError, match=r"`integration_timesteps` must be None: RGLRU has no use"):
        core(x, torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"`integration_timesteps` must be None: RGLRU has no use"):
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
