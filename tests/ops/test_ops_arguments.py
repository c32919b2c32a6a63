"""Bad input to the ops: one message that names the argument, its value, and what is allowed."""

from __future__ import annotations

import re

import pytest
import torch
from cases import SHAPES, UPDATES, case_of
from torch import Tensor

from nvsubq import ops

ORDER2 = torch.stack([torch.arange(19)] * 2)


def message_of(op: str, name: str, changes: dict) -> str:
    """Run a case with some arguments changed: a tensor, a value, or a function of the case's tensor."""
    tensors, options = case_of(op, name).build(torch.float32)
    given: dict = tensors | options
    for key, change in changes.items():
        given[key] = change(given[key]) if callable(change) else change
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is what the callers assert)
        getattr(ops, op)(**given)
    return str(caught.value)


def narrow(tensor: Tensor) -> Tensor:
    return tensor[..., :-1]


def integer(tensor: Tensor) -> Tensor:
    return tensor.int()


SELECTIVE = "selective_scan"
BAD = [
    (SELECTIVE, "plain", {"u": lambda t: t[0]}, "`u` (shape [19, 6]) must have shape [B, L, D]."),
    (
        SELECTIVE,
        "plain",
        {"u": integer},
        "`u` (dtype int32) must have one of the dtypes float16, bfloat16, float32, float64.",
    ),
    (
        SELECTIVE,
        "plain",
        {"delta": narrow},
        "`delta` (shape [3, 19, 5]) must have shape [B, L, D] = [3, 19, 6].",
    ),
    (SELECTIVE, "plain", {"A": lambda t: t[:5]}, "`A` (shape [5, 4]) must have shape [D, N] = [6, N]."),
    (
        SELECTIVE,
        "plain",
        {"B": narrow},
        "`B` (shape [3, 19, 3]) must have shape [B, L, N] = [3, 19, 4] or [B, L, G, N] = "
        "[3, 19, G, 4] or [D, N] = [6, 4].",
    ),
    (SELECTIVE, "G2", {"B": lambda t: t[:, :, :1]}, "`C` (shape [3, 19, 2, 4]) must have shape"),
    (
        SELECTIVE,
        "G2",
        {n: lambda t: t.repeat(1, 1, 2, 1) for n in ("B", "C", "decay_gate")},
        "the number of groups G (=4) must divide D (=6).",
    ),
    (SELECTIVE, "plain", {"C": lambda t: t + 0j}, "`C` (dtype complex64) must have one of the dtypes"),
    (
        SELECTIVE,
        "complex-gate",
        {"C": lambda t: t + 0j},
        "`B` (dtype float32) and `C` (dtype complex64) must be both real or both complex.",
    ),
    (SELECTIVE, "all", {"D": narrow}, "`D` (shape [5]) must have shape [D] = [6]."),
    (SELECTIVE, "all", {"z": narrow}, "`z` (shape [3, 19, 5]) must have shape [B, L, D] = [3, 19, 6]."),
    (SELECTIVE, "all", {"delta_bias": narrow}, "`delta_bias` (shape [5]) must have shape [D] = [6]."),
    (
        SELECTIVE,
        "all",
        {"initial_state": narrow},
        "`initial_state` (shape [3, 6, 3]) must have shape [B, D, N] = [3, 6, 4].",
    ),
    (
        SELECTIVE,
        "all",
        {"initial_state": Tensor.bfloat16},
        "`initial_state` (dtype bfloat16) must have one of the dtypes float32, float64.",
    ),
    (
        SELECTIVE,
        "complex-BC",
        {"initial_state": torch.real},
        "`initial_state` (dtype float32) must have one of the dtypes complex64, complex128.",
    ),
    (
        SELECTIVE,
        "plain",
        {"discretization": "euler"},
        "`discretization` (='euler') must be one of 'mamba', 'zoh', 'bilinear', 'dirac', "
        "'async', 'no_discretization'.",
    ),
    (
        SELECTIVE,
        "plain",
        {"timesteps": torch.ones(3, 19)},
        "`timesteps` needs `delta_a` [D], the rate that it multiplies.",
    ),
    (
        SELECTIVE,
        "mamba-delta_a",
        {"timesteps": torch.ones(3, 19)},
        "`delta_a` (shape [3, 19, 6]) must have shape [D] = [6].",
    ),
    (
        SELECTIVE,
        "plain",
        {"delta_a": torch.ones(6)},
        "`delta_a` (shape [6]) must have shape [B, L, D] = [3, 19, 6].",
    ),
    (
        SELECTIVE,
        "mamba-timesteps",
        {"timesteps": narrow},
        "`timesteps` (shape [3, 18]) must have shape [B, L] = [3, 19].",
    ),
    (
        SELECTIVE,
        "mamba-delta_a",
        {"discretization": "no_discretization"},
        "`delta_a` has no place with `discretization` (='no_discretization'): A is the decay itself.",
    ),
    (
        SELECTIVE,
        "fixed",
        {"decay_gate": torch.ones(3, 19, 4)},
        "`decay_gate` (shape [3, 19, 4]) must have the shape of `B` [6, 4].",
    ),
    (
        SELECTIVE,
        "seq_idx",
        {"seq_idx": narrow},
        "`seq_idx` (shape [3, 18]) must have shape [B, L] = [3, 19].",
    ),
    (SELECTIVE, "seq_idx", {"seq_idx": Tensor.float}, "`seq_idx` (dtype float32) must be int32 or int64."),
    (
        SELECTIVE,
        "order",
        {"order": narrow},
        "`order` (shape [18]) must have shape [L] or [S, L], here [L] = [19].",
    ),
    (
        SELECTIVE,
        "plain",
        {"reverse": "yes"},
        "`reverse` (='yes') must be a bool, or one bool for each of S blocks.",
    ),
    (
        SELECTIVE,
        "plain",
        {"reverse": [True] * 4},
        "`order` and `reverse` name S (=4) walks; S must divide D (=6).",
    ),
    (
        SELECTIVE,
        "plain",
        {"order": ORDER2},
        "`B` (shape [3, 19, 4]) has one group; with S (=2) walks it must be [B, L, G, N] "
        "with G a multiple of S, or [D, N].",
    ),
    (
        SELECTIVE,
        "G1",
        {"order": ORDER2},
        "the number of groups G (=1) must be a multiple of the S (=2) walks.",
    ),
    (SELECTIVE, "plain", {"A": lambda t: t.to("meta")}, "`A` (on meta) must be on the device of `u` (cpu)."),
    ("linear_scan", "real", {"b": lambda t: t[0]}, "`b` (shape [19, 6]) must have shape [B, L, D]."),
    (
        "linear_scan",
        "real",
        {"a": narrow},
        "`a` (shape [3, 19, 5]) must have shape [D] = [6] or [B, L, D] = [3, 19, 6].",
    ),
    ("linear_scan", "real", {"dt": torch.ones(3, 19)}, "`a` (shape [3, 19, 6]) must have shape [D] = [6]."),
    (
        "linear_scan",
        "real-wide-dt",
        {"dt": narrow},
        "`dt` (shape [3, 19, 5]) must have shape [B, L] = [3, 19] or [B, L, D] = [3, 19, 6].",
    ),
    (
        "linear_scan",
        "real-wide-dt",
        {"dt": lambda t: t + 0j},
        "`dt` (dtype complex64) must have one of the dtypes",
    ),
    (
        "linear_scan",
        "real",
        {"input_scale": "zoh"},
        "`input_scale` (='zoh') needs `dt`; without it `a` is the decay, not a rate.",
    ),
    (
        "linear_scan",
        "real",
        {"discretization": "bilinear"},
        "`discretization` (='bilinear') needs `dt`; without it `a` is the decay itself.",
    ),
    (
        "linear_scan",
        "real",
        {"discretization": "dirac"},
        "`discretization` (='dirac') must be one of 'zoh', 'bilinear'.",
    ),
    (
        "linear_scan",
        "real",
        {"input_scale": "full"},
        "`input_scale` (='full') must be one of 'none', 'zoh', 'bilinear', 'sqrt'.",
    ),
    (
        "linear_scan",
        "complex",
        {"initial_state": torch.zeros(3, 6)},
        "`initial_state` (dtype float32) must have one of the dtypes complex64, complex128.",
    ),
    ("rglru_scan", "plain", {"r": narrow}, "`r` (shape [3, 19, 5]) must have shape [B, L, D] = [3, 19, 6]."),
    (
        "rglru_scan",
        "plain",
        {"a_log": lambda t: t[:, None]},
        "`a_log` (shape [6, 1]) must have shape [D] = [6].",
    ),
    ("rglru_scan", "plain", {"gelu": "none"}, "`gelu` (='none') must be one of 'erf', 'tanh'."),
    ("rglru_scan", "plain", {"c": 0.0}, "`c` (=0.0) must be positive and finite."),
    (
        "rglru_scan",
        "all",
        {"initial_state": lambda t: t[..., None]},
        "`initial_state` (shape [3, 6, 1]) must have shape [B, D] = [3, 6].",
    ),
    (
        "ssd_scan",
        "plain",
        {"x": lambda t: t.flatten(2)},
        "`x` (shape [3, 19, 12]) must have shape [B, L, H, P].",
    ),
    ("ssd_scan", "plain", {"dt": narrow}, "`dt` (shape [3, 19, 3]) must have shape [B, L, H] = [3, 19, 4]."),
    ("ssd_scan", "plain", {"A": narrow}, "`A` (shape [3]) must have shape [H] = [4]."),
    (
        "ssd_scan",
        "plain",
        {n: lambda t: t[:, :, [0, 1, 1]] for n in "BC"},
        "the number of groups G (=3) must divide H (=4).",
    ),
    (
        "ssd_scan",
        "plain",
        {"D": torch.ones(12)},
        "`D` (shape [12]) must have shape [H] = [4] or [H, P] = [4, 3].",
    ),
    (
        "ssd_scan",
        "plain",
        {"dt_limit": (1.0, 0.5)},
        "`dt_limit` (=(1.0, 0.5)) must be a pair (lowest, highest).",
    ),
    ("ssd_scan", "plain", {"chunk_size": 0}, "`chunk_size` (=0) must be a positive int."),
    (
        "ssd_scan",
        "plain",
        {"reverse": [True] * 3},
        "`order` and `reverse` name S (=3) walks; S must divide H (=4).",
    ),
    (
        "causal_conv1d",
        "plain",
        {"weight": lambda t: t[:, None]},
        "`weight` (shape [6, 1, 4]) must have shape [D, K] = [6, K].",
    ),
    (
        "causal_conv1d",
        "plain",
        {"weight": lambda t: t[:, :0]},
        "`weight` (shape [6, 0]) must have at least one tap.",
    ),
    ("causal_conv1d", "plain", {"bias": torch.ones(5)}, "`bias` (shape [5]) must have shape [D] = [6]."),
    ("causal_conv1d", "plain", {"activation": "relu"}, "`activation` (='relu') must be one of None, 'silu'."),
    ("causal_conv1d", "plain", {"dilation": 0}, "`dilation` (=0) must be an int of at least 1."),
    (
        "causal_conv1d",
        "all",
        {"dilation": 2},
        "`initial_state` (shape [3, 6, 4]) must hold at least (K-1)·dilation = 6 inputs.",
    ),
]


@pytest.mark.parametrize(("op", "name", "changes", "message"), BAD)
def test_bad_input(op: str, name: str, changes: dict, message: str) -> None:
    assert message in message_of(op, name, changes)


@pytest.mark.parametrize("op", SHAPES)
def test_what_is_no_tensor(op: str) -> None:
    tensors, _ = case_of(op, "plain" if op != "linear_scan" else "real").build()
    for name in tensors:
        with pytest.raises(
            TypeError, match=rf"`{re.escape(name)}` \(=None\) must be a tensor, not NoneType\."
        ):
            getattr(ops, op)(**tensors | {name: None})
    with pytest.raises(TypeError, match="unexpected keyword argument 'chunks'"):
        getattr(ops, op)(**tensors, chunks=2)


BAD_UPDATES = [
    (
        "selective_scan",
        {"state": lambda t: t[..., :-1]},
        "`state` (shape [3, 6, 3]) must have shape [B, D, N] = [3, 6, 4].",
    ),
    (
        "selective_scan",
        {"state": Tensor.half},
        "`state` (dtype float16) must have one of the dtypes float32, float64.",
    ),
    ("selective_scan", {"u": lambda t: t[:, None]}, "`u` (shape [3, 1, 6]) must have shape [B, D]."),
    (
        "selective_scan",
        {"B": lambda t: t.new_ones(6, 4)},
        "`B` (shape [6, 4]) must have shape [B, N] = [3, 4] or [B, G, N] = [3, G, 4].",
    ),
    (
        "linear_scan",
        {"state": lambda t: t + 0j},
        "`state` (dtype complex64) must have one of the dtypes float32, float64.",
    ),
    ("rglru_scan", {"i": lambda t: t[:2]}, "`i` (shape [2, 6]) must have shape [B, D] = [3, 6]."),
    (
        "ssd_scan",
        {"state": lambda t: t[:, :2]},
        "`state` (shape [3, 2, 3, 5]) must have shape [B, H, P, N] = [3, 4, 3, 5].",
    ),
    (
        "causal_conv1d",
        {"state": lambda t: t[..., :2]},
        "`state` (shape [3, 6, 2]) must hold at least (K-1)·dilation = 3 inputs.",
    ),
]


@pytest.mark.parametrize(("op", "changes", "message"), BAD_UPDATES)
def test_bad_input_to_an_update(op: str, changes: dict, message: str) -> None:
    case = case_of(op, "reverse")
    tensors, options = case.build(torch.float32)
    given = {n: t.select(1, 0) if "L" in case.pattern(n) else t for n, t in tensors.items()}
    given["state"] = given.pop("initial_state")
    given |= {n: change(given[n]) for n, change in changes.items()}
    options.pop("reverse")
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(ops, UPDATES[op])(**given, **options)


@pytest.mark.parametrize("op", SHAPES)
def test_an_update_needs_a_state(op: str) -> None:
    case = case_of(op, "plain" if op != "linear_scan" else "real")
    tensors, options = case.build(torch.float32)
    given = {n: t.select(1, 0) if "L" in case.pattern(n) else t for n, t in tensors.items()}
    with pytest.raises(TypeError, match=r"`state` \(=None\) must be a tensor, not NoneType\."):
        getattr(ops, UPDATES[op])(None, **given, **options)
