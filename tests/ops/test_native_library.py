"""The C interface: layout of the structs, refusals of the library, and what happens where there is none."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nvsubq.ops import backends, causal_conv1d, dispatch, native
from nvsubq.ops.native import call, conv, library, linear, rglru, selective, ssd, steps
from nvsubq.ops.native.walking import Tables

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "csrc" / "include" / "nvsubq.h"
STRUCTS = {
    "nvsubq_selective_scan_args": selective.LAYOUT,
    "nvsubq_conv1d_args": conv.LAYOUT,
    "nvsubq_linear_scan_args": linear.LAYOUT,
    "nvsubq_rglru_scan_args": rglru.LAYOUT,
    "nvsubq_ssd_scan_args": ssd.LAYOUT,
    "nvsubq_mamba_step_args": steps.MAMBA,
    "nvsubq_mamba2_step_args": steps.MAMBA2,
    "nvsubq_rglru_step_args": steps.RGLRU,
    "nvsubq_s5_step_args": steps.S5,
}
needs_native = pytest.mark.skipif(native.inactive("cpu") is not None, reason="native is not active")


class CTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("stride", ctypes.c_int64 * 4),
        ("dtype", ctypes.c_int32),
        ("flags", ctypes.c_int32),
    )


def fields_of(struct: str) -> list[tuple[str, str]]:
    """(type, name) of each field, read from the header."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    body = re.search(rf"typedef struct {struct} {{(.*?)}} {struct};", text, flags=re.S)
    assert body, struct
    found = []
    for statement in body[1].split(";"):
        kind, _, names = statement.strip().partition(" ")
        found += [(kind, name.strip()) for name in names.split(",") if name.strip()]
    return found


@pytest.mark.parametrize("struct", list(STRUCTS))
def test_structs_are_packed_as_the_header_has_them(struct: str) -> None:
    kinds = {
        "uint32_t": ctypes.c_uint32,
        "int64_t": ctypes.c_int64,
        "void*": ctypes.c_void_p,
        "nvsubq_tensor": CTensor,
    }
    fields = fields_of(struct)
    layout = STRUCTS[struct]
    made = type(struct, (ctypes.Structure,), {"_fields_": [(name, kinds[kind]) for kind, name in fields]})
    memory = ("workspace", "workspace_bytes", "stream", "saved", "saved_bytes")
    assert [name for _, name in fields] == ["size", "abi", *layout.scalars, *memory, *layout.tensors]
    assert layout.packer().size == ctypes.sizeof(made)
    first = 8 + 8 * (len(layout.scalars) + len(memory))
    for i, name in enumerate(layout.tensors):
        assert getattr(made, name).offset == first + 48 * i


def test_sizes_are_pinned() -> None:
    """A change of these breaks callers built before: `NVSUBQ_ABI` must rise, or fields go to the end."""
    sizes = {name: layout.packer().size for name, layout in STRUCTS.items()}
    assert ctypes.sizeof(CTensor) == 48
    assert sizes == {
        "nvsubq_selective_scan_args": 1624,
        "nvsubq_conv1d_args": 856,
        "nvsubq_linear_scan_args": 848,
        "nvsubq_rglru_scan_args": 1224,
        "nvsubq_ssd_scan_args": 1360,
        "nvsubq_mamba_step_args": 904,
        "nvsubq_mamba2_step_args": 856,
        "nvsubq_rglru_step_args": 984,
        "nvsubq_s5_step_args": 560,
    }


@needs_native
def test_the_library_refuses_what_it_does_not_know() -> None:
    lib = library.library()
    assert lib.nvsubq_abi() == library.ABI
    for function in ("nvsubq_selective_scan_forward", "nvsubq_conv1d_backward"):
        assert getattr(lib, function)(None) != 0
        assert lib.nvsubq_last_error() == b"args is null"
    head = ctypes.create_string_buffer(2000)
    head[4] = library.ABI
    assert lib.nvsubq_selective_scan_forward(head) != 0
    assert lib.nvsubq_last_error() == b"the struct has 0 bytes, this library knows 1624"
    head[4] = 7
    assert lib.nvsubq_conv1d_forward(head) != 0
    assert lib.nvsubq_last_error() == b"the caller speaks version 7 of the interface, this library 1"


@needs_native
def test_a_wrong_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Tables(index=torch.tensor([[[0], [5], [1]]]))
    monkeypatch.setattr(call, "tables_of", lambda *_: wrong)
    with pytest.raises(RuntimeError, match=r"index \(=5\) must lie in 0 .. 2"):
        causal_conv1d(torch.ones(1, 3, 2), torch.ones(2, 2), reverse=True, backend="native")


@needs_native
def test_backends_tell_what_native_is() -> None:
    listed = next(b for b in backends() if b.name == "native")
    cpu, cuda = listed.reason.splitlines()
    assert re.fullmatch(
        r"compiled kernels for CPU tensors \((avx512|avx2|baseline); nvsubq_cpu, \w+ [\d.]+\)", cpu
    )
    assert re.fullmatch(
        r"compiled kernels for CUDA tensors \(CUDA [\d.]+, (sm|compute)_[\w ]+\)"
        r"|none for CUDA tensors: .+",
        cuda,
    )


def test_a_missing_or_broken_library(tmp_path: Path) -> None:
    name = library.CPU.file_name
    assert library.open_library(tmp_path) == (None, f"there is no {name} in the installed package")
    (tmp_path / "why_not_native.txt").write_text("no working C++ compiler was found when it was built\n")
    reason = "the native library was not built: no working C++ compiler was found when it was built"
    assert library.open_library(tmp_path) == (None, reason)
    (tmp_path / name).write_text("not a library")
    found, reason = library.open_library(tmp_path)
    assert found is None
    assert reason.startswith("the native library cannot be loaded: ")


def test_without_the_library_all_goes_to_the_portable_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "the native library was not built: no working C++ compiler was found when it was built"
    monkeypatch.setattr(library, "_opened", lambda device: (None, reason))
    dispatch.forget()
    try:
        listed = next(b for b in backends() if b.name == "native")
        assert (listed.active, listed.reason, listed.ops) == (False, reason, ())
        causal_conv1d(torch.ones(1, 3, 2), torch.ones(2, 2))
        with pytest.raises(
            RuntimeError, match="`backend` \\(='native'\\) is not active: the native library was not"
        ):
            causal_conv1d(torch.ones(1, 3, 2), torch.ones(2, 2), backend="native")
    finally:
        dispatch.forget()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="CMake is not on the path")
def test_the_package_installs_without_a_compiler(tmp_path: Path) -> None:
    build, out = str(tmp_path / "build"), tmp_path / "out"
    commands = (
        ["cmake", "-S", str(ROOT / "csrc"), "-B", build],
        ["cmake", "--build", build],
        ["cmake", "--install", build, "--prefix", str(out)],
    )
    environment = {**os.environ, "CXX": str(tmp_path / "no-compiler")}
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
    installed = out / "nvsubq" / "lib"
    assert sorted(path.name for path in installed.iterdir()) == ["why_not_cuda.txt", "why_not_native.txt"]
    for kind in library.KINDS.values():
        assert "no working C++ compiler" in library.open_library(installed, kind)[1]


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_library_of_other_sources(tmp_path: Path) -> None:
    """As after a change of branch without a build: not active, and told, but nothing breaks."""
    source, built = tmp_path / "old.c", tmp_path / "old.so"
    source.write_text(f"unsigned nvsubq_abi(void) {{ return {library.ABI}; }}")
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(built)], check=True)
    found, reason = library.open_file(built)
    assert found is None
    assert reason.startswith("the native library is not of this version of nvsubq: ")
    assert "nvsubq_build_info" in reason


@needs_native
def test_the_environment_names_a_library(tmp_path: Path) -> None:
    mine = tmp_path / "mine.so"
    shutil.copy(library.folder() / library.CPU.file_name, mine)
    code = "from nvsubq.ops import native; print(native.inactive('cpu') or open('/proc/self/maps').read())"
    for named, said in ((mine, str(mine)), (tmp_path / "none.so", "the native library cannot be loaded: ")):
        environment = {**os.environ, "NVSUBQ_LIBRARY": str(named)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
        assert said in done.stdout
