"""Cases of every op as data: op, sizes, optional tensors, options. Every backend runs them.

    for case in CASES:
        tensors, options = case.build(torch.float32)
        y = getattr(ops, case.op)(**tensors, **options)

`outcome` runs a case forward and backward, `check` compares a backend with the reference.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from tolerances import assert_close
from torch import Tensor

from nvsubq import ops

SHAPES: dict[str, dict[str, str]] = {
    "selective_scan": {
        "u": "B L D",
        "delta": "B L D",
        "A": "D N",
        "B": "B L N",
        "C": "B L N",
        "D": "D",
        "z": "B L D",
        "delta_bias": "D",
        "delta_a": "B L D",
        "timesteps": "B L",
        "decay_gate": "B L N",
        "initial_state": "B D N",
    },
    "linear_scan": {"a": "B L D", "b": "B L D", "dt": "B L", "initial_state": "B D"},
    "rglru_scan": {
        "x": "B L D",
        "r": "B L D",
        "i": "B L D",
        "a_log": "D",
        "gate": "B L D",
        "r_bias": "D",
        "i_bias": "D",
        "initial_state": "B D",
    },
    "ssd_scan": {
        "x": "B L H P",
        "dt": "B L H",
        "A": "H",
        "B": "B L G N",
        "C": "B L G N",
        "D": "H",
        "z": "B L H P",
        "dt_bias": "H",
        "initial_state": "B H P N",
    },
    "causal_conv1d": {"x": "B L D", "weight": "D K", "bias": "D", "initial_state": "B D W"},
}
REQUIRED = {
    "selective_scan": ("u", "delta", "A", "B", "C"),
    "linear_scan": ("a", "b"),
    "rglru_scan": ("x", "r", "i", "a_log"),
    "ssd_scan": ("x", "dt", "A", "B", "C"),
    "causal_conv1d": ("x", "weight"),
}
UPDATES = {op: op.replace("_scan", "_state_update") for op in SHAPES} | {
    "causal_conv1d": "causal_conv1d_update"
}
BLOCKED_LETTERS = "DHG"  # the letters whose axis holds the S blocks of a walk


@dataclass(frozen=True)
class Case:
    """One call of an op.

    Args:
        op: name of the public function.
        name: unique among the op's cases.
        sizes: size of each letter.
        give: the optional tensors that are given, `seq_idx` and `order` among them.
        options: keyword arguments that are no tensors.
        forms: shapes that differ from `SHAPES`.
        complex: tensors that are complex.
        slow: long enough for the `slow` marker.
    """

    op: str
    name: str
    sizes: Mapping[str, int]
    give: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    forms: Mapping[str, str] = field(default_factory=dict)
    complex: tuple[str, ...] = ()
    slow: bool = False

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    @property
    def tensor_names(self) -> tuple[str, ...]:
        return tuple(n for n in SHAPES[self.op] if n in REQUIRED[self.op] or n in self.give)

    @property
    def blocks(self) -> int:
        """S, as `order` and `reverse` say."""
        reverse = self.options.get("reverse", False)
        return self.sizes.get("S", 1 if isinstance(reverse, bool) else len(reverse))

    def pattern(self, name: str) -> list[str]:
        return self.forms.get(name, SHAPES[self.op][name]).split()

    def is_activation(self, name: str) -> bool:
        """Whether a tensor is stored in the activations' dtype; parameters and states are fp32 at least."""
        return "L" in self.pattern(name)

    def build(
        self, dtype: torch.dtype = torch.float64, device: str = "cpu", *, requires_grad: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Make the call's tensors and options; the same on every machine."""
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))
        wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        tensors: dict[str, Tensor] = {}
        for name in self.tensor_names:
            shape = [self.sizes[letter] for letter in self.pattern(name)]
            value = self._value(name, shape, generator)
            kind = dtype if self.is_activation(name) else wide
            if value.is_complex():
                kind = torch.complex128 if wide == torch.float64 else torch.complex64
            tensors[name] = value.to(device, kind).requires_grad_(requires_grad)
        return tensors, dict(self.options) | self._tables(generator, device)

    def _value(self, name: str, shape: list[int], generator: torch.Generator) -> Tensor:
        def normal() -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

        phase = torch.exp(1j * uniform(-3.2, 3.2)) if name in self.complex else None
        softplus = self.options.get("delta_softplus") or self.options.get("dt_softplus")
        is_rate = name == "A" or (name == "a" and "dt" in self.give)
        if name == "A" and self.options.get("discretization") == "no_discretization":
            value = uniform(-0.95, 0.95)
        elif is_rate:
            return -uniform(0.1, 4.0) + (2j * normal() if phase is not None else 0)
        elif name in ("delta", "dt"):
            return normal() - 1 if softplus else uniform(0.01, 0.6)
        elif name == "delta_a":
            return uniform(0.01, 0.6)
        elif name in ("delta_bias", "dt_bias") and not softplus:
            return uniform(0.0, 0.2)
        elif name == "timesteps":
            return uniform(0.0, 3.0)
        elif name == "decay_gate":
            return uniform(0.2, 1.0)
        elif name == "a":
            value = uniform(0.3, 0.999) if phase is not None else uniform(-0.5, 0.999)
        else:
            value = normal()
        return value if phase is None else value * phase

    def _tables(self, generator: torch.Generator, device: str) -> dict[str, Tensor]:
        batch, length = self.sizes["B"], self.sizes["L"]
        tables = {}
        if "seq_idx" in self.give or "packed" in self.give:
            runs = torch.rand(batch, length, generator=generator).lt(0.2).cumsum(1) % 3
            if "seq_idx" in self.give:  # with absent cells; the last row has none but absent ones
                runs[torch.rand(batch, length, generator=generator) < 0.3] = -1
                runs[-1 if batch > 1 else slice(0, 0)] = -2
            tables["seq_idx"] = runs.to(device, torch.int32)
        if "order" in self.give:
            rows = [torch.randperm(length, generator=generator) for _ in range(self.sizes.get("S", 1))]
            tables["order"] = (torch.stack(rows) if "S" in self.sizes else rows[0]).to(device, torch.int32)
        return tables


_BASE = {
    "selective_scan": {"B": 3, "L": 19, "D": 6, "N": 4},
    "linear_scan": {"B": 3, "L": 19, "D": 6},
    "rglru_scan": {"B": 3, "L": 19, "D": 6},
    "ssd_scan": {"B": 3, "L": 19, "H": 4, "P": 3, "G": 2, "N": 5},
    "causal_conv1d": {"B": 3, "L": 19, "D": 6, "K": 4, "W": 4},
}


def _case(op: str, name: str, give: str = "", sizes: Mapping[str, int] | None = None, **more) -> Case:
    return Case(op, name, _BASE[op] | dict(sizes or {}), tuple(give.split()), **more)


def _walks(op: str, everything: str, always: str = "", **more) -> Iterator[Case]:
    """The walks that every op must follow, some of them with all optional tensors."""
    extra = "initial_state " + everything
    options = dict(more.pop("options", {}))

    def case(name: str, give: str = "", sizes: Mapping[str, int] | None = None, **walk) -> Case:
        return _case(op, name, f"{give} {always}", sizes, options=options | walk, **more)

    yield case("order", "order " + extra)
    yield case("reverse", extra, reverse=True)
    yield case("order-reverse", "order", reverse=True)
    yield case("seq_idx", "seq_idx " + extra)
    yield case("seq_idx-fresh", "seq_idx")
    yield case("seq_idx-order-reverse", "seq_idx order " + extra, reverse=True)
    yield case("packed", "packed " + extra)
    yield case("packed-reverse", "packed", reverse=True)
    two = {"S": 2}
    if op == "selective_scan":
        two |= {"G": 2}
        grouped = dict.fromkeys(("B", "C", "decay_gate"), "B L G N")
        more["forms"] = grouped | dict(more.get("forms", {}))
    yield case("blocks", "order " + extra, two, reverse=(True, False))
    yield case("blocks-seq_idx", "order seq_idx " + extra, two)
    no_order = {k: v for k, v in two.items() if k != "S"}
    yield case("blocks-reverse", "packed " + extra, no_order, reverse=(False, True))


def _lengths(op: str, everything: str, **more) -> Iterator[Case]:
    for length in (0, 1, 2, 63, 64, 65, 196):
        yield _case(op, f"L{length}", "initial_state " + everything, {"L": length, "B": 2}, **more)
    for length in (1000, 4097):
        yield _case(op, f"L{length}", everything, {"L": length, "B": 1}, slow=True, **more)
    yield _case(op, "B0", everything, {"B": 0}, **more)


def _selective() -> Iterator[Case]:
    op = "selective_scan"
    every = "D z delta_bias"
    soft = {"delta_softplus": True}
    grouped = dict.fromkeys(("B", "C", "decay_gate"), "B L G N")
    fixed = dict.fromkeys(("B", "C", "decay_gate"), "D N")
    rate = {"delta_a": "D"}
    yield _case(op, "plain")
    yield _case(op, "all", every + " initial_state", options=soft)
    for name in every.split():
        yield _case(op, f"with-{name}", name)
    yield _case(op, "softplus", options=soft)
    for kind in ("mamba", "zoh", "bilinear", "dirac", "async", "no_discretization"):
        yield _case(op, kind, "D", options={"discretization": kind})
        yield _case(op, f"{kind}-complex", "z", options={"discretization": kind}, complex=("A",))
        if kind != "no_discretization":
            options = soft | {"discretization": kind}
            yield _case(op, f"{kind}-delta_a", "delta_a " + every, options=options)
            yield _case(op, f"{kind}-timesteps", "delta_a timesteps", options=options, forms=rate)
        yield _case(op, f"{kind}-gate", "decay_gate " + every, options={"discretization": kind})
    for groups in (1, 2, 6):
        yield _case(op, f"G{groups}", every + " decay_gate", {"G": groups}, forms=grouped, options=soft)
    yield _case(op, "fixed-B", every, forms={"B": "D N"})
    yield _case(op, "fixed-C", every, forms={"C": "D N"})
    yield _case(op, "fixed", every + " decay_gate", forms=fixed)
    yield _case(
        op, "fixed-zoh-complex", "D", forms=fixed, complex=("A", "B", "C"), options={"discretization": "zoh"}
    )
    yield _case(op, "complex-BC", every + " initial_state", complex=("A", "B", "C", "initial_state"))
    yield _case(op, "complex-gate", every + " decay_gate", complex=("A",), options=soft)
    for states in (1, 16, 64, 256):
        yield _case(op, f"N{states}", every, {"N": states}, options=soft)
    yield _case(op, "D1", every, {"D": 1})
    yield from _walks(op, every, options=soft)
    complex_state = ("A", "initial_state")
    walks = _walks(op, "D decay_gate", options={"discretization": "bilinear"}, complex=complex_state)
    yield from (replace(case, name=f"complex-{case.name}") for case in walks)
    event = _walks(op, "", "delta_a timesteps", options=soft | {"discretization": "zoh"}, forms=rate)
    yield from (replace(case, name=f"event-{case.name}") for case in event)
    yield from _lengths(op, every, options=soft)


def _linear() -> Iterator[Case]:
    op = "linear_scan"
    wide = {"dt": "B L D"}
    for label, kind in {"real": (), "complex": ("a", "b"), "complex-a": ("a",), "complex-b": ("b",)}.items():
        state = {"complex": (*kind, "initial_state") if kind else ()}
        yield _case(op, label, complex=kind)
        yield _case(op, f"{label}-fixed", "initial_state", forms={"a": "D"}, **state)
        yield _case(op, f"{label}-sqrt", complex=kind, options={"input_scale": "sqrt"})
        for how in ("zoh", "bilinear"):
            for scale in ("none", "zoh", "bilinear", "sqrt"):
                options = {"discretization": how, "input_scale": scale}
                yield _case(
                    op, f"{label}-dt-{how}-{scale}", "dt", forms={"a": "D"}, complex=kind, options=options
                )
        yield _case(op, f"{label}-wide-dt", "dt initial_state", forms={"a": "D"} | wide, **state)
    yield _case(op, "D1", sizes={"D": 1})
    yield from _walks(op, "")
    both = ("a", "b", "initial_state")
    options = {"input_scale": "zoh"}
    walks = _walks(op, "", "dt", forms={"a": "D"}, complex=both, options=options)
    yield from (replace(case, name=f"complex-{case.name}") for case in walks)
    yield from (replace(c, name=f"fixed-{c.name}") for c in _walks(op, "", forms={"a": "D"}))
    yield from _lengths(op, "")
    yield from (
        replace(case, name=f"complex-{case.name}")
        for case in _lengths(op, "dt", forms={"a": "D"}, complex=both, options=options)
    )


def _rglru() -> Iterator[Case]:
    op = "rglru_scan"
    every = "gate r_bias i_bias"
    yield _case(op, "plain")
    yield _case(op, "all", every + " initial_state")
    for name in every.split():
        yield _case(op, f"with-{name}", name)
    yield _case(op, "tanh", "gate", options={"gelu": "tanh"})
    yield _case(op, "c1", options={"c": 1.0})
    yield _case(op, "not-normalized", every, options={"normalize_first": False})
    yield _case(op, "not-normalized-state", "initial_state", options={"normalize_first": False})
    yield _case(op, "D1", every, {"D": 1})
    yield from _walks(op, every)
    walks = _walks(op, "", options={"normalize_first": False})
    yield from (replace(case, name=f"not-normalized-{case.name}") for case in walks)
    yield from _lengths(op, every)


def _ssd() -> Iterator[Case]:
    op = "ssd_scan"
    every = "D z dt_bias"
    soft = {"dt_softplus": True}
    yield _case(op, "plain")
    yield _case(op, "all", every + " initial_state", options=soft)
    for name in every.split():
        yield _case(op, f"with-{name}", name)
    yield _case(op, "D-per-channel", "D", forms={"D": "H P"})
    yield _case(op, "limit", "dt_bias", options=soft | {"dt_limit": (0.1, 0.5)})
    yield _case(op, "chunk", every, options={"chunk_size": 4})
    for groups in (1, 4):
        yield _case(op, f"G{groups}", every, {"G": groups}, options=soft)
    for states in (1, 16, 128):
        yield _case(op, f"N{states}", every, {"N": states})
    yield _case(op, "P1-H1", every, {"H": 1, "P": 1, "G": 1})
    yield from _walks(op, every, options=soft)
    yield from _lengths(op, every, options=soft)


def _conv() -> Iterator[Case]:
    op = "causal_conv1d"
    silu = {"activation": "silu"}
    yield _case(op, "plain")
    yield _case(op, "all", "bias initial_state", options=silu)
    yield _case(op, "with-bias", "bias")
    yield _case(op, "silu", options=silu)
    for taps in (1, 2, 3, 7):
        yield _case(op, f"K{taps}", "bias initial_state", {"K": taps, "W": taps}, options=silu)
    yield _case(op, "short-state", "bias initial_state", {"W": 3}, options=silu)
    yield _case(op, "empty-state", "initial_state", {"K": 1, "W": 0})
    for dilation in (2, 4):
        yield _case(op, f"dilation{dilation}", "bias", options=silu | {"dilation": dilation})
        state = {"W": 3 * dilation + 1}
        yield _case(op, f"dilation{dilation}-state", "initial_state", state, options={"dilation": dilation})
    yield _case(op, "D1", "bias", {"D": 1})
    yield from _walks(op, "bias", options=silu)
    dilated = _walks(op, "bias", options={"dilation": 2})
    dilated = (replace(case, sizes={**case.sizes, "W": 8}) for case in dilated)
    yield from (replace(case, name=f"dilated-{case.name}") for case in dilated)
    yield from _lengths(op, "bias", options=silu)


CASES: tuple[Case, ...] = (*_selective(), *_linear(), *_rglru(), *_ssd(), *_conv())


def cases(op: str | None = None, *, slow: bool = False, having: Iterable[str] = ()) -> list[Case]:
    """Pick cases by op, with all of the given optional tensors; the slow ones only when asked."""
    having = set(having)
    return [c for c in CASES if op in (None, c.op) and (slow or not c.slow) and having <= set(c.give)]


def case_of(op: str, name: str) -> Case:
    """Find one case by its name."""
    return next(case for case in CASES if (case.op, case.name) == (op, name))


def outcome(
    case: Case,
    backend: str,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    *,
    as_double: bool = False,
    backward: bool = True,
) -> dict[str, Tensor]:
    """Run a case and give `y`, `final_state` and each tensor's gradient, for fixed random cotangents.

    With `as_double` the inputs are rounded to `dtype` first and then run in fp64: the expected values.
    """
    tensors, options = case.build(dtype, device)
    if as_double:
        tensors = {n: t.to(torch.complex128 if t.is_complex() else torch.float64) for n, t in tensors.items()}
    for tensor in tensors.values():
        tensor.requires_grad_(backward)
    y, final = getattr(ops, case.op)(**tensors, **options, return_final_state=True, backend=backend)
    found = {"y": y.detach(), "final_state": final.detach()}
    if backward:
        cotangents = _cotangents(case, y, final, dtype)
        pairs = [(out, grad) for out, grad in zip((y, final), cotangents, strict=True) if out.requires_grad]
        grads: tuple = (None,) * len(tensors)
        if pairs:  # nothing depends on anything in a walk of no cells
            roots, cotangents = zip(*pairs, strict=True)
            grads = torch.autograd.grad(roots, tuple(tensors.values()), cotangents, allow_unused=True)
        for (name, tensor), grad in zip(tensors.items(), grads, strict=True):
            found[f"grad of {name}"] = torch.zeros_like(tensor) if grad is None else grad
    return found


def _cotangents(case: Case, y: Tensor, final: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{case} cotangents".encode()))

    def draw(like: Tensor, rounded: torch.dtype) -> Tensor:
        kind = torch.complex128 if like.is_complex() else torch.float64
        value = torch.randn(like.shape, generator=generator, dtype=kind)
        return (value if like.is_complex() else value.to(rounded)).to(like)

    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    state_dtype = dtype if case.op == "causal_conv1d" and "initial_state" not in case.give else wide
    return draw(y, dtype), draw(final, state_dtype)


def check(case: Case, backend: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> None:
    """Compare a backend with the reference, outputs and every gradient, by the table of tolerances."""
    expected = outcome(case, "reference", dtype, as_double=True)
    for name, got in outcome(case, backend, dtype, device).items():
        assert_close(f"{case}, {name}", got.cpu(), expected[name])
