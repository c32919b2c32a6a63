"""The C interface as C and C++ programs see it: a C99 header, pinned layouts, calls against plain loops."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nvsubq.ops import native
from nvsubq.ops.native import library

BUILD = Path(__file__).parent / "build.sh"
compilers = pytest.mark.skipif(
    any(shutil.which(os.environ.get(name, other)) is None for name, other in (("CC", "cc"), ("CXX", "c++"))),
    reason="there is no C or C++ compiler",
)
needs_native = pytest.mark.skipif(native.inactive("cpu") is not None, reason="native is not active")


def test_every_struct_is_pinned() -> None:
    """A new struct of the header wants its sizes and offsets in layout.h."""
    header = (BUILD.parents[2] / "csrc" / "include" / "nvsubq.h").read_text()
    pinned = re.findall(r"^#define STRUCT (\w+)$", (BUILD.parent / "layout.h").read_text(), flags=re.M)
    assert pinned == re.findall(r"^typedef struct (\w+) \{$", header, flags=re.M)


@compilers
@needs_native
def test_a_program_without_python_gets_the_right_numbers(tmp_path: Path) -> None:
    program = tmp_path / "program"
    file = library.folder() / library.CPU.file_name
    built = subprocess.run(
        ["bash", str(BUILD), str(file), str(program), "-O0"], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("nvsubq_cpu, ")
    assert done.stdout.endswith(", all is well\n")
    assert " baseline" in done.stdout


@compilers
def test_a_moved_field_does_not_compile(tmp_path: Path) -> None:
    header = (BUILD.parents[2] / "csrc" / "include" / "nvsubq.h").read_text()
    moved = header.replace("int32_t dtype;\n  int32_t flags;", "int32_t flags;\n  int32_t dtype;")
    assert moved != header
    for name, text in (("right", header), ("wrong", moved)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "nvsubq.h").write_text(text)
    command = [os.environ.get("CC", "cc"), "-std=c99", "-fsyntax-only", str(BUILD.parent / "layout.c"), "-I"]
    right, wrong = (
        subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True, check=False)
        for name in ("right", "wrong")
    )
    assert right.returncode == 0, right.stderr
    assert wrong.returncode != 0
    assert "layout.h" in wrong.stderr
