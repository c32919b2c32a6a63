"""The laws that every core obeys, as checks that a test file runs on its own core (fixture `laws`)."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nvsubq.cores import detach_cache


def pytest_addoption(parser):
    parser.addoption(
        "--write-table",
        nargs="?",
        type=Path,
        const=Path(__file__).parents[2] / "docs",
        help="write the outcomes, core by option, into cores.md (with -m gpu: cores_gpu.json) of this folder",
    )


def pytest_configure(config):
    folder = config.getoption("--write-table", default=None)
    if folder is not None:
        from table import Recorder

        config.pluginmanager.register(Recorder(folder))


CUTS = ((1, 1, 5, 4, 2), (13,), (6, 0, 7))


def close(actual, expected, tol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol)


def streaming(core, x, tol=1e-10):
    """One forward, chunked prefill (with and without grad) and steps agree, and leave the same states."""
    batch, length, _ = x.shape
    expected = core(x)
    states = []
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            for cuts in (
                *[c for c in CUTS if sum(c) == length],
                (length // 2, length - length // 2),
                (1,) * length,
            ):
                cache = core.allocate_inference_cache(batch, length)
                parts = []
                for part in x.split(list(cuts), 1):
                    parts.append(core(part, inference_cache=cache))
                close(torch.cat(parts, 1), expected, tol)
                assert cache["seqlen_offset"] == length
                states.append(cache)
            cache = core.allocate_inference_cache(batch, length)
            parts = []
            for k in range(length):
                y, returned = core.step(x[:, k : k + 1], cache)
                assert returned is cache
                assert cache["seqlen_offset"] == k + 1
                parts.append(y)
            close(torch.cat(parts, 1), expected, tol)
            states.append(cache)
    for cache in states[1:]:
        assert cache.keys() == states[0].keys()
        for key, state in cache.items():
            close(state, states[0][key], tol)


def addresses_stay(core, x):
    """Without grad, forward and step write the states where they are, so that a graph could replay them."""
    with torch.no_grad():
        cache = core.allocate_inference_cache(x.shape[0], x.shape[1])
        tensors = {key: state for key, state in cache.items() if isinstance(state, torch.Tensor)}
        before = {key: state.clone() for key, state in tensors.items()}
        half = x.shape[1] // 2
        core(x[:, :half], inference_cache=cache)
        core.step(x[:, half : half + 1], cache)
        for key, state in tensors.items():
            assert cache[key] is state
            assert not torch.equal(state, before[key])


def walks(core, x):
    """`core(x, order=p)` is `core(x[:, p])[:, inverse]`, `reverse` walks the list from its end."""
    length = x.shape[1]
    order = torch.randperm(length)
    inverse = order.argsort()
    close(core(x, order=order), core(x[:, order])[:, inverse])
    close(core(x, order=order.int(), reverse=True), core(x[:, order].flip(1)).flip(1)[:, inverse])
    close(core(x, reverse=True), core(x.flip(1)).flip(1))


def gradients(core, x, weight, **walk):
    """Output, and the gradients of `(weight * output).sum()` for the input and every parameter."""
    x = x.detach().clone().requires_grad_()
    core.zero_grad(set_to_none=True)
    y = core(x, **walk)
    (y * weight).sum().backward()
    return y.detach(), x.grad, {name: p.grad.clone() for name, p in core.named_parameters()}


def sequences(core, x, seq_idx, reverse=False):
    """What `seq_idx` packs equals separate calls: outputs and all gradients; absent cells are 0.

    NaN is put where no cell is, so that anything that reads it shows.
    """
    weight = torch.randn_like(x)
    present = seq_idx >= 0
    held = x.masked_fill(~present[..., None], torch.nan)
    y, grad, grads = gradients(core, held, weight, seq_idx=seq_idx, reverse=reverse)
    expected, expected_grad = torch.zeros_like(x), torch.zeros_like(x)
    totals = {name: torch.zeros_like(p) for name, p in core.named_parameters()}
    for b in range(x.shape[0]):
        cells = present[b].nonzero().flatten().tolist()
        runs: list[list[int]] = []
        for before, cell in zip([None, *cells], cells, strict=False):
            if before is None or seq_idx[b, before] != seq_idx[b, cell]:
                runs.append([])
            runs[-1].append(cell)
        for run in runs:
            one, one_grad, one_grads = gradients(
                core, x[b : b + 1, run], weight[b : b + 1, run], reverse=reverse
            )
            expected[b, run], expected_grad[b, run] = one[0], one_grad[0]
            for name, g in one_grads.items():
                totals[name] += g
    close(y, expected)
    close(grad, expected_grad)
    for name, total in totals.items():
        close(grads[name], total, 1e-9)


def lengths(core, x):
    """`lengths` equals separate calls on the cells that are there, in memory order, in both directions."""
    counts = torch.tensor([x.shape[1], 3, 0])[: x.shape[0]]
    for reverse in (False, True):
        y = core(x, lengths=counts, reverse=reverse)
        for b, count in enumerate(counts.tolist()):
            close(y[b : b + 1, :count], core(x[b : b + 1, :count], reverse=reverse))
            assert not y[b, count:].any()


def ragged_prefill(core, x):
    """After a prefill with `lengths` each row goes on from its own end."""
    counts = torch.tensor([5, 2, 0])[: x.shape[0]]
    with torch.no_grad():
        cache = core.allocate_inference_cache(x.shape[0], x.shape[1])
        core(x[:, :5], lengths=counts, inference_cache=cache)
        following = core(x[:, 5:8], inference_cache=cache)
        last, _ = core.step(x[:, 8:9], cache)
        for b, count in enumerate(counts.tolist()):
            joined = torch.cat([x[b, :count], x[b, 5:9]])[None]
            close(torch.cat([following, last], 1)[b : b + 1], core(joined)[:, count:])


def packed_prefill(core, x):
    """A cache belongs to the first sequence of the next call, and is left to the last one."""
    a = torch.tensor([[0, 0, 1, 1, 1]]).repeat(x.shape[0], 1)
    b = torch.tensor([[7, 7, 8, -1]]).repeat(x.shape[0], 1)
    with torch.no_grad():
        cache = core.allocate_inference_cache(x.shape[0], x.shape[1])
        first = core(x[:, :5], seq_idx=a, inference_cache=cache)
        second = core(x[:, 5:9], seq_idx=b, inference_cache=cache)
        third, _ = core.step(x[:, 9:10], cache)
        close(torch.cat([first[:, 2:], second[:, :2]], 1), core(x[:, 2:7]))
        close(first[:, :2], core(x[:, :2]))
        close(torch.cat([second[:, 2:3], third], 1), core(x[:, [7, 9]]))
        assert not second[:, 3].any()


def no_leak(core, x):
    """Changing one sequence leaves the outputs and gradients of the others as they are, bit for bit."""
    seq_idx = torch.arange(x.shape[1]).ge(x.shape[1] // 2).int().expand(x.shape[0], -1)
    other = x.clone()
    other[:, x.shape[1] // 2 :] *= -3
    kept = slice(0, x.shape[1] // 2)
    weight = torch.ones_like(x)
    for reverse in (False, True):
        y, grad, _ = gradients(core, x, weight, seq_idx=seq_idx, reverse=reverse)
        y2, grad2, _ = gradients(core, other, weight, seq_idx=seq_idx, reverse=reverse)
        assert torch.equal(y[:, kept], y2[:, kept])
        assert torch.equal(grad[:, kept], grad2[:, kept])


def empty(core, x):
    """L = 0 and B = 0 pass through; an empty chunk leaves the cache as it is."""
    assert core(x[:, :0]).shape == x[:, :0].shape
    assert core(x[:0]).shape == x[:0].shape
    with torch.no_grad():
        cache = core.allocate_inference_cache(x.shape[0], x.shape[1])
        core(x[:, :4], inference_cache=cache)
        before = copy.deepcopy(cache)
        assert core(x[:, :0], inference_cache=cache).shape == x[:, :0].shape
        for key, state in cache.items():
            close(state, before[key])


def autocast(core, x):
    """Under bf16 autocast the output is near fp32's, gradients are finite and in their parameter's dtype."""
    core, x = copy.deepcopy(core).float(), x.float()
    expected = core(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = core(x)
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() < 2e-2 * expected.norm()
    y.float().square().sum().backward()
    for p in core.parameters():
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        cache = core.allocate_inference_cache(x.shape[0], x.shape[1])
        parts = [core(x[:, :3], inference_cache=cache)]
        parts += [core.step(cell, cache)[0] for cell in x[:, 3:].split(1, 1)]
        assert (torch.cat(parts, 1) - expected).norm() < 2e-2 * expected.norm()


def truncated(core, x):
    """With grad the cache carries the graph from chunk to chunk; `detach_cache` cuts it."""
    inputs = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(core(inputs)[:, 4:].square().sum(), inputs)
    for cut in (False, True):
        cache = core.allocate_inference_cache(x.shape[0], x.shape[1] + 1)
        core(inputs[:, :4], inference_cache=cache)
        if cut:
            detach_cache(cache)
        y = core(inputs[:, 4:], inference_cache=cache)
        with torch.no_grad():  # sampling may go on from here, and leaves the graph's tensors as they are
            held = [
                (state, state.clone())
                for state in cache.values()
                if hasattr(state, "grad_fn") and state.dtype != torch.bool
            ]
            expected_next = core(torch.cat([x, x[:, :1]], 1))[:, -1:]
            close(core.step(x[:, :1], cache)[0], expected_next)
            assert all(torch.equal(state, before) for state, before in held)
        (grad,) = torch.autograd.grad(y.square().sum(), inputs)
        if cut:
            assert not grad[:, :4].any()
            assert grad[:, 4:].any()
        else:
            close(grad, expected)


@pytest.fixture
def laws():
    return SimpleNamespace(
        **{
            law.__name__: law
            for law in (
                close,
                streaming,
                addresses_stay,
                walks,
                gradients,
                sequences,
                lengths,
                ragged_prefill,
                packed_prefill,
                no_leak,
                empty,
                autocast,
                truncated,
            )
        }
    )
