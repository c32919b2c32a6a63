"""The base class under the seed's name, and the rules of caches that all cores share."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

import nvsubq.cores
from nvsubq.cores import LTV_LRNN, Core, detach_cache
from nvsubq.cores.base import (
    DISCRETIZATIONS,
    check_at_least,
    check_bool,
    check_dt_range,
    check_number,
    check_timesteps,
    check_whole,
    mask_absent,
    parse_dtype,
)
from nvsubq.cores.cache import check_cache, own_states, write_cache


class Sum(LTV_LRNN):
    """The smallest core that a user might write: a running sum."""

    def __init__(self, d_model: int, discretization: str | None = None) -> None:
        super().__init__(discretization)
        self.d_model = d_model

    def forward(self, x, integration_timesteps=None, lengths=None, inference_cache=None, **walk) -> Tensor:
        self.refuse_timesteps(integration_timesteps)
        self.parse_walk(x, lengths, inference_cache, name="x", **walk)
        y = x.cumsum(1)
        if inference_cache is not None:
            y = y + inference_cache["lrnn_state"][:, None]
            write_cache(inference_cache, x.shape[1], lrnn_state=y[:, -1])
        return y

    def step(self, x, inference_cache, integration_timesteps=None):
        return self.forward(x, integration_timesteps, inference_cache=inference_cache), inference_cache

    def allocate_inference_cache(self, batch_size, max_seqlen, dtype=None):
        return {"lrnn_state": torch.zeros(batch_size, self.d_model), "seqlen_offset": 0}


def test_public_names():
    assert set(nvsubq.cores.__all__) == {
        "LTV_LRNN",
        "Core",
        "Mamba",
        "Mamba2",
        "S5",
        "S7",
        "RGLRU",
        "Attention",
        "clone_cache",
        "detach_cache",
        "mask_absent",
        "move_cache",
        "reorder_cache",
        "write_cache",
    }
    assert set(nvsubq.cores.__all__) <= set(dir(nvsubq.cores))
    for name in nvsubq.cores.__all__:
        assert getattr(nvsubq.cores, name).__name__ in (name, "LTV_LRNN")
    with pytest.raises(AttributeError, match=r"module 'nvsubq\.cores' has no attribute 'Mamba3'"):
        nvsubq.cores.Mamba3  # noqa: B018


def test_import_leaves_the_upper_floors_alone():
    code = (
        "import sys, nvsubq.cores as c; [getattr(c, n) for n in c.__all__]; "
        "upper = ('hydra', 'lightning', 'sklearn', 'nvsubq.nd', 'nvsubq.models'); "
        "print([name for name in upper if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


class TestDiscretization:
    @pytest.mark.parametrize("name", ["zoh", "bilinear", "dirac", "async", "no_discretization", None])
    def test_known(self, name):
        assert Sum(3, name).discretization == name

    @pytest.mark.parametrize("name", ["mamba", "ZOH", "", 3])
    def test_unknown(self, name):
        with pytest.raises(ValueError, match="`discretization`") as error:
            Sum(3, name)
        assert str(error.value) == (
            f"`discretization` (={name!r}) of Sum must be one of "
            "'zoh', 'bilinear', 'dirac', 'async', 'no_discretization', None."
        )

    @pytest.mark.parametrize("name", ["zoh", None, "unknown"])
    def test_base_is_abstract(self, name):
        with pytest.raises(TypeError, match="abstract"):
            LTV_LRNN(name)

    def test_table_covers_the_cores(self):
        for name, allowed in DISCRETIZATIONS.items():
            assert getattr(nvsubq.cores, name).discretizations is allowed
        assert Core is LTV_LRNN


class TestWalkArguments:
    def test_everything_that_ops_take(self):
        core, x = Sum(3), torch.zeros(2, 4, 3)
        order = torch.arange(4)
        assert core.parse_walk(x) == {"seq_idx": None, "order": None, "reverse": False, "backend": None}
        core.use_fast_path = False
        walk = core.parse_walk(x, torch.tensor([4, 1]), order=order, reverse=True)
        assert walk["order"] is order
        assert walk["reverse"] is True
        assert walk["backend"] == "torch"
        assert walk["seq_idx"].tolist() == [[0, 0, 0, 0], [0, -1, -1, -1]]
        assert walk["seq_idx"].dtype == torch.int32

    def test_lengths_cut_seq_idx(self):
        seq_idx = torch.tensor([[0, 0, 1, 1], [5, -1, 2, 2]])
        walk = Sum(3).parse_walk(torch.zeros(2, 4, 3), torch.tensor([3, 4]), seq_idx=seq_idx)
        assert walk["seq_idx"].tolist() == [[0, 0, 1, -1], [5, -1, 2, 2]]

    def test_name_of_the_input(self):
        with pytest.raises(ValueError, match=r"^`x` must have shape \[B, L, 3\], got \[2, 4, 5\]\.$"):
            Sum(3)(torch.zeros(2, 4, 5))

    def test_mask(self):
        x = torch.full((1, 3, 2), float("nan"), requires_grad=True)
        masked = mask_absent(x, torch.tensor([[-1, 0, -2]]))
        assert masked.isnan().tolist() == [[[False] * 2, [True] * 2, [False] * 2]]
        masked.sum().backward()
        assert x.grad.tolist() == [[[0, 0], [1, 1], [0, 0]]]
        assert mask_absent(x, None) is x

    def test_timesteps(self):
        assert check_timesteps(torch.ones(2), 2, 1).shape == (2, 1)
        assert check_timesteps(torch.ones(2, 4), 2, 4).shape == (2, 4)
        with pytest.raises(ValueError, match=r"must have shape \[2, 4\] \(batch, length\), got \[2\]"):
            check_timesteps(torch.ones(2), 2, 4)
        with pytest.raises(ValueError, match=r"must be real, got torch\.complex64"):
            check_timesteps(torch.ones(2, 4, dtype=torch.complex64), 2, 4)


class TestConstructorArguments:
    def test_dtype(self):
        assert parse_dtype("bfloat16") == parse_dtype("torch.bfloat16") == torch.bfloat16
        assert parse_dtype(torch.float64) == torch.float64
        assert parse_dtype(None) == torch.get_default_dtype()
        for wrong in ("int64", "nn", "bf 16", torch.complex64, 3):
            with pytest.raises(ValueError, match="`dtype`") as error:
                parse_dtype(wrong)
            assert str(error.value) == (
                f"`dtype` (={wrong!r}) must be a real floating dtype, 'bfloat16' for one."
            )

    def test_ranges(self):
        with pytest.raises(ValueError, match=r"^`d_state` \(=0\) must be at least 1\.$"):
            check_at_least(1, d_model=3, d_state=0)
        for low, high in ((0.0, 0.1), (0.2, 0.1), (-1.0, 0.1), (float("nan"), 0.1)):
            with pytest.raises(ValueError, match=r"`dt_min` \(=.*\) must be positive and at most `dt_max`"):
                check_dt_range(low, high)

    def test_flags_and_numbers(self):
        check_bool(bias=True, causal=False)
        for wrong in ("no", "off", "True", "", 0, 1, None):
            with pytest.raises(ValueError, match="`bias`") as error:
                check_bool(causal=True, bias=wrong)
            assert str(error.value) == f"`bias` (={wrong!r}) must be True or False."
        check_number(c=8, dt_min=0.1)
        check_whole(headdim=8)
        for wrong in ("8", True, None, [8]):
            with pytest.raises(ValueError, match="`c`") as error:
                check_number(c=wrong)
            assert str(error.value) == f"`c` (={wrong!r}) must be a number."
            with pytest.raises(ValueError, match="`headdim`") as error:
                check_whole(headdim=wrong)
            assert str(error.value) == f"`headdim` (={wrong!r}) must be an integer."


class TestCacheRules:
    def test_users_core(self):
        core, x = Sum(3), torch.randn(2, 6, 3)
        with torch.no_grad():
            cache = core.allocate_inference_cache(2, 6)
            address = cache["lrnn_state"].data_ptr()
            parts = [core(x[:, :4], inference_cache=cache), core.step(x[:, 4:5], cache)[0]]
            torch.testing.assert_close(torch.cat(parts, 1), x[:, :5].cumsum(1))
        assert cache["seqlen_offset"] == 5
        assert cache["lrnn_state"].data_ptr() == address

    def test_write_keeps_dtype_and_alias(self):
        state = torch.zeros(2, 3)
        cache = {"lrnn_state": state, "ssm_state": state, "seqlen_offset": 1}
        with torch.no_grad():
            write_cache(cache, 4, lrnn_state=torch.ones(2, 3, dtype=torch.bfloat16))
        assert cache["lrnn_state"] is cache["ssm_state"] is state
        assert state.dtype == torch.float32
        assert state.eq(1).all()
        new = torch.full((2, 3), 2.0, requires_grad=True).exp()
        write_cache(cache, 4, lrnn_state=new)
        assert cache["lrnn_state"] is cache["ssm_state"] is new
        assert state.eq(1).all()
        assert cache["seqlen_offset"] == 9

    def test_detach_keeps_alias(self):
        state = torch.ones(2, 3, requires_grad=True).exp()
        cache = {"lrnn_state": state, "ssm_state": state, "seqlen_offset": 1}
        assert detach_cache(cache) is cache
        assert cache["lrnn_state"] is cache["ssm_state"]
        assert not cache["lrnn_state"].requires_grad
        assert cache["seqlen_offset"] == 1

    def test_own_states(self):
        plain, attached = torch.ones(2), torch.ones(2, requires_grad=True).exp()
        with torch.inference_mode():
            ended = torch.ones(2)
        cache = {"a": plain, "b": attached, "c": ended, "seqlen_offset": 0}
        with torch.no_grad():
            own_states(cache)
        assert cache["a"] is plain
        assert not cache["b"].requires_grad
        assert cache["b"].data_ptr() != attached.data_ptr()
        assert not cache["c"].is_inference()

    def test_check(self):
        check_cache({"lrnn_state": torch.ones(2, 1), "seqlen_offset": 0}, 2)
        with pytest.raises(
            ValueError, match=r"`inference_cache\['lrnn_state'\]` holds 3 sequences, the input has 2"
        ):
            check_cache({"lrnn_state": torch.ones(3, 1), "seqlen_offset": 0}, 2)
        with pytest.raises(ValueError, match=r"it has no 'seqlen_offset', only \['state'\]"):
            check_cache({"state": torch.ones(2, 1)}, 2)

    def test_timesteps_refused(self):
        with pytest.raises(ValueError, match="`integration_timesteps`") as error:
            Sum(3)(torch.zeros(1, 2, 3), torch.ones(1, 2))
        assert str(error.value) == (
            "`integration_timesteps` must be None: Sum has no use for them (Mamba, S5 and S7 have)."
        )
