"""The library for CUDA tensors without a GPU: what is in it, and what is said where it is not there."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nvsubq import ops
from nvsubq.ops import dispatch, native
from nvsubq.ops.native import library

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda")
needs_library = pytest.mark.skipif(
    native.inactive("cuda") is not None, reason=f"there is no library for CUDA: {native.inactive('cuda')}"
)


def _listed(name: str) -> list[str]:
    """A list of csrc/cuda/CMakeLists.txt."""
    text = (ROOT / "csrc/cuda/CMakeLists.txt").read_text()
    return re.findall(rf"set\({name}\b([^)\"]*)\)", text)[0].split()


OPS = _listed("NVSUBQ_CUDA_OPS")


def built() -> Path:
    """The library's file."""
    return Path(library.library("cuda")._name)


def inside(path: Path) -> set[str]:
    """What a library has code for, from the headers of its fat binaries: `sm_90`, `compute_90` for PTX."""
    data, at, found = path.read_bytes(), 0, set()
    while (at := data.find(struct.pack("<IHH", 0xBA55ED50, 1, 16), at)) >= 0:
        part = at + 16
        end = part + struct.unpack_from("<Q", data, at + 8)[0]
        while part < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", data, part)
            (number,) = struct.unpack_from("<I", data, part + 28)
            found.add(f"{'compute' if kind == 1 else 'sm'}_{number}")
            part += header + size
        at = end
    return found


def test_a_compiler_means_a_library() -> None:
    """What `nvcc` can build is built, unless the environment switches it off."""
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    reason = native.inactive("cuda")
    assert reason is None or "NVSUBQ_CUDA was" in reason


@needs_library
def test_it_has_every_function_of_its_ops() -> None:
    found = library.library("cuda")
    assert found.nvsubq_abi() == library.ABI
    for op in OPS:
        kinds = (
            ("", "_workspace") if op.endswith("_step") else ("_workspace", "_saved", "_forward", "_backward")
        )
        for kind in kinds:
            assert hasattr(found, f"nvsubq_{op}{kind}"), op
    for op in dispatch.OPS:
        here = library._FUNCTIONS.get(op, op) in OPS
        assert native.missing(op, CUDA) == (None if here else "its CUDA kernel is not in this library")


@needs_library
def test_it_shows_nothing_else() -> None:
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(built())], capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[-1].split("@")[0].startswith("nvsubq_") for line in symbols.splitlines()} == {True}


@needs_library
def test_it_refuses_what_it_does_not_know() -> None:
    found = library.library("cuda")
    assert found.nvsubq_conv1d_forward(None) != 0
    assert found.nvsubq_last_error() == b"args is null"
    assert found.nvsubq_level_name(0) == b"cuda"
    assert found.nvsubq_level_name(1) is None


@needs_library
def test_the_architectures_that_it_names_are_inside() -> None:
    assert {name.rstrip("af") for name in library.architectures()} == inside(built())


# Kernels that a figure depends on, by file, and how many bytes may lack a register: to read an address again
# costs less than a block less on a multiprocessor.
HOT = {
    "conv1d/forward.cu": ("conv1d_forwardI13__nv_bfloat16Li4ENS_5KnownILb1ELb1E", 8),
    "conv1d/backward.cu": ("conv1d_backwardI13__nv_bfloat16Li4ELb1E", 0),
    "rglru_scan/forward_pairs.cu": ("forward_pairsI13__nv_bfloat16Li2E", 0),
    "selective_scan/fast_backward.cu": ("selective_fast_backwardI13__nv_bfloat16", 56),
    "selective_scan/fast_carry.cu": ("selective_carryI13__nv_bfloat16Lb", 0),
    "selective_scan/fast_forward.cu": ("selective_fast_forwardI13__nv_bfloat16NS0_5ShapeILi2ELi8ELi2E", 16),
    "step/project_in.cu": ("project_in_kernelIf13__nv_bfloat16Li8ELi1E", 0),
    "step/project.cu": ("project_kernelIf13__nv_bfloat16Li8ELi1E", 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", HOT)
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_hot_kernels_stay_in_registers(source: str, tmp_path: Path) -> None:
    options = ["-std=c++17", "-O3", "-arch=sm_90", "-Xptxas=-v", "-cubin", "-o", str(tmp_path / "out.cubin")]
    done = subprocess.run(
        ["nvcc", *options, str(ROOT / "csrc/cuda" / source)], capture_output=True, text=True, check=True
    )
    reports = re.findall(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores", done.stderr, flags=re.S
    )
    kernel, allowed = HOT[source]
    hot = [int(bytes_spilt) for name, bytes_spilt in reports if kernel in name]
    assert hot
    assert max(hot) <= allowed


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where no CUDA compiler was found."""
    real = library._opened
    missing = (None, "the native library for CUDA was not built: no working CUDA compiler was found")
    monkeypatch.setattr(library, "_opened", lambda device: missing if device == "cuda" else real(device))
    dispatch.forget()
    yield
    monkeypatch.undo()
    dispatch.forget()


@pytest.mark.usefixtures("no_library")
def test_a_missing_library_is_told_once_and_falls_to_the_portable_backend() -> None:
    with pytest.warns(
        RuntimeWarning, match="`linear_scan` runs without its CUDA kernel, slowly: the native "
    ):
        assert dispatch.concrete("linear_scan", None, "cuda") == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.concrete("linear_scan", None, "cuda") == "torch"
    with pytest.raises(
        RuntimeError, match="does not serve this call of `linear_scan`: the native library for"
    ):
        dispatch.concrete("linear_scan", "native", "cuda")
    listed = next(backend for backend in ops.backends() if backend.name == "native")
    assert listed.active == (native.inactive("cpu") is None)
    assert listed.reason.splitlines()[-1].startswith(
        "none for CUDA tensors: the native library for CUDA was not"
    )


def test_other_devices_are_declined() -> None:
    x = torch.ones(1, 2, 3, device="meta")
    assert native.declines("causal_conv1d", {"x": x}) == (
        "`x` is on meta; there are no native kernels for meta tensors"
    )


@pytest.mark.parametrize(
    ("inside", "capability", "runs"),
    [
        ("sm_80 sm_90 compute_90", (8, 0), True),
        ("sm_80 sm_90 compute_90", (8, 6), True),  # code of a minor version serves later ones
        ("sm_80 sm_90 compute_90", (9, 0), True),
        ("sm_80 sm_90 compute_90", (12, 0), True),  # from PTX
        ("sm_80 sm_90 compute_90", (7, 5), False),
        ("sm_86", (8, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a compute_90a", (10, 0), False),
    ],
)
def test_which_gpus_its_code_serves(
    inside: str, capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "architectures", lambda: tuple(inside.split()))
    reason = library.lacks_code(capability)
    assert (reason is None) == runs
    if reason is not None:
        assert reason.startswith(f"it has code for {', '.join(inside.split())}, not for compute capability ")


def test_ssd_scan_is_declined_where_its_tiles_do_not_fit() -> None:
    assert library.lacks_memory("ssd_scan", 227 << 10) is None  # H100
    assert library.lacks_memory("ssd_scan", 163 << 10) is None  # A100
    reason = library.lacks_memory("ssd_scan", 99 << 10)
    assert reason == "its CUDA kernel needs 112 KiB of shared memory for a block, this GPU has 99"
    assert library.lacks_memory("causal_conv1d", 48 << 10) is None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="CMake is not on the path")
def test_it_can_be_switched_off(tmp_path: Path) -> None:
    """Only configured: what is installed is known then."""
    command = ["cmake", "-S", str(ROOT / "csrc"), "-B", str(tmp_path), "-DNVSUBQ_CUDA=OFF"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "why_not_cuda.txt").read_text() == "NVSUBQ_CUDA was OFF when it was built\n"
    found, reason = library.open_library(tmp_path, library.CUDA)
    assert found is None
    assert reason == "the native library for CUDA was not built: NVSUBQ_CUDA was OFF when it was built"
