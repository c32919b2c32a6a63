"""What the native backend promises beyond single cases: bits, strides, memory, threads, forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from cases import Case, case_of, outcome
from tolerances import assert_close
from torch import Tensor

from nvsubq.ops import backends, causal_conv1d, selective_scan
from nvsubq.ops.native import library
from nvsubq.ops.native.struct import Struct

pytestmark = pytest.mark.skipif(
    not next(b for b in backends() if b.name == "native").active, reason="native is not active"
)

WALK = "seq_idx-order-reverse"
LAWS = [
    case_of("selective_scan", "all"),
    case_of("selective_scan", WALK),
    case_of("selective_scan", f"complex-{WALK}"),
    case_of("selective_scan", "fixed-zoh-complex"),
    case_of("causal_conv1d", "all"),
    case_of("causal_conv1d", WALK),
    case_of("ssd_scan", "all"),
    case_of("ssd_scan", WALK),
    case_of("linear_scan", "complex"),
    case_of("linear_scan", f"complex-{WALK}"),
    case_of("rglru_scan", "all"),
    case_of("rglru_scan", WALK),
]


def scan_inputs(
    batch: int = 2, length: int = 70, width: int = 37, states: int = 5, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    cells = (batch, length)
    return {
        "u": normal(*cells, width),
        "delta": normal(*cells, width) - 1,
        "A": -normal(width, states).exp(),
        "B": normal(*cells, states),
        "C": normal(*cells, states),
        "D": normal(width),
        "z": normal(*cells, width),
        "delta_bias": normal(width),
        "initial_state": normal(batch, width, states),
    }


def run_scan(inputs: dict[str, Tensor], backend: str = "native", **options) -> list[Tensor]:
    """y, final state and all gradients."""
    leaves = {n: t.detach().requires_grad_() for n, t in inputs.items()}
    y, final = selective_scan(
        **leaves, delta_softplus=True, return_final_state=True, backend=backend, **options
    )
    cotangents = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t) for t in (y, final)]
    return [y.detach(), final.detach(), *torch.autograd.grad((y, final), list(leaves.values()), cotangents)]


def run_conv(x: Tensor, weight: Tensor, bias: Tensor, backend: str = "native", **options) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y, final = causal_conv1d(*leaves, activation="silu", return_final_state=True, backend=backend, **options)
    cotangents = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t) for t in (y, final)]
    return [y.detach(), final.detach(), *torch.autograd.grad((y, final), leaves, cotangents)]


def same_bits(got: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.fixture
def many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small calls use several threads too."""
    monkeypatch.setattr(library, "_WORK_OF_ONE_THREAD", 0)


@pytest.mark.parametrize("case", LAWS, ids=str)
def test_reads_and_leaves_nothing_uninitialised(case: Case) -> None:
    """Torch fills every `empty` tensor first: outputs with NaN, workspaces with bytes of 255."""
    expected = outcome(case, "native", torch.float32)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    assert torch.equal(
        torch.empty(8, dtype=torch.uint8).view(torch.float32).isnan(), torch.tensor([True, True])
    )
    got = outcome(case, "native", torch.float32)
    for name, value in got.items():
        assert not value.isnan().any(), name
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 196, 1000])
@pytest.mark.parametrize("states", [1, 4, 16, 64])
def test_lengths_and_states(length: int, states: int) -> None:
    """Against the portable backend in fp64; the width fills no whole number of lanes."""
    inputs = scan_inputs(1, length, 19, states, torch.float64)
    expected = run_scan(inputs, "torch")
    for i, (got, want) in enumerate(zip(run_scan(inputs), expected, strict=True)):
        assert_close(f"output {i}", got, want)


@pytest.mark.parametrize("width", [1, 15, 16, 17, 33, 64, 65, 130, 300])
def test_widths(width: int) -> None:
    inputs = scan_inputs(2, 40, width, 4, torch.float64)
    for i, (got, want) in enumerate(zip(run_scan(inputs), run_scan(inputs, "torch"), strict=True)):
        assert_close(f"output {i}", got, want)
    conv = torch.randn(2, 150, width).double(), torch.randn(width, 4).double(), torch.randn(width).double()
    for i, (got, want) in enumerate(zip(run_conv(*conv), run_conv(*conv, "torch"), strict=True)):
        assert_close(f"output {i}", got, want)


@pytest.mark.usefixtures("many_threads")
def test_any_number_of_threads_gives_the_same_bits() -> None:
    inputs = scan_inputs(2, 200, 150, 6)
    conv = torch.randn(2, 400, 150), torch.randn(150, 4), torch.randn(150)
    torch.set_num_threads(1)
    expected = run_scan(inputs), run_conv(*conv)
    for threads in (2, 8):
        torch.set_num_threads(threads)
        for _ in range(5):
            assert same_bits(run_scan(inputs), expected[0])
            assert same_bits(run_conv(*conv), expected[1])


def test_a_row_does_not_depend_on_the_batch() -> None:
    inputs = scan_inputs(7, 50, 40, 4)
    over_rows = {n: t for n, t in inputs.items() if t.shape[0] == 7}
    options = {"delta_softplus": True, "backend": "native"}
    together = selective_scan(**inputs, **options)
    for row in (0, 6):
        alone = selective_scan(**inputs | {n: t[row : row + 1] for n, t in over_rows.items()}, **options)
        assert torch.equal(alone[0], together[row])


def strided(t: Tensor) -> Tensor:
    """The same values inside a wider tensor, at an odd offset: only the last axis is contiguous."""
    if t.dim() == 1:
        return torch.cat([t.new_full((1,), torch.nan), t])[1:]
    wide = t.new_full((*t.shape[:-1], t.shape[-1] + 5), torch.nan)
    wide[..., 3:-2] = t
    return wide[..., 3:-2]


def test_strides_and_misaligned_offsets() -> None:
    inputs = scan_inputs()
    expected = run_scan(inputs)
    odd = {n: strided(t) for n, t in inputs.items()}
    assert odd["u"].data_ptr() % 16
    assert same_bits(run_scan(odd), expected)
    turned = {n: t.mT.contiguous().mT if t.dim() > 1 else t for n, t in inputs.items()}
    assert not turned["u"].is_contiguous()
    assert same_bits(run_scan(turned), expected)
    x, weight, bias = torch.randn(2, 70, 37), torch.randn(37, 4), torch.randn(37)
    expected = run_conv(x, weight, bias)
    assert same_bits(run_conv(*map(strided, (x, weight, bias))), expected)


def test_rows_of_contiguous_channels_are_not_copied() -> None:
    wide = torch.randn(2, 9, 24)
    assert library.readable(wide[..., 8:16]).data_ptr() == wide[..., 8:16].data_ptr()
    assert library.readable(wide[..., ::2]).is_contiguous()


def test_a_group_that_is_expanded_gets_the_gradient_of_each() -> None:
    inputs = scan_inputs(width=36)
    inputs["B"] = inputs["B"][:, :, None].expand(-1, -1, 3, -1)
    expected = run_scan(inputs, "torch")
    for i, (got, want) in enumerate(zip(run_scan(inputs), expected, strict=True)):
        assert_close(f"output {i}", got, want.double())


def test_mixed_dtypes() -> None:
    inputs = scan_inputs()
    inputs = {n: t.bfloat16() if n in "u B C z" else t.double() if n == "A" else t for n, t in inputs.items()}
    got, expected = run_scan(inputs), run_scan(inputs, "torch")
    assert [t.dtype for t in got] == [t.dtype for t in expected]
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert_close(
            f"output {i}", a.float() if a.dtype == torch.bfloat16 else a, b.to(torch.float64), tolerance=4e-3
        )


@pytest.mark.parametrize("case", LAWS, ids=str)
def test_repeats_give_the_same_bits(case: Case) -> None:
    first, second = (outcome(case, "native", torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["mamba", "zoh", "bilinear", "dirac"])
def test_gradcheck(kind: str) -> None:
    inputs = {n: t.requires_grad_() for n, t in scan_inputs(1, 5, 3, 2, torch.float64).items()}

    def scan(*tensors: Tensor):
        named = dict(zip(inputs, tensors, strict=True))
        return selective_scan(
            **named, delta_softplus=True, discretization=kind, return_final_state=True, backend="native"
        )

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


def test_gradcheck_of_the_convolution() -> None:
    x, weight, bias, state = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 5, 3), (3, 3), (3,), (2, 3, 5))
    )

    def conv(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor):
        return causal_conv1d(
            x, weight, bias, dilation=2, activation="silu", initial_state=state, return_final_state=True,
            backend="native",
        )  # fmt: skip

    assert torch.autograd.gradcheck(conv, (x, weight, bias, state))


def test_a_call_that_keeps_nothing_asks_for_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same shapes as one that does: what `backward` would need may lie in the workspace then."""
    asked = []
    ask = Struct._ask
    monkeypatch.setattr(Struct, "_ask", lambda self: asked.append(bool(self.words[self.saved])) or ask(self))
    inputs = scan_inputs(1, 2311, 3, 2)  # of no other test: sizes are asked for once
    leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
    options = {"delta_softplus": True, "backend": "native"}
    training = selective_scan(**leaves, **options).detach()
    assert torch.equal(selective_scan(**inputs, **options), training)
    assert asked == [True, False]


def test_gradients_of_the_final_state_alone() -> None:
    grads = {}
    for backend in ("native", "torch"):
        inputs = {n: t.requires_grad_() for n, t in scan_inputs(dtype=torch.float64).items()}
        final = selective_scan(**inputs, delta_softplus=True, return_final_state=True, backend=backend)[1]
        grads[backend] = torch.autograd.grad(final.sum(), [inputs[n] for n in ("u", "delta", "A", "B")])
    for got, want in zip(grads["native"], grads["torch"], strict=True):
        assert_close("gradient", got, want)


def test_a_second_backward_is_refused() -> None:
    u = torch.randn(1, 3, 2, requires_grad=True)
    y = selective_scan(u, u, -torch.ones(2, 2), *[torch.ones(1, 3, 2)] * 2, backend="native")
    (grad,) = torch.autograd.grad(y.square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="once-differentiable"):
        grad.sum().backward()


@pytest.mark.usefixtures("many_threads")
def test_several_python_threads_at_once() -> None:
    """One has the pool, the others run alone; all get the same bits."""
    torch.set_num_threads(2)
    inputs = scan_inputs(2, 200, 100, 4)
    options = {"delta_softplus": True, "backend": "native"}
    expected = selective_scan(**inputs, **options)
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(1 for _ in range(30) if not torch.equal(selective_scan(**inputs, **options), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_a_backward_on_another_thread_has_memory_of_its_own() -> None:
    """Graphs made here, run backward there by several threads at once."""
    inputs = {name: t.requires_grad_() for name, t in scan_inputs(2, 120, 64, 4).items()}
    options = {"delta_softplus": True, "backend": "native"}

    def gradients(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, list(inputs.values()), torch.ones_like(y), retain_graph=True)

    graphs = [selective_scan(**inputs, **options) for _ in range(4)]
    expected = gradients(graphs[0])
    wrong: list[int] = []

    def work(y: Tensor) -> None:
        wrong.extend(1 for _ in range(20) if not same_bits(list(gradients(y)), list(expected)))

    threads = [threading.Thread(target=work, args=(y,)) for y in graphs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


FORK = """
import os, torch
from nvsubq.ops import selective_scan
from nvsubq.ops.native import library
library._WORK_OF_ONE_THREAD = 0
torch.set_num_threads(2)
x, a, b = torch.ones(2, 64, 64), -torch.ones(64, 4), torch.ones(2, 64, 4)
expected = selective_scan(x, x, a, b, b, backend="native")  # starts the pool
for generation in range(3):
    child = os.fork()
    if child == 0:
        ok = all(
            bytes(selective_scan(x, x, a, b, b, backend="native").untyped_storage())
            == bytes(expected.untyped_storage())
            for _ in range(3)
        )
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
print("well")
"""


def run_python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env={**os.environ, **env}, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_works_after_a_fork() -> None:
    assert run_python(FORK) == "well"


@pytest.mark.parametrize("level", list(library.LEVELS))
def test_the_environment_forces_an_instruction_set(level: str) -> None:
    best = library.library().nvsubq_level_name(0).decode()
    wanted = level if library.LEVELS[level] < library.LEVELS[best] else best
    code = "from nvsubq.ops.native.library import library; print(library().nvsubq_level_name(0).decode())"
    assert run_python(code, NVSUBQ_CPU_ISA=level) == wanted


def test_auto_takes_native() -> None:
    inputs = scan_inputs()
    options = {"delta_softplus": True}
    assert torch.equal(
        selective_scan(**inputs, **options), selective_scan(**inputs, **options, backend="native")
    )


def test_other_tensors_and_transforms_are_not_served() -> None:
    class Own(Tensor):
        pass

    x, weight = torch.randn(4, 5, 3), torch.ones(3, 2)
    with pytest.raises(RuntimeError, match="`x` is a Own"):
        causal_conv1d(x.as_subclass(Own), weight, backend="native")
    with pytest.raises(RuntimeError, match=r"a transform of `torch\.func` is active"):
        torch.func.vmap(lambda row: causal_conv1d(row, weight, backend="native"))(x[None])
