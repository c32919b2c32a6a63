"""What every core promises, one test for all of them: a core that is added to CASES is held to it."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest
import torch
from comparing import B, C, L, close, close_gradients, draw, gradients
from option_cases import SIMPLE, every_case, every_core
from torch import Tensor

from nvsubq.cores import LTV_LRNN
from nvsubq.ops import use_backend


class TestWalk:
    @pytest.mark.column("forward")
    @every_case
    @pytest.mark.parametrize("length", [0, 1, 2, L])
    def test_shape_and_dtype(self, case, length):
        y = case.make()(draw(B, length, C))
        assert y.shape == (B, length, C)
        assert y.dtype == torch.float32
        y.sum().backward()

    @every_core
    def test_empty_batch(self, case):
        assert case.make()(draw(0, L, C)).shape == (0, L, C)

    @every_core
    def test_noncontiguous_input(self, case):
        core, x = case.make(), draw(B, C, L).transpose(1, 2)
        y, found = gradients(core, x, core)
        want_y, want = gradients(core, x.contiguous(), core)
        close(y, want_y)
        close_gradients(found, want)
        wide = draw(B, 2 * L, 2 * C)
        close(core(wide[:, ::2, C:]), core(wide[:, ::2, C:].contiguous()))

    @every_core
    @pytest.mark.parametrize("reverse", [False, True])
    def test_order_law(self, case, reverse):
        core, x = case.make(), draw(B, L, C)
        order = torch.randperm(L, generator=torch.Generator().manual_seed(1))
        inverse = order.argsort()
        y, found = gradients(core, x, lambda x: core(x, order=order, reverse=reverse))
        walk = order.flip(0) if reverse else order
        undo = walk.argsort()
        want_y, want = gradients(core, x, lambda x: core(x[:, walk])[:, undo])
        close(y, want_y)
        close_gradients(found, want)
        assert (inverse != undo).any() == reverse

    @every_core
    def test_reverse_law(self, case):
        core, x = case.make(), draw(B, L, C)
        y, found = gradients(core, x, lambda x: core(x, reverse=True))
        want_y, want = gradients(core, x, lambda x: core(x.flip(1)).flip(1))
        close(y, want_y)
        close_gradients(found, want)

    @every_core
    def test_causal(self, case):
        core, x = case.make(), draw(1, L, C).requires_grad_()
        (grad,) = torch.autograd.grad(core(x)[:, 9].sum(), x)
        assert (grad[:, 10:] == 0).all()
        assert (grad[:, :10] != 0).any(-1).all()

    @every_core
    def test_no_state_is_left_behind(self, case):
        core, x = case.make().eval(), draw(B, L, C)
        with torch.no_grad():
            first = core(x)
            core(draw(B, L, C, seed=5))
            torch.testing.assert_close(core(x), first, rtol=0, atol=0)

    @pytest.mark.column("forward")
    @every_case
    @pytest.mark.parametrize("timed", [False, True])
    def test_the_definition(self, case, timed):
        """Fault 7: a fast path that computes something else than the ops' short references."""
        if timed and not case.timesteps:
            return
        core, x = case.make(), draw(B, L, C)
        dt = (draw(B, L, seed=3).abs(),) if timed else ()
        y, found = gradients(core, x, lambda x: core(x, *dt))
        core.use_fast_path = True  # or the module names its backend itself
        with use_backend("reference"):
            want_y, want = gradients(core, x, lambda x: core(x, *dt))
        close(y, want_y)
        # With `dirac` and timesteps delta has no effect: a fused path says so by zeros, another by None.
        found, want = (
            {n: g for n, g in grads.items() if g is not None and g.any()} for grads in (found, want)
        )
        close_gradients(found, want)

    @pytest.mark.parametrize("case", [case for case in SIMPLE if case.name != "Attention"], ids=str)
    def test_the_portable_path_is_an_option(self, case):
        name = "use_mem_eff_path" if case.name == "Mamba2" else "use_fast_path"
        assert (case.make().backend, case.make(**{name: False}).backend) == (None, "torch")


class TestDtypes:
    @pytest.mark.column("bf16")
    @every_case
    def test_bf16_autocast(self, case):
        """Faults 6 and 10: bf16 is taken, and states are not kept in it."""
        core, x = case.make(), draw(B, 64, C)
        want, want_grads = gradients(core, x, core)
        with torch.autocast("cpu", torch.bfloat16):
            y, found = gradients(core, x, core)
            with torch.no_grad():
                cache = core.allocate_inference_cache(B, 65)
                prefilled = core(x, inference_cache=cache)
                stepped, _ = core.step(x[:, :1], cache)
        close(y.float(), want, rtol=0.05, atol=0.05)
        close(prefilled.float(), y.float(), rtol=0.02, atol=0.02)
        assert torch.isfinite(stepped).all()
        if "lrnn_state" in cache:
            assert cache["lrnn_state"].dtype in (torch.float32, torch.complex64)
        for name, grad in found.items():
            if grad is not None:
                scale = want_grads[name].abs().max() + 0.1
                assert (grad - want_grads[name]).abs().max() / scale < 0.1, name

    @pytest.mark.column("bf16")
    @every_case
    def test_bf16_on_a_long_walk(self, case):
        core, x = case.make(), draw(1, 4096, C)
        with torch.no_grad():
            want = core(x)
            with torch.autocast("cpu", torch.bfloat16):
                y = core(x)
        assert (y.float() - want).norm() < 2e-2 * want.norm()

    @every_case
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("how", ["constructor", "string", "cast"])
    def test_parameter_dtypes(self, case, dtype, how):
        name = str(dtype).removeprefix("torch.")
        core = case.make().to(dtype) if how == "cast" else case.make(dtype=name if how == "string" else dtype)
        x = draw(B, L, C).to(dtype)
        y = core(x)
        assert y.dtype == dtype
        y.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in core.parameters() if p.grad is not None)
        with torch.no_grad():
            cache = core.allocate_inference_cache(B, L)
            pieces = [core(x[:, :9], inference_cache=cache)]
            pieces += [core.step(x[:, k : k + 1], cache)[0] for k in range(9, L)]
        loose = {} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.1}
        close(torch.cat(pieces, 1).float(), y.detach().float(), **loose)
        if "lrnn_state" in cache:
            double = cache["lrnn_state"].dtype in (torch.float64, torch.complex128)
            single = cache["lrnn_state"].dtype in (torch.float32, torch.complex64)
            assert double if dtype == torch.float64 else single

    @pytest.mark.column("gradcheck")
    @every_case
    @pytest.mark.parametrize("timed", [False, True])
    def test_fp64_gradcheck(self, case, timed):
        """Of the input, the timesteps and every parameter, in a walk backwards over two sequences."""
        if timed and not case.timesteps:
            return
        core, x = case.make(dtype=torch.float64), draw(1, 5, C, dtype=torch.float64)
        inputs = [x, draw(1, 5, seed=3, dtype=torch.float64).abs()] if timed else [x]
        walk = {"reverse": True, "seq_idx": torch.tensor([[0, 0, 0, 1, 1]])}
        names, values = zip(*core.named_parameters(), strict=True)

        def project(*given: Tensor) -> Tensor:
            parameters = dict(zip(names, given[len(inputs) :], strict=True))
            y = torch.func.functional_call(core, parameters, given[: len(inputs)], walk)
            return (y * draw(1, 5, C, seed=6, dtype=torch.float64)).sum()

        given = [tensor.detach().requires_grad_() for tensor in (*inputs, *values)]
        torch.autograd.gradcheck(project, given, fast_mode=True)

    @every_core
    def test_meta_device(self, case):
        core = case.make(device="meta")
        assert all(parameter.device.type == "meta" for parameter in core.parameters())

    @every_core
    def test_wrong_dtype(self, case):
        for wrong in ("int64", "floaty", torch.complex64):
            with pytest.raises(ValueError, match=r"`dtype` \(=.*\) must be a real floating dtype"):
                case.make(dtype=wrong)


class TestModule:
    @every_core
    def test_seed_reproduces(self, case):
        """Fault 8: random init outside torch's generator."""
        first, second = case.make(), case.make()
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)
        torch.manual_seed(8)
        other = case.cls(C, **case.options)
        assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))

    @every_core
    def test_copies_compute_the_same(self, case):
        core, x = case.make(), draw(B, L, C)
        twin = copy.deepcopy(core)
        close(twin(x), core(x), rtol=0, atol=0)
        torch.manual_seed(9)
        loaded = case.cls(C, **case.options)
        loaded.load_state_dict(core.state_dict())
        close(loaded(x), core(x), rtol=0, atol=0)

    @every_case
    def test_marks_survive_copies(self, case):
        """torch drops a parameter's attributes where it makes a new one: decays would be decayed."""

        def marked(core: torch.nn.Module) -> set[tuple[str, str]]:
            marks = ("_no_weight_decay", "_no_reinit")
            return {(name, m) for name, p in core.named_parameters() for m in marks if getattr(p, m, False)}

        core = case.make()
        want = marked(core)
        assert want or case.name == "Attention"
        assert marked(copy.deepcopy(core)) == want
        assert marked(copy.deepcopy(torch.nn.Sequential(core))[0]) == want
        assert marked(pickle.loads(pickle.dumps(core))) == want
        assert marked(case.make(device="meta").to_empty(device="cpu")) == want
        for bare in (case.make(), case.make(device="meta"), copy.deepcopy(core)):
            before = set(vars(bare))
            model = torch.nn.Sequential(bare)
            model.load_state_dict({f"0.{name}": p for name, p in core.state_dict().items()}, assign=True)
            assert marked(model[0]) == want
            assert set(vars(bare)) == before
        assert marked(core.bfloat16()) == want
        assert not any(key.startswith("_parameter_marks") for key in vars(copy.deepcopy(core)))

    @every_core
    def test_all_parameters_get_gradients(self, case):
        core = case.make()
        core(draw(B, L, C)).square().sum().backward()
        for name, parameter in core.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name

    @every_core
    def test_is_a_core(self, case):
        core = case.make()
        assert isinstance(core, LTV_LRNN)
        assert core.d_model == C
        assert core.causal
        assert f"d_model={C}" in repr(core)
        keywords = {"lengths", "inference_cache", "seq_idx", "order", "reverse"}
        assert keywords <= inspect.signature(core.forward).parameters.keys()


# By what a parameter of a constructor is annotated as: values that it must not take.
NOT_A = {
    "bool": ("no", "off", "False", "", 0, 1, None),
    "int": ("2", 2.0, 2.5, True, False, None, [2]),
    "int | None": ("2", 2.0, True, [2]),
    "int | str": ("2", 2.0, True, None),
    "float": ("2", True, None, [2.0], 2j),
    "float | None": ("2", True, [2.0]),
}


class TestErrors:
    @every_core
    def test_arguments_of_another_type(self, case):
        """Hydra's `no` and `off` are strings, which are true; "2" times a width is a longer string."""
        found = inspect.signature(case.cls).parameters
        asked = {name: kind for name, p in found.items() if (kind := str(p.annotation)) in NOT_A}
        assert "bool" in asked.values()
        del asked["d_model"]
        asked.pop("layer_idx", None)  # a label, for callers
        for name, kind in asked.items():
            for wrong in NOT_A[kind]:
                with pytest.raises(ValueError, match=rf"^`{name}` \(={re.escape(repr(wrong))}\) must be "):
                    case.make(**{name: wrong})
        for wrong in NOT_A["int"]:
            with pytest.raises(ValueError, match=rf"^`d_model` \(={re.escape(repr(wrong))}\) must be "):
                case.cls(wrong, **case.options)

    @every_core
    def test_unknown_keyword(self, case):
        with pytest.raises(TypeError, match="d_sate"):
            case.make(d_sate=3)
        with pytest.raises(TypeError, match="lenghts"):
            case.make()(draw(B, L, C), lenghts=None)

    @every_core
    @pytest.mark.parametrize("shape", [(B, L, C + 1), (L, C), (B, 2, L, C)])
    def test_wrong_shape(self, case, shape):
        core = case.make()
        name = next(iter(inspect.signature(core.forward).parameters))
        text = rf"`{name}` must have shape \[B, L, {C}\], got \[{', '.join(map(str, shape))}\]"
        with pytest.raises(ValueError, match=text):
            core(draw(*shape))

    @every_core
    def test_wrong_step_shape(self, case):
        core = case.make()
        cache = core.allocate_inference_cache(B, L)
        for shape in ((B, 2, C), (B, 1, C - 1)):
            with pytest.raises(ValueError, match=rf"of a step must have shape \[B, 1, {C}\], got"):
                core.step(draw(*shape), cache)

    @every_core
    def test_reverse_with_cache(self, case):
        core = case.make()
        with pytest.raises(ValueError, match=r"`reverse` \(=True\) must be False with an `inference_cache`"):
            core(draw(B, L, C), inference_cache=core.allocate_inference_cache(B, L), reverse=True)

    @every_core
    def test_wrong_cache(self, case):
        core = case.make()
        with pytest.raises(ValueError, match=rf"holds {B + 1} sequences, the input has {B}"):
            core(draw(B, L, C), inference_cache=core.allocate_inference_cache(B + 1, L))
        with torch.no_grad(), pytest.raises(ValueError, match=r"holds 1 sequences, the input has 3"):
            core.step(draw(B, 1, C), core.allocate_inference_cache(1, L))
        with pytest.raises(ValueError, match=r"must come from `allocate_inference_cache`"):
            core(draw(B, L, C), inference_cache={})

    @every_core
    def test_timesteps(self, case):
        core = case.make()
        if not case.timesteps:
            with pytest.raises(
                ValueError, match=rf"`integration_timesteps` must be None: {case.name} has no use"
            ):
                core(draw(B, L, C), torch.ones(B, L))
            return
        with pytest.raises(ValueError, match=rf"`integration_timesteps` must have shape \[{B}, {L}\]"):
            core(draw(B, L, C), torch.ones(B, L + 1))
        with pytest.raises(ValueError, match=rf"`integration_timesteps` must have shape \[{B}, 1\]"):
            core.step(draw(B, 1, C), core.allocate_inference_cache(B, 1), torch.ones(B, 2))

    @every_core
    def test_wrong_lengths(self, case):
        core = case.make()
        with pytest.raises(ValueError, match="`lengths`"):
            core(draw(B, L, C), lengths=torch.tensor([1, 2]))
        with pytest.raises(ValueError, match="`lengths`"):
            core(draw(B, L, C), lengths=torch.tensor([1, 2, L + 1]))
        with pytest.raises(ValueError, match="`seq_idx`"):
            core(draw(B, L, C), seq_idx=torch.zeros(B, L + 1, dtype=torch.int32))
        with pytest.raises(ValueError, match="`order`"):
            core(draw(B, L, C), order=torch.zeros(L, dtype=torch.int64))
