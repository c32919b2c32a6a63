"""The C functions of steps: what they refuse, and the structs and workspaces that Python keeps for them.

Numbers are tested with the cores, in tests/cores/test_fused_steps.py.
"""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from nvsubq.cores import RGLRU, S5, Mamba, Mamba2
from nvsubq.ops import native
from nvsubq.ops.native import library, step_call
from nvsubq.ops.native import steps as native_steps

pytestmark = pytest.mark.skipif(native.inactive("cpu") is not None, reason="native is not active")

STEPS = {
    "mamba_step": (native_steps._MAMBA, lambda width: Mamba(width)),
    "mamba2_step": (native_steps._MAMBA2, lambda width: Mamba2(width, headdim=4, d_state=8)),
    "rglru_step": (native_steps._RGLRU, lambda width: RGLRU(width)),
    "s5_step": (native_steps._S5, lambda width: S5(width, 8)),
}
TENSOR = 48  # bytes


@torch.no_grad()
def run(core: Any, batch: int = 2) -> torch.Tensor:
    y: torch.Tensor = core.step(torch.randn(batch, 1, core.d_model), core.allocate_inference_cache(batch, 1))[
        0
    ]
    return y


def structs(name: str) -> dict:
    """The structs that this thread keeps, by signature."""
    found: dict = getattr(STEPS[name][0].local, "structs", {})
    return found


def fresh(name: str, width: int = 8) -> tuple[step_call.PackedStep, torch.Tensor]:
    """The struct of a call whose tensors are still there."""
    _, make = STEPS[name]
    core = make(width)
    structs(name).clear()
    run(core)
    (made,) = structs(name).values()
    return made, core


@pytest.mark.parametrize("name", STEPS)
def test_what_could_leave_its_memory_is_refused(name: str) -> None:
    lib, (step, _) = library.library(), STEPS[name]
    function = getattr(lib, f"nvsubq_{name}")

    def error(changed: ctypes.Array | None) -> str:
        assert function(changed) != 0
        return lib.nvsubq_last_error().decode()

    assert error(None) == "args is null"
    made, _core = fresh(name)
    good = bytes(made.packed)
    scalars, tensors = step.layout.scalars, step.layout.tensors

    def scalar(field: str, value: int) -> ctypes.Array:
        return changed(8 + 8 * scalars.index(field), value)

    def changed(offset: int, value: int, size: int = 8) -> ctypes.Array:
        buffer = ctypes.create_string_buffer(good, len(good))
        buffer[offset : offset + size] = value.to_bytes(size, "little", signed=True)
        return buffer

    def tensor(field: str, part: int, value: int, size: int = 8) -> ctypes.Array:
        return changed(8 + 8 * (len(scalars) + 5) + TENSOR * tensors.index(field) + part, value, size)

    assert "the struct has 7 bytes" in error(changed(0, 7, 4))
    assert "version 9" in error(changed(4, 9, 4))
    assert error(scalar("threads", 0)) == "threads (=0)"
    assert error(scalar("level", 77)) == "this machine lacks level 77"
    assert error(scalar("batch", -1)) == "a size is negative"
    assert error(changed(8 + 8 * (len(scalars) + 1), 3)).startswith("workspace_bytes (=3) must be ")
    assert error(tensor("state", 8, 1)) == "state must be dense"
    assert error(tensor("state", 40, 3, 4)) == "state must have the compute dtype"
    assert "absent" in error(tensor("y", 44, 0, 4))
    if "taps" in scalars:
        assert "taps" in error(scalar("taps", 0))
        assert error(tensor("conv_state", 8, 1)) == "conv_state must be dense"
    if "states" in scalars:
        assert "states" in error(scalar("states", 0))
    if "in_weight" in tensors:
        assert error(tensor("in_weight", 8, 1)) == "in_weight must be dense"
        assert "does not go with the compute dtype" in error(tensor("out_weight", 40, 1, 4))
    if "discretization" in scalars:
        assert error(scalar("discretization", 9)) == "discretization (=9)"
    if "groups" in scalars:
        assert "groups (=3) must divide heads" in error(scalar("groups", 3))


@pytest.mark.parametrize("name", STEPS)
def test_a_signature_is_packed_once(name: str) -> None:
    _, make = STEPS[name]
    structs(name).clear()
    core, other = make(8), make(8)
    run(core)
    run(other)
    assert len(structs(name)) == 1  # a layer like it shares the struct
    run(core, 3)
    run(make(16))
    assert len(structs(name)) == 3
    first, second, third = structs(name).values()
    assert second.work.numel() >= first.work.numel()
    run(core)
    assert list(structs(name).values()) == [first, second, third]


@pytest.mark.parametrize("name", STEPS)
def test_other_dtypes_are_not_served(name: str) -> None:
    """Nor remembered as served: torch would refuse, or promote, what is mixed here."""
    _, make = STEPS[name]
    core = make(8)
    structs(name).clear()
    parameter = "out_proj.weight" if name != "s5_step" else "B"
    held = core.get_parameter(parameter)
    held.data = held.data.double()
    with torch.no_grad(), pytest.raises(RuntimeError):
        run(core)
    assert list(structs(name).values()) == [None]


def test_few_structs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_call, "KEPT", 3)
    structs("s5_step").clear()
    core = S5(4, 2)
    for batch in range(1, 9):
        run(core, batch)
        assert len(structs("s5_step")) <= 3


@pytest.mark.parametrize("value", [0.0, -1.5, 8.0, float("inf")])
def test_a_double_goes_as_its_bits(value: float) -> None:
    assert ctypes.c_double.from_buffer(ctypes.c_int64(library.bits(value))).value == value
