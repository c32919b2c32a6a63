"""Decay groups and the schedule."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from nvsubq.training.optim import adamw, parameter_groups, ranks_of, schedule


class Model(nn.Module):
    def __init__(self, exempt):
        super().__init__()
        self.exempt = exempt
        self.inner = nn.Linear(3, 3)
        self.a_log = nn.Parameter(torch.zeros(3, 2))
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)

    def no_weight_decay(self):
        return self.exempt


def test_groups_honour_no_weight_decay():
    model = Model({"a_log"})
    decays, rests = parameter_groups(model, 0.1)
    assert [id(p) for p in decays["params"]] == [id(model.inner.weight)]
    assert {id(p) for p in rests["params"]} == {id(model.inner.bias), id(model.a_log)}
    assert (decays["weight_decay"], rests["weight_decay"]) == (0.1, 0.0)


def test_groups_of_weights_in_pieces():
    """FSDP makes weights flat and puts modules of its own between: what they were decides."""
    model = Model({"a_log"})
    ranks = ranks_of(model)
    for module, name in ((model.inner, "weight"), (model, "a_log")):
        setattr(module, name, nn.Parameter(getattr(module, name).detach().flatten()[:2]))
    wrapped = nn.Module()
    wrapped._fsdp_wrapped_module = model.inner
    model.inner = wrapped
    decays, rests = parameter_groups(model, 0.1, ranks)
    assert [id(p) for p in decays["params"]] == [id(wrapped._fsdp_wrapped_module.weight)]
    assert {id(p) for p in rests["params"]} == {id(wrapped._fsdp_wrapped_module.bias), id(model.a_log)}


def test_name_that_the_model_has_not():
    with pytest.raises(
        ValueError, match=r"`no_weight_decay\(\)` names 'A_log', which is no parameter of Model\."
    ):
        parameter_groups(Model({"A_log"}), 0.1)


@pytest.mark.parametrize("core", ["Mamba", "Mamba2", "S5", "RGLRU", "Attention"])
def test_every_core_says_what_must_not_decay(core):
    from nvsubq import NDBackbone, NDMixer, cores

    mixer = lambda d_model: NDMixer(getattr(cores, core), d_model=d_model, bidirectional=True)  # noqa: E731
    if core == "S5":
        from functools import partial

        mixer = lambda d_model: NDMixer(partial(cores.S5, d_state=8), d_model=d_model)  # noqa: E731
    model = NDBackbone(1, 1, 2, depths=(1,), dims=(64,), mixer=mixer)
    groups = parameter_groups(model, 0.1)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
    still = {id(p) for p in groups[1]["params"]}
    assert all(id(dict(model.named_parameters())[name]) in still for name in model.no_weight_decay())


def test_nothing_to_train():
    with pytest.raises(ValueError, match="Identity has no parameter to train"):
        adamw(nn.Identity(), lr=1.0, weight_decay=0.0, betas=(0.9, 0.9))


def test_complex_parameters_step():
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    optimizer = adamw(model, lr=0.1, weight_decay=0.0, betas=(0.9, 0.9))
    model.weight.abs().sum().backward()
    optimizer.step()
    assert (model.weight.real < 1).all()


def test_schedule():
    factor = schedule("cosine", 100, warmup=0.2, final=0.1)
    values = [factor(step) for step in range(100)]
    assert values[:3] == pytest.approx([1 / 20, 2 / 20, 3 / 20])
    assert values[19] == 1.0
    assert values[99] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(values[19:]))
    assert factor(1000) == pytest.approx(0.1)
    assert [schedule("constant", 10, warmup=0.0, final=0.1)(s) for s in (0, 5, 50)] == [1.0, 1.0, 1.0]
    assert schedule("cosine", 1, warmup=0.1, final=0.0)(0) > 0


def test_schedule_by_the_clock():
    """The cosine goes by the steps or by the clock, whichever is further on."""
    now = 0.0
    by_clock = schedule("cosine", float("inf"), 0.2, 0.0, lambda: now)
    by_both = schedule("cosine", 100, 0.2, 0.0, lambda: now)
    assert by_clock(50) == 0.0
    assert by_both(9) == 0.5
    now = 0.1
    assert by_clock(0) == by_both(0) == 0.5
    now = 0.6
    assert by_clock(0) == pytest.approx(0.5) == by_both(0)
    assert by_both(99) == 0.0
    now = 1.0
    assert by_clock(0) == by_both(0) == 0.0
    assert schedule("constant", float("inf"), 0.2, 0.0, lambda: now)(3) == 1.0
