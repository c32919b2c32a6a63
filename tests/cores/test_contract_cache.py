"""What every core promises of its caches: prefill, chunks, steps, gradients, addresses."""

from __future__ import annotations

import copy

import pytest
import torch
from comparing import B, C, L, close, close_gradients, draw, gradients
from option_cases import CASES, every_case, every_core
from torch import Tensor

from nvsubq.cores import LTV_LRNN, clone_cache, detach_cache, move_cache, reorder_cache

every_clock = pytest.mark.parametrize("timed", [False, True], ids=["plain", "timed"])


def check_states(cache: dict) -> None:
    """Fault 10: states are fp32 (or complex64), whatever the parameters are."""
    if "lrnn_state" in cache:
        assert cache["lrnn_state"].dtype in (torch.float32, torch.complex64)


def run_steps(
    core: LTV_LRNN, x: Tensor, dt: Tensor | None, cache: dict, want: Tensor, start: int = 0
) -> None:
    """Steps from the cell `start` on give `want` there, and tell the offset right throughout."""
    for k in range(start, x.shape[1]):
        timestep = () if dt is None else ((dt[:, k], dt[:, k : k + 1])[k % 2],)
        y, same = core.step(x[:, k : k + 1], cache, *timestep)
        assert same is cache
        assert y.shape == (len(x), 1, C)
        close(y.detach(), want[:, k : k + 1])
        assert cache["seqlen_offset"] == k + 1
    check_states(cache)


class TestCache:
    @pytest.mark.column("prefill")
    @every_case
    @every_clock
    @torch.no_grad()
    def test_prefill(self, case, timed):
        """Fault 2: chunks with any cuts, and then steps, give what one forward gives."""
        if timed and not case.timesteps:
            return
        core, x, dt = case.make().eval(), draw(B, L, C), draw(B, L, seed=3).abs() * 3 if timed else None
        want = core(x, dt)
        for sizes in ([L], [1, 2, 0, 11, 9], [3] * 7 + [2]):
            cache = core.allocate_inference_cache(B, L)
            done, pieces = 0, []
            for size in sizes:
                part = slice(done, done + size)
                pieces.append(core(x[:, part], None if dt is None else dt[:, part], inference_cache=cache))
                done += size
                assert cache["seqlen_offset"] == done
            close(torch.cat(pieces, 1), want)
            check_states(cache)
        for prefill in (1, 7):
            cache = core.allocate_inference_cache(B, L)
            core(x[:, :prefill], None if dt is None else dt[:, :prefill], inference_cache=cache)
            run_steps(core, x, dt, cache, want, start=prefill)

    @pytest.mark.column("step")
    @every_case
    @every_clock
    @pytest.mark.parametrize("grad", [False, True])
    def test_steps_alone(self, case, timed, grad):
        """Fault 1: a step follows forward, whatever the discretization."""
        if timed and not case.timesteps:
            return
        core, x, dt = case.make().eval(), draw(B, L, C), draw(B, L, seed=3).abs() * 3 if timed else None
        want = core(x, dt).detach()
        if timed:  # fault 5: timesteps accepted and ignored
            assert (want - core(x)).abs().max() > 1e-4
        with torch.set_grad_enabled(grad):
            run_steps(core, x, dt, core.allocate_inference_cache(B, L), want)

    @every_core
    @torch.no_grad()
    def test_two_generations_do_not_mix(self, case):
        """Fault 9."""
        core, x = case.make().eval(), draw(B, L, C)
        outputs = []
        for seed in (0, 1, 0):
            cache = core.allocate_inference_cache(B, L)
            outputs.append([core.step(draw(B, 1, C, seed=seed + k), cache)[0] for k in range(4)])
            core(x)
        for first, last in zip(outputs[0], outputs[2], strict=True):
            torch.testing.assert_close(first, last, rtol=0, atol=0)

    @pytest.mark.column("prefill")
    @every_case
    @pytest.mark.parametrize("tail", ["steps", "forward"])
    @torch.no_grad()
    def test_ragged_prefill(self, case, tail):
        """A prefill of unequal lengths, one of them 0, leaves each row the state of its own last cell."""
        core, x, more = case.make().eval(), draw(B, L, C), draw(B, 3, C, seed=8)
        lengths = (L, 6, 0)
        cache = core.allocate_inference_cache(B, L + 3)
        core(x, lengths=torch.tensor(lengths), inference_cache=cache)
        if tail == "steps":
            together = torch.cat([core.step(cell, cache)[0] for cell in more.split(1, 1)], 1)
        else:
            together = core(more, inference_cache=cache)
        for row, length in enumerate(lengths):
            joined = torch.cat([x[row, :length], more[row]])[None]
            close(together[row : row + 1], core(joined)[:, length:])

    @every_core
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_addresses_stay_without_grad(self, case, mode):
        core = case.make().eval()
        with mode():
            cache = core.allocate_inference_cache(B, L)
            before = {key: value.data_ptr() for key, value in cache.items() if isinstance(value, Tensor)}
            assert "lrnn_state" in before or case.name == "Attention"
            core(draw(B, 5, C), inference_cache=cache)
            for _ in range(3):
                core.step(draw(B, 1, C), cache)
            after = {key: value.data_ptr() for key, value in cache.items() if isinstance(value, Tensor)}
        assert before == after

    @every_core
    def test_gradients_cross_chunks(self, case):
        core, x = case.make(), draw(B, 9, C)

        def chunked(x: Tensor) -> Tensor:
            cache = core.allocate_inference_cache(B, 9)
            parts = [core(x[:, :4], inference_cache=cache)]
            tensors = [
                value for value in cache.values() if isinstance(value, Tensor) and value.dtype != torch.bool
            ]
            assert all(tensor.requires_grad for tensor in tensors)
            parts += [core.step(x[:, k : k + 1], cache)[0] for k in (4, 5)]
            return torch.cat([*parts, core(x[:, 6:], inference_cache=cache)], 1)

        y, found = gradients(core, x, chunked)
        want_y, want = gradients(core, x, core)
        close(y, want_y)
        close_gradients(found, want)

    @pytest.mark.column("prefill")
    @every_case
    @torch.no_grad()
    def test_copies(self, case, tmp_path):
        """A prefix goes on from a cloned, a saved and a reordered cache as from its own."""
        core, x = case.make(), draw(B, 8, C)
        cache = core.allocate_inference_cache(B, 8)
        core(x[:, :5], inference_cache=cache)
        torch.save(cache, tmp_path / "cache.pt")
        rows = torch.tensor([2, 0, 2, 1])
        copies = {
            "clone": (clone_cache(cache), slice(None)),
            "save": (torch.load(tmp_path / "cache.pt", weights_only=True), slice(None)),
            "reorder": (reorder_cache(cache, rows), rows),
        }
        here = move_cache(cache, "cpu")
        assert all(here[name] is state for name, state in cache.items() if isinstance(state, Tensor))
        assert all(
            state.device.type == "meta"
            for state in move_cache(cache, "meta").values()
            if isinstance(state, Tensor)
        )
        want = core(x)[:, 5:]
        for name, (other, chosen) in copies.items():
            got = [core.step(x[chosen, k : k + 1], other)[0] for k in (5, 6)]
            got.append(core(x[chosen, 7:], inference_cache=other))
            close(torch.cat(got, 1), want[chosen], msg=lambda text, name=name: f"{name}: {text}")
            assert other["seqlen_offset"] == 8
        assert cache["seqlen_offset"] == 5
        close(core(x[:, 5:], inference_cache=cache), want)  # none of them wrote to it

    def test_rows_that_are_not_there(self):
        cache = CASES[0].make().allocate_inference_cache(2, 4)
        for rows, message in (
            (torch.tensor([0, 2]), r"`rows` \(=\[0, 2\]\) must be rows of the cache, 0 .. 1"),
            (torch.tensor([-1]), r"`rows` \(=\[-1\]\) must be rows"),
            (torch.tensor([0.5]), r"`rows` \(shape \[1\], torch.float32\) must be integers"),
            (torch.tensor(0), r"`rows` \(shape \[\], torch.int64\) must be integers"),
        ):
            with pytest.raises(ValueError, match=message):
                reorder_cache(cache, rows)

    @every_core
    def test_detach_cache(self, case):
        core, x = case.make(), draw(B, 4, C).requires_grad_()
        cache = core.allocate_inference_cache(B, 8)
        core(x, inference_cache=cache)
        assert detach_cache(cache) is cache
        assert not any(value.requires_grad for value in cache.values() if isinstance(value, Tensor))
        y = core(draw(B, 4, C), inference_cache=cache)
        assert torch.autograd.grad(y.sum(), x, allow_unused=True) == (None,)

    @every_core
    def test_an_attached_cache_goes_on_without_grad(self, case):
        """States that a graph or an inference mode that has ended still owns are not overwritten."""
        core, x = case.make(), draw(B, 8, C)
        want = core(x).detach()
        cache = core.allocate_inference_cache(B, 8)
        y = core(x[:, :3], inference_cache=cache)
        with torch.no_grad():
            close(core.step(x[:, 3:4], cache)[0], want[:, 3:4])
            close(core(x[:, 4:], inference_cache=cache), want[:, 4:])
        y.sum().backward()
        with torch.inference_mode():
            cache = core.allocate_inference_cache(B, 8)
            core(x[:, :3], inference_cache=cache)
        with torch.no_grad():
            close(core.step(x[:, 3:4], cache)[0], want[:, 3:4])

    @every_core
    def test_empty_prefill_changes_nothing(self, case):
        core, x = case.make().eval(), draw(B, 4, C)
        with torch.no_grad():
            cache = core.allocate_inference_cache(B, 8)
            core(x, inference_cache=cache)
            before = copy.deepcopy(cache)
            assert core(x[:, :0], inference_cache=cache).shape == (B, 0, C)
        for key, value in before.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(cache[key], value, rtol=0, atol=0)
            else:
                assert cache[key] == value

    @every_core
    def test_order_with_cache(self, case):
        core, x = case.make().eval(), draw(B, L, C)
        order = torch.randperm(L - 5, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            cache = core.allocate_inference_cache(B, L)
            core(x[:, :5], inference_cache=cache)
            y = core(x[:, 5:], inference_cache=cache, order=order)
            whole = torch.cat([torch.arange(5), 5 + order])
            close(y, core(x, order=whole)[:, 5:])
