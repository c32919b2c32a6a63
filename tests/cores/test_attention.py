"""Attention: against softmax written out, and the laws of cores with its masks and its cache."""

from __future__ import annotations

import math

import pytest
import torch

from nvsubq.cores import Attention

BLOCKS = torch.tensor(
    [[0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 2, 2, 2], [-1, 4, -1, 4, 4, -1, 4, 5, -1, 5, 4, 4, -1], [-1] * 13]
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(**options):
    return Attention(6, **{"num_heads": 2, "bias": True, "dtype": torch.float64, **options})


def dense(core, x, seen):
    """Softmax attention cell by cell: `seen(i, j)` says whether cell i sees cell j."""
    weights = dict(core.named_parameters())
    width = core.d_model // core.num_heads
    y = torch.zeros_like(x)
    rows = x @ weights["in_proj.weight"].T + weights["in_proj.bias"]
    q, k, v = rows[..., : core.d_model], rows[..., core.d_model : -core.d_model], rows[..., -core.d_model :]
    for i in range(x.shape[1]):
        cells = [j for j in range(x.shape[1]) if seen(i, j)]
        for h in range(core.num_heads):
            part = slice(h * width, (h + 1) * width)
            scores = torch.stack([(q[:, i, part] * k[:, j, part]).sum(-1) for j in cells], -1) / math.sqrt(
                width
            )
            shares = scores.exp() / scores.exp().sum(-1, keepdim=True)
            y[:, i, part] = sum(shares[:, n, None] * v[:, j, part] for n, j in enumerate(cells))
    return y @ weights["out_proj.weight"].T + weights["out_proj.bias"]


@pytest.mark.parametrize("length", [1, 2, 9])
def test_equals_softmax_written_out(length, laws):
    x = torch.randn(2, length, 6, dtype=torch.float64)
    for causal in (True, False):
        core = make(causal=causal)
        laws.close(core(x), dense(core, x, lambda i, j, causal=causal: j <= i or not causal))


def test_causal_follows_the_walk(laws):
    core = make()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    order = torch.randperm(9)
    rank = order.argsort().tolist()
    laws.close(core(x, order=order), dense(core, x, lambda i, j: rank[j] <= rank[i]))
    laws.close(core(x, order=order, reverse=True), dense(core, x, lambda i, j: rank[j] >= rank[i]))


def test_not_causal_sees_all_whatever_the_walk(laws):
    core = make(causal=False)
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    assert torch.equal(core(x, order=torch.randperm(9), reverse=True), core(x))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
def test_sequences(causal, reverse, laws):
    core = make(causal=causal)
    x = torch.randn(3, 13, 6, dtype=torch.float64)
    laws.sequences(core, x, BLOCKS, reverse=reverse)


@pytest.mark.parametrize("causal", [True, False])
def test_lengths_and_leaks(causal, laws):
    core = make(causal=causal)
    x = torch.randn(3, 13, 6, dtype=torch.float64)
    laws.lengths(core, x)
    laws.no_leak(core, x)


def test_sequences_along_another_order(laws):
    core = make()
    x = torch.randn(3, 13, 6, dtype=torch.float64)
    order = torch.randperm(13)
    laws.close(
        core(x, order=order, seq_idx=BLOCKS), core(x[:, order], seq_idx=BLOCKS[:, order])[:, order.argsort()]
    )


def test_streaming(laws):
    core = make()
    x = torch.randn(3, 13, 6, dtype=torch.float64)
    laws.streaming(core, x)
    laws.addresses_stay(core, x)
    laws.ragged_prefill(core, x)
    laws.packed_prefill(core, x)
    laws.truncated(core, x)


def test_walks_and_empty(laws):
    core = make()
    x = torch.randn(3, 13, 6, dtype=torch.float64)
    laws.walks(core, x)
    laws.empty(core, x)
    laws.empty(make(), x)


def test_order_with_a_cache(laws):
    core = make()
    x = torch.randn(2, 8, 6, dtype=torch.float64)
    cache = core.allocate_inference_cache(2, 8)
    order = torch.randperm(4)
    parts = [core(part, order=order, inference_cache=cache) for part in x.split(4, 1)]
    both = torch.cat([order, order + 4])
    laws.close(torch.cat(parts, 1), core(x, order=both))


def test_autocast_and_bf16(laws):
    laws.autocast(make(), torch.randn(2, 9, 6))
    core = Attention(8, dtype="bfloat16")
    x = torch.randn(2, 5, 8, dtype=torch.bfloat16)
    assert core(x).dtype == torch.bfloat16
    cache = core.allocate_inference_cache(2, 5)
    assert cache["key_cache"].dtype == torch.bfloat16
    narrow = make(dtype=torch.float32).allocate_inference_cache(2, 5, dtype=torch.bfloat16)
    assert make(dtype=torch.float32)(torch.randn(2, 3, 6), inference_cache=narrow).dtype == torch.float32
    assert make(dtype=torch.float32)(torch.randn(2, 2, 6), inference_cache=narrow).dtype == torch.float32


@pytest.mark.parametrize("causal", [True, False])
def test_gradcheck(causal):
    core = make(causal=causal)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    seq_idx = torch.tensor([[0, 0, 1, 1], [0, -1, 0, 0]])
    assert torch.autograd.gradcheck(lambda x, *_: core(x), (x, *core.parameters()))
    assert torch.autograd.gradcheck(
        lambda x, *_: core(x, seq_idx=seq_idx, reverse=True), (x, *core.parameters())
    )


def test_heads():
    assert {d: Attention(d).num_heads for d in (8, 64, 96, 128, 192, 200)} == {
        8: 1, 64: 1, 96: 1, 128: 2, 192: 3, 200: 2
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"^`d_model` \(=10\) must be divisible by `num_heads` \(=4\)\.$"):
        Attention(10, num_heads=4)
    with pytest.raises(ValueError, match=r"`num_heads` \(=0\) must be at least 1"):
        Attention(10, num_heads=0)


def test_state_dict():
    shapes = {name: list(p.shape) for name, p in make().state_dict().items()}
    assert shapes == {
        "in_proj.weight": [18, 6],
        "in_proj.bias": [18],
        "out_proj.weight": [6, 6],
        "out_proj.bias": [6],
    }
    assert list(Attention(6).state_dict()) == ["in_proj.weight", "out_proj.weight"]


def test_reset_and_device():
    core = make()
    torch.manual_seed(3)
    core.reset_parameters()
    torch.manual_seed(3)
    for a, b in zip(core.parameters(), make().parameters(), strict=True):
        assert torch.equal(a, b)
    assert next(Attention(8, device="meta").parameters()).is_meta
    assert "num_heads=2, causal=True" in repr(core)


def test_errors():
    core, x = make(), torch.randn(2, 5, 6, dtype=torch.float64)
    with pytest.raises(TypeError, match="dropout"):
        Attention(8, dropout=0.1)
    with pytest.raises(ValueError, match=r"`hidden_states` must have shape \[B, L, 6\], got \[2, 5, 7\]"):
        core(torch.randn(2, 5, 7))
    with pytest.raises(ValueError, match=r"`integration_timesteps` must be None: Attention has no use"):
        core(x, torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"`integration_timesteps` must be None: Attention has no use"):
        core.step(x[:, :1], core.allocate_inference_cache(2, 5), torch.ones(2))
    with pytest.raises(
        ValueError, match=r"`hidden_states` of a step must have shape \[B, 1, 6\], got \[2, 5, 6\]"
    ):
        core.step(x, core.allocate_inference_cache(2, 5))
    with pytest.raises(ValueError, match=r"`order` \(=\[0, 0, 1, 2, 3\]\) must be a permutation of 0 \.\. 4"):
        core(x, order=torch.tensor([0, 0, 1, 2, 3]))
    with pytest.raises(
        ValueError, match=r"`order` \(shape \[2, 5\]\) must have shape \[L\]: a core walks one list"
    ):
        core(x, order=torch.arange(5).repeat(2, 1))
    with pytest.raises(
        ValueError, match=r"`reverse` \(=\[True, False\]\) must be True or False: a core walks one way"
    ):
        core(x, reverse=[True, False])
    with pytest.raises(ValueError, match=r"`reverse` \(=True\) must be False with an `inference_cache`"):
        core(x, inference_cache=core.allocate_inference_cache(2, 5), reverse=True)


def test_a_full_cache_is_refused_and_left_alone(laws):
    core, x = make(), torch.randn(2, 5, 6, dtype=torch.float64)
    cache = core.allocate_inference_cache(2, 4)
    core(x[:, :3], inference_cache=cache)
    message = r"`max_seqlen` \(=4\) cells: its `seqlen_offset` \(=3\) and L \(=2\) need 5"
    with pytest.raises(ValueError, match=message):
        core(x[:, 3:], inference_cache=cache)
    assert cache["seqlen_offset"] == 3
    laws.close(core.step(x[:, 3:4], cache)[0], core(x)[:, 3:4])


def test_caches_need_causal():
    core, x = make(causal=False), torch.randn(2, 5, 6, dtype=torch.float64)
    cache = make().allocate_inference_cache(2, 5)
    for call in (
        lambda: core.allocate_inference_cache(2, 5),
        lambda: core.step(x[:, :1], cache),
        lambda: core(x, inference_cache=cache),
    ):
        with pytest.raises(ValueError, match=r"`causal` \(=False\) must be True for caches and `step`"):
            call()
    assert core.causal is False


def test_two_generations_share_nothing(laws):
    core, x = make(), torch.randn(2, 6, 6, dtype=torch.float64)
    for _ in range(2):
        cache = core.allocate_inference_cache(2, 6)
        laws.close(core(x, inference_cache=cache), core(x))
