"""Backend `mamba_ssm` over stand-ins for the packages' modules: layouts, arguments, and what it declines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import published_kernels
import pytest
import torch
from cases import Case, case_of, cases, check
from tolerances import assert_close
from torch import Tensor

from nvsubq import ops
from nvsubq.ops import backends, dispatch, mamba_ssm, use_backend
from nvsubq.ops.mamba_ssm import found
from nvsubq.ops.selective import SELECTIVE_SCAN

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NEVER = ("initial_state", "seq_idx", "packed", "order", "decay_gate", "delta_a", "timesteps")


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """Both packages are there, and take CPU tensors."""
    made = {name: getattr(published_kernels, name)() for name in ("selective_scan_cuda", "causal_conv1d")}
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(mamba_ssm, "missing", lambda op, device: None)
    dispatch.forget()
    yield made
    monkeypatch.undo()
    dispatch.forget()


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("selective_scan_cuda", "causal_conv1d"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    dispatch.forget()
    yield
    monkeypatch.undo()
    dispatch.forget()


def declined(case: Case) -> str | None:
    """Why a call is not served; None if it is."""
    tensors, options = case.build(torch.float32)
    try:
        getattr(ops, case.op)(**tensors, **options, backend="mamba_ssm")
    except RuntimeError as error:
        return str(error)
    return None


def knows(case: Case) -> bool:
    """What the kernels' documentation says that they can do."""
    if case.op not in ("selective_scan", "causal_conv1d") or set(case.give) & set(NEVER) or case.complex:
        return False
    reverse = case.options.get("reverse", False)
    if (reverse if isinstance(reverse, bool) else True) or case.sizes["L"] == 0 or case.sizes["B"] == 0:
        return False
    if case.op == "selective_scan":
        mixed = case.forms.get("B") == "D N" and case.forms.get("C") == "B L G N"
        return case.options.get("discretization", "mamba") == "mamba" and not mixed
    return case.options.get("dilation", 1) == 1 and 2 <= case.sizes["K"] <= 4


OWN = [case for case in cases() if case.op in ("selective_scan", "causal_conv1d")]
# Groups, and both directions' cases, without what the kernel has no argument for.
OWN += [
    replace(case, name=f"{case.name}-less", give=tuple(name for name in case.give if name not in NEVER))
    for case in OWN
    if set(case.give) & set(NEVER) and not case.complex
]
SERVED = [case for case in OWN if knows(case)]


def test_there_is_something_to_serve() -> None:
    assert {"plain", "with-z", "fixed-B", "fixed-C", "fixed-less", "G2-less", "G6-less", "N256"} <= {
        case.name for case in SERVED if case.op == "selective_scan"
    }
    assert {"plain", "silu", "all-less", "K2-less", "L1-less"} <= {
        case.name for case in SERVED if case.op == "causal_conv1d"
    }


@pytest.mark.parametrize("case", OWN, ids=str)
def test_serves_what_its_kernels_know_and_no_more(case: Case, packages: dict[str, ModuleType]) -> None:
    if knows(case):
        assert declined(case) is None
    else:
        assert f"(='mamba_ssm') does not serve this call of `{case.op}`: " in (declined(case) or "")


def scanned(case: Case, backend: str, dtype: torch.dtype, *, as_double: bool = False) -> dict[str, Tensor]:
    """As `outcome`, but for the final state's gradient, which the scan does not have."""
    tensors, options = case.build(dtype)
    if as_double:
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.requires_grad_()
    op = getattr(ops, case.op)
    y, final = op(**tensors, **options, return_final_state=True, backend=backend)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(dtype).to(y.dtype)
    grads = torch.autograd.grad(y, tuple(tensors.values()), cotangent)
    named = {f"grad of {name}": grad for name, grad in zip(tensors, grads, strict=True)}
    return {"y": y.detach(), "final_state": final.detach(), **named}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SERVED, ids=str)
def test_agrees_with_the_reference(case: Case, dtype: torch.dtype, packages: dict[str, ModuleType]) -> None:
    if case.op == "causal_conv1d" and dtype == torch.float32:
        check(case, "mamba_ssm", dtype)
    expected = scanned(case, "reference", dtype, as_double=True)
    for name, got in scanned(case, "mamba_ssm", dtype).items():
        assert_close(f"{case}, {name}", got, expected[name])


def test_more_cells_than_a_chunk(packages: dict[str, ModuleType]) -> None:
    case = replace(case_of("selective_scan", "with-z"), sizes={"B": 1, "L": 2050, "D": 2, "N": 1})
    expected = scanned(case, "reference", torch.float32, as_double=True)
    for name, got in scanned(case, "mamba_ssm", torch.float32).items():
        assert_close(name, got, expected[name])


def test_memory_is_given_as_it_lies_where_the_convolution_can_read_it(
    packages: dict[str, ModuleType],
) -> None:
    weight = torch.randn(16, 4)
    for x in (torch.randn(2, 5, 16), torch.randn(2, 5, 32)[..., :16], torch.randn(2, 16, 5).movedim(1, 2)):
        y = ops.causal_conv1d(x, weight, backend="mamba_ssm")
        torch.testing.assert_close(y, ops.causal_conv1d(x, weight, backend="reference"))
    assert packages["causal_conv1d"].seen == [True, True, False]


def test_the_final_state_has_no_gradient_and_says_so(packages: dict[str, ModuleType]) -> None:
    tensors, _ = case_of("selective_scan", "plain").build(torch.float32, requires_grad=True)
    _, final = ops.selective_scan(**tensors, return_final_state=True, backend="mamba_ssm")
    with pytest.raises(
        RuntimeError, match=r"'mamba_ssm' has no gradient of the final state of `selective_sc"
    ):
        final.sum().backward()


def test_a_second_derivative_is_refused(packages: dict[str, ModuleType]) -> None:
    tensors, _ = case_of("selective_scan", "plain").build(torch.float32, requires_grad=True)
    y = ops.selective_scan(**tensors, backend="mamba_ssm")
    (grad,) = torch.autograd.grad(y.square().sum(), tensors["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="once-differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"u": torch.float64}, "`u` has dtype float64; its kernels know real float32, float16 and bfloat16"),
        ({"delta": torch.float32}, "`delta` has dtype float32 and `u` bfloat16; its kernel wants them alike"),
        ({"B": torch.float32}, "`B` has dtype float32 and `u` bfloat16; its kernel wants them alike"),
        ({"D": torch.bfloat16}, "`D` has dtype bfloat16; its kernel wants float32"),
        ({"A": torch.complex64}, "`A` has dtype complex64; its kernels know real"),
    ],
)
def test_dtypes_that_it_declines(change: dict, said: str, packages: dict[str, ModuleType]) -> None:
    tensors, _ = case_of("selective_scan", "all").build(torch.bfloat16)
    tensors.pop("initial_state")
    ops.selective_scan(**tensors, backend="mamba_ssm")
    for name, dtype in change.items():
        tensors[name] = tensors[name].to(dtype)
    with pytest.raises(RuntimeError, match=said):
        ops.selective_scan(**tensors, backend="mamba_ssm")


def test_states_that_it_declines(packages: dict[str, ModuleType]) -> None:
    tensors, _ = replace(case_of("selective_scan", "plain"), sizes={"B": 1, "L": 2, "D": 1, "N": 257}).build()
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    with pytest.raises(RuntimeError, match="`A` has N = 257 states, its kernel at most 256"):
        ops.selective_scan(**tensors, backend="mamba_ssm")
    huge = {name: t.expand(2**30, -1, -1) for name, t in tensors.items() if t.dim() == 3}
    assert "more than its 32-bit offsets reach" in str(
        mamba_ssm.declines("selective_scan", {**tensors, **huge})
    )


def test_compiled(packages: dict[str, ModuleType]) -> None:
    """An operator whose forward and backward run on the named backend."""
    tensors, options = case_of("selective_scan", "with-z").build(torch.float32)
    y, final, _ = torch.ops.nvsubq.selective_scan(
        *(tensors.get(name) for name in SELECTIVE_SCAN.tensors), None, None, [False], False, "mamba", 0,
        "mamba_ssm",
    )  # fmt: skip
    expected = ops.selective_scan(**tensors, **options, return_final_state=True, backend="reference")
    torch.testing.assert_close((y, final), expected)
    assert y.is_contiguous()


def listed():
    return next(backend for backend in backends() if backend.name == "mamba_ssm")


def test_it_is_listed_with_what_it_has(packages: dict[str, ModuleType]) -> None:
    assert listed().active
    assert listed().ops == ("selective_scan", "causal_conv1d")
    assert listed().reason == "`selective_scan` of mamba-ssm; only when named\n" + (
        "`causal_conv1d` of causal-conv1d; only when named"
    )


def test_it_serves_only_when_named(packages: dict[str, ModuleType]) -> None:
    assert "mamba_ssm" not in dispatch._AUTO
    with use_backend("mamba_ssm"):
        assert dispatch.resolve("selective_scan", None, CUDA) is mamba_ssm
        with pytest.raises(RuntimeError, match=r"does not serve `ssd_scan`; it has selective_scan, causal"):
            dispatch.resolve("ssd_scan", None, CUDA)


def test_tensors_of_another_device(packages: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba_ssm, "missing", found.missing)
    assert dispatch.resolve("selective_scan", "mamba_ssm", CUDA) is mamba_ssm
    with pytest.raises(RuntimeError, match="its kernels take CUDA tensors, not cpu ones"):
        dispatch.resolve("selective_scan", "mamba_ssm", CPU)


def test_without_the_packages(no_packages: None) -> None:
    assert not listed().active
    assert listed().reason == "there is no `selective_scan_cuda`; mamba-ssm's CUDA build has it"
    with pytest.raises(RuntimeError, match=r"`backend` \(='mamba_ssm'\) is not active: there is no `sel"):
        ops.causal_conv1d(torch.ones(1, 2, 1), torch.ones(1, 2), backend="mamba_ssm")


def test_without_the_convolution(packages: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba_ssm, "missing", found.missing)
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    dispatch.forget()
    assert "no `causal_conv1d`: there is no `causal_conv1d`; causal-conv1d's CUDA build" in listed().reason
    with pytest.raises(
        RuntimeError, match="does not serve this call of `causal_conv1d`: there is no `causal"
    ):
        dispatch.resolve("causal_conv1d", "mamba_ssm", CUDA)


def test_a_module_of_another_package(packages: dict[str, ModuleType]) -> None:
    """lrnnx installs a `selective_scan_cuda` of its own over mamba-ssm's."""
    arguments = ", ".join(f"arg{i}: torch.Tensor" for i in range(11))
    packages["selective_scan_cuda"].fwd.__doc__ = f"fwd({arguments}) -> list[torch.Tensor]"
    dispatch.forget()
    assert listed().reason == (
        "the installed `selective_scan_cuda` takes 11 arguments and mamba-ssm's 9: "
        "another package has written over it"
    )


def test_a_module_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "selective_scan_cuda.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "selective_scan_cuda", raising=False)
    dispatch.forget()
    assert listed().reason == (
        "`selective_scan_cuda` cannot be imported: ImportError: undefined symbol: _ZN3c10"
    )
    dispatch.forget()


def test_nothing_of_the_packages_is_imported_at_import_time() -> None:
    code = (
        "import sys, nvsubq, nvsubq.ops; names = {'mamba_ssm', 'selective_scan_cuda', 'causal_conv1d'}; "
        "print(sorted(names & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
