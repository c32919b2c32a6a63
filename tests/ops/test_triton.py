"""The Triton backend against the reference: in Triton's interpreter on the CPU, and on a GPU (`-m gpu`)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from cases import CASES, Case, case_of, cases, check, outcome
from test_cuda import assert_same_bits

from nvsubq import ops
from nvsubq.ops import backends, dispatch, triton
from nvsubq.ops.triton import found
from nvsubq.ops.triton.served import declines

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OPS = ("selective_scan", "linear_scan")


def is_complex(case: Case) -> bool:
    return case.op == "selective_scan" and bool(case.complex)


SERVED = [case for case in CASES if case.op in OPS and not is_complex(case)]
NAMES = {
    "selective_scan": (
        "all+ all* softplus zoh bilinear dirac no_discretization zoh-delta_a bilinear-timesteps zoh-gate "
        "G2 fixed N1 D1 seq_idx-order-reverse blocks-reverse* event-blocks-seq_idx L0 B0 L1"
    ),
    "linear_scan": (
        "real+ real-fixed* complex-fixed complex-b-fixed complex-dt-zoh-zoh real-dt-bilinear-bilinear "
        "complex-a-sqrt real-wide-dt seq_idx-order-reverse* complex-blocks-seq_idx* L0 B0 complex-L2"
    ),
}
OTHER_DTYPES = {"selective_scan": ("all", "zoh-gate"), "linear_scan": ("complex-seq_idx",)}
# Not in bf16, which the interpreter rounds towards 0; the GPU has it.
IN_HALF = {"selective_scan": ("all",), "linear_scan": ("real-fixed",)}
# A few: kernels for fp64 take long to compile.
IN_DOUBLE = ("all", "zoh-gate", "bilinear-delta_a", "seq_idx-order-reverse", "real", "complex-dt-zoh-zoh")
LINES = [
    *(f"{op} {name} float32" for op in OPS for name in NAMES[op].split()),
    *(f"{op} {name} float64" for op in OPS for name in OTHER_DTYPES[op]),
    *(f"{op} {name} float16" for op in OPS for name in IN_HALF[op]),
]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="there is no package `triton` here")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    """By line of LINES what went wrong, by one process that interprets them all."""
    script = Path(__file__).with_name("triton_interpreted.py")
    done = subprocess.run(
        [sys.executable, script], input="\n".join(LINES), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@needs_triton
@pytest.mark.parametrize("line", LINES)
def test_agrees_with_the_reference_in_the_interpreter(line: str, interpreted: dict[str, str]) -> None:
    assert interpreted[line] == ""


@pytest.mark.gpu
@pytest.mark.parametrize("case", [case for case in SERVED if not case.slow], ids=str)
def test_agrees_with_the_reference(case: Case) -> None:
    check(case, "triton", torch.float32, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("case", [case for case in SERVED if case.name in IN_DOUBLE], ids=str)
def test_agrees_with_the_reference_in_double_precision(case: Case) -> None:
    check(case, "triton", torch.float64, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case", [c for c in SERVED if c.name in ("all", "fixed", "seq_idx-order-reverse", "real")], ids=str
)
def test_agrees_with_the_reference_in_half_precision(case: Case, dtype: torch.dtype) -> None:
    check(case, "triton", dtype, "cuda")


def wide(name: str, op: str = "selective_scan", **sizes: int) -> Case:
    case = case_of(op, name)
    return replace(case, name=f"{name}-wide", sizes={**case.sizes, "B": 2, **sizes})


WIDE = [
    wide("all", N=16, D=200, L=70),
    wide("all", N=3, D=300, L=30),
    wide("all", N=16, D=40, L=1500),
    wide("seq_idx-order-reverse", N=16, D=64, L=1200),
    wide("blocks-seq_idx", N=16, D=64, L=700),
    wide("real", "linear_scan", D=300, L=1500),
    wide("complex-blocks-seq_idx", "linear_scan", D=300, L=1500),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", WIDE, ids=lambda c: f"{c}-{c.sizes['D']}x{c.sizes['L']}")
def test_agrees_with_the_reference_in_wide_tiles_and_chunks(case: Case, dtype: torch.dtype) -> None:
    check(case, "triton", dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("case", [case for case in SERVED if case.slow], ids=str)
def test_agrees_with_the_reference_over_long_walks(case: Case) -> None:
    check(case, "triton", torch.float32, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("case", [WIDE[2], WIDE[3], WIDE[6]], ids=str)
def test_the_same_bits_every_time_and_for_each_row_alone(case: Case) -> None:
    expected = outcome(case, "triton", torch.float32, "cuda")
    assert_same_bits(outcome(case, "triton", torch.float32, "cuda"), expected)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert_same_bits(outcome(case, "triton", torch.float32, "cuda"), expected)
    tensors, options = case.build(torch.float32, "cuda")
    with ops.use_backend("triton"):
        together = getattr(ops, case.op)(**tensors, **options)
        rows = {n: t[1:] if case.pattern(n)[0] == "B" else t for n, t in tensors.items()}
        tables = {n: v[1:] if n == "seq_idx" else v for n, v in options.items()}
        assert torch.equal(getattr(ops, case.op)(**rows, **tables), together[1:])


@pytest.mark.gpu
def test_auto_takes_it_where_there_is_no_native_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.native, "missing", lambda op, device: "there is none here")
    dispatch.forget()
    with pytest.warns(RuntimeWarning, match="runs without its CUDA kernel, on Triton's: there is none"):
        assert dispatch.resolve("selective_scan", "auto", CUDA).__name__ == "nvsubq.ops.triton"
    tensors, options = case_of("selective_scan", "mamba-complex").build(torch.float32, "cuda")
    with pytest.warns(RuntimeWarning, match="runs without its CUDA kernel, slowly: there is none"):
        y = ops.selective_scan(**tensors, **options)
    assert torch.equal(y, ops.selective_scan(**tensors, **options, backend="torch"))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_operator_and_compiled_call_give_the_bits_of_the_eager_one() -> None:
    case = case_of("selective_scan", "all")
    tensors, options = case.build(torch.float32, "cuda")

    def call(leaves: dict) -> tuple:
        return ops.selective_scan(**leaves, **options, return_final_state=True, backend="triton")

    expected = call(tensors)
    for got, want in zip(torch.compile(call, fullgraph=True)(tensors), expected, strict=True):
        assert torch.equal(got, want)


class TestWithoutDevice:
    """What can be said of it on any machine."""

    def test_it_is_listed_with_a_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        listed = next(backend for backend in backends() if backend.name == "triton")
        assert not listed.active or torch.cuda.device_count()
        monkeypatch.setattr(found, "find_spec", lambda name: None)
        assert found.inactive() == "there is no package `triton`; torch's builds for CUDA and ROCm bring it"
        monkeypatch.setattr(found, "find_spec", lambda name: "here")
        assert found.inactive() == (
            "torch finds no CUDA or ROCm device (TRITON_INTERPRET=1 runs it on the CPU, very slowly)"
        )
        monkeypatch.setattr(found, "interpreted", lambda: True)
        assert found.inactive() is None
        assert found.about().endswith("interpreted on the CPU; where there is no native kernel")

    def test_tensors_of_another_device(self) -> None:
        assert triton.missing("linear_scan", CUDA) is None
        assert triton.missing("linear_scan", CPU) == "its kernels take CUDA or ROCm tensors, not cpu ones"

    def test_what_it_declines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nvsubq.ops.triton.served.missing", lambda op, device: None)
        for case in cases():
            if case.op in OPS:
                tensors, options = case.build()
                reason = declines(case.op, tensors | options)
                assert (reason is not None) == is_complex(case), case
        tensors, _ = case_of("selective_scan", "mamba-complex").build()
        assert declines("selective_scan", tensors) == "`A` is complex; its kernel knows real states alone"
        tensors, _ = replace(
            case_of("selective_scan", "plain"), sizes={"B": 1, "L": 1, "D": 1, "N": 1025}
        ).build()
        assert declines("selective_scan", tensors) == "`A` has N = 1025 states, its kernel knows 1 to 1024"

    def test_a_traced_call_with_complex_states_is_left_to_torch(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nvsubq.ops.triton.inactive", lambda: None)
            patch.setattr("nvsubq.ops.native.missing", lambda op, device: "there is none here")
            patch.setattr(dispatch, "_warn_once", lambda message: None)
            dispatch.forget()
            assert dispatch.concrete("selective_scan", None, "cuda") == "triton"
            assert dispatch.concrete("selective_scan", None, "cuda", True) == "torch"
            assert dispatch.concrete("linear_scan", None, "cuda", True) == "triton"
            with pytest.raises(RuntimeError, match="serve this call of `selective_scan`: its kernel knows r"):
                dispatch.concrete("selective_scan", "triton", "cuda", True)
        dispatch.forget()

    def test_it_is_not_imported_before_it_is_needed(self) -> None:
        code = "import sys, nvsubq.ops; nvsubq.ops.backends(); print('triton' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"
