"""Finds and loads the native libraries, one for each type of device.

What they share is their C interface (csrc/include/nvsubq.h), whose structs `Layout` and `describe` pack.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nvsubq

ABI = 1
LEVELS = {"baseline": 1, "avx2": 2, "avx512": 3}
DTYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.int32: 4,
    torch.int64: 5,
}
DOUBLE, SOFTPLUS, SILU, GELU_TANH, UNSCALED_FIRST, FIXED_A, SHARED_DT = 1, 2, 4, 8, 16, 32, 64
PRESENT, COMPLEX = 1, 2

ABSENT = (0, 0, 0, 0, 0, 0, 0)
_TENSOR = "Q4q2i"
_RESULTS = {
    "nvsubq_build_info": ctypes.c_char_p,
    "nvsubq_last_error": ctypes.c_char_p,
    "nvsubq_level_name": ctypes.c_char_p,
}
_OPS = ("selective_scan", "conv1d", "linear_scan", "rglru_scan", "ssd_scan")
_STEPS = ("mamba_step", "mamba2_step", "rglru_step", "s5_step")

# Bytes for a block of threads, of what needs more than every GPU has: compute capabilities 8.6, 8.9 and 12.0
# have 99 KiB.
_SHARED_MEMORY = {"ssd_scan": 112 << 10}

# Torch's current stream of a CUDA device; builds without CUDA have no tensors that ask for it.
current_stream: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)

# 0: the best instruction set that the machine has and NVSUBQ_CPU_ISA allows; else one of LEVELS (for tests).
forced_level = 0


@dataclass(frozen=True)
class Kind:
    """One of the two libraries.

    Args:
        device: type of the devices whose tensors it takes.
        stem: name of its file, without the system's ending.
        variable: an environment variable, the file to load instead of the package's own: a build with
            sanitizers, for one.
        reason: name of the file that says why it was not built.
        called: what messages call it.
    """

    device: str
    stem: str
    variable: str
    reason: str
    called: str

    @property
    def file_name(self) -> str:
        """Name of the library's file on this system."""
        return f"{self.stem}.dylib" if sys.platform == "darwin" else f"{self.stem}.so"


CPU = Kind("cpu", "libnvsubq_cpu", "NVSUBQ_LIBRARY", "why_not_native.txt", "the native library")
CUDA = Kind(
    "cuda", "libnvsubq_cuda", "NVSUBQ_CUDA_LIBRARY", "why_not_cuda.txt", "the native library for CUDA"
)
KINDS = {kind.device: kind for kind in (CPU, CUDA)}


def open_library(folder: Path, kind: Kind = CPU) -> tuple[ctypes.CDLL | None, str]:
    """Load the library in a folder; give None and the reason where that fails."""
    found = [path for path in (folder / kind.file_name, folder / f"{kind.stem}.so") if path.is_file()]
    if not found:
        why = folder / kind.reason
        if why.is_file():
            return None, f"{kind.called} was not built: {why.read_text(encoding='utf-8').strip()}"
        return None, f"there is no {kind.file_name} in the installed package"
    return open_file(found[0], kind)


def open_file(path: Path, kind: Kind = CPU) -> tuple[ctypes.CDLL | None, str]:
    """Load a library; give None and the reason where that fails."""
    try:
        library = ctypes.CDLL(str(path))
        version = library.nvsubq_abi()
    except (OSError, AttributeError) as error:
        return None, f"{kind.called} cannot be loaded: {error}"
    if version != ABI:
        return None, f"{kind.called} speaks version {version} of its interface, nvsubq {ABI}"
    try:
        _declare(library, kind)
    except AttributeError as error:  # a build of other sources, as after a change of branch
        return None, f"{kind.called} is not of this version of nvsubq: {error}"
    return library, ""


def _declare(library: ctypes.CDLL, kind: Kind) -> None:
    for name, result in _RESULTS.items():
        getattr(library, name).restype = result
    sizes = [f"nvsubq_{op}_{size}" for op in _OPS for size in ("workspace", "saved")]
    for name in (*sizes, *(f"nvsubq_{step}_workspace" for step in _STEPS)):
        if kind is CPU or hasattr(library, name):  # that for CUDA may lack ops
            getattr(library, name).restype = ctypes.c_int64
    library.nvsubq_level_name.argtypes = [ctypes.c_int64]


def folder() -> Path:
    """Where the libraries lie: in the package, of which an editable install has a part in site-packages."""
    places = [Path(place) / "lib" for place in nvsubq.__path__]
    return next((place for place in places if place.is_dir()), places[0])


@cache
def _opened(device: str) -> tuple[ctypes.CDLL | None, str]:
    kind = KINDS.get(device)
    if kind is None:
        return None, f"there are no native kernels for {device} tensors"
    named = os.environ.get(kind.variable)
    return open_file(Path(named), kind) if named else open_library(folder(), kind)


def inactive(device: str | None = None) -> str | None:
    """Why tensors on a type of device (None: on any) are not served here, or None."""
    if device is None:  # the reason of the CPU's: it is there on every machine with a compiler
        reasons = [inactive(known) for known in KINDS]
        return None if None in reasons else reasons[0]
    library, reason = _opened(device)
    return reason if library is None else None


def library(device: str = "cpu") -> ctypes.CDLL:
    """The loaded library for a type of device.

    Raises:
        RuntimeError: it cannot be loaded.
    """
    found, reason = _opened(device)
    if found is None:
        raise RuntimeError(f"backend 'native' is not active: {reason}.")
    return found


# C functions that are not called as the public ones are; an update is a scan of one cell.
_FUNCTIONS = {
    "causal_conv1d": "conv1d",
    "causal_conv1d_update": "conv1d",
    "selective_state_update": "selective_scan",
    "linear_state_update": "linear_scan",
    "rglru_state_update": "rglru_scan",
    "ssd_state_update": "ssd_scan",
}


@cache
def missing(op: str, device: torch.device) -> str | None:
    """Why a public function, or a core's step, has no kernel for tensors on a device, or None."""
    reason = inactive(device.type)
    if reason is not None:
        return reason
    name = f"nvsubq_{_FUNCTIONS.get(op, op)}"
    if not hasattr(library(device.type), name if op in _STEPS else f"{name}_forward"):
        return f"its {device.type.upper()} kernel is not in this library"
    if device.type == "cuda" and torch.cuda.is_available():
        lacks = lacks_code(torch.cuda.get_device_capability(device))
        properties = torch.cuda.get_device_properties(device)
        here = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # not in its stub
        return lacks or lacks_memory(op, here)
    return None


def lacks_memory(op: str, here: int) -> str | None:
    """Why an op's kernels do not fit a GPU with so many bytes of shared memory for a block, or None."""
    needed = _SHARED_MEMORY.get(op, 0)
    if here >= needed:
        return None
    return f"its CUDA kernel needs {needed >> 10} KiB of shared memory for a block, this GPU has {here >> 10}"


def architectures() -> tuple[str, ...]:
    """What the library for CUDA has code for, such as `sm_90`, and PTX, such as `compute_90`."""
    info = library("cuda").nvsubq_build_info().decode()
    return tuple(word for word in info.split() if word.startswith(("sm_", "compute_")))


def lacks_code(capability: tuple[int, int]) -> str | None:
    """Why the library for CUDA cannot run on GPUs of a compute capability, or None."""
    major, minor = capability
    for name in architectures():
        kind, _, number = name.partition("_")
        own = divmod(int(number.rstrip("af")), 10)
        if number[-1] in "af" and own != capability:
            continue
        if kind == "compute" and own <= capability:
            return None
        if kind == "sm" and own[0] == major and own[1] <= minor:
            return None
    return f"it has code for {', '.join(architectures())}, not for compute capability {major}.{minor}"


def forget() -> None:
    """Ask the libraries anew what they have (for tests that change what is there)."""
    missing.cache_clear()


def about() -> str:
    """A line on each library that is there: instruction set or architectures, and compiler."""
    return "\n".join(line for device, kind in KINDS.items() if (line := _about(device, kind)))


def _about(device: str, kind: Kind) -> str:
    reason = inactive(device)
    if reason is not None:
        return f"none for {device.upper()} tensors: {reason}"
    found = library(device)
    info = found.nvsubq_build_info().decode()
    if kind is CPU:
        info = f"{found.nvsubq_level_name(0).decode()}; {info}"
    return f"compiled kernels for {device.upper()} tensors ({info.removeprefix('nvsubq_cuda, ')})"


@dataclass(frozen=True)
class Layout:
    """A struct of the C interface: its scalars in order, its memory fields, then its tensors.

    Args:
        scalars: int64 fields after `size` and `abi`.
        tensors: names of the tensors.
    """

    scalars: tuple[str, ...]
    tensors: tuple[str, ...]

    def packer(self) -> struct.Struct:
        return struct.Struct(f"@2I{len(self.scalars)}qQqQQq{_TENSOR * len(self.tensors)}")


def describe(tensor: Tensor | None, seen: Callable[[Any], tuple[int, ...]] | None = None) -> tuple[int, ...]:
    """The seven fields of a tensor: address, four strides, dtype, flags; `seen` changes the strides."""
    if tensor is None:
        return ABSENT
    stride = tensor.stride() if seen is None else seen(tensor.stride())
    is_complex = tensor.is_complex()
    dtype = DTYPES[tensor.dtype.to_real() if is_complex else tensor.dtype]
    flags = PRESENT | COMPLEX if is_complex else PRESENT
    return tensor.data_ptr(), *stride, *(0,) * (4 - len(stride)), dtype, flags


_AS_DOUBLE, _AS_INTEGER = struct.Struct("=d"), struct.Struct("=q")


@lru_cache(256)
def bits(value: float) -> int:
    """A double as the integer of the same bits: the structs' scalars are integers."""
    found: int = _AS_INTEGER.unpack(_AS_DOUBLE.pack(value))[0]
    return found


def readable(tensor: Tensor | None) -> Tensor | None:
    """The tensor itself where kernels can read it (last axis contiguous, nothing lazy), or a copy."""
    if tensor is None:
        return None
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.dim() == 0 or tensor.stride(-1) == 1 or tensor.numel() == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def threads(work: int) -> int:
    """How many threads a call may use: one where waking others would cost more than it saves."""
    return 1 if work < _WORK_OF_ONE_THREAD else max(1, torch.get_num_threads())


_WORK_OF_ONE_THREAD = 200_000  # states, or taps: about 0.1 ms


def has_level(level: int) -> bool:
    """Whether this machine can run one of LEVELS."""
    return inactive("cpu") is None and library().nvsubq_level_name(level) is not None
