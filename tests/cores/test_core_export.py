"""`torch.export` of every core with a dynamic length, and ONNX: the same numbers on another shape."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from nvsubq import NDBackbone, NDMixer, NDUNet, cores

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # torch's and onnx's own, many
WIDTH = 8
CORES: dict[str, Any] = {
    "mamba": partial(cores.Mamba, d_state=4),
    "mamba, all options": partial(
        cores.Mamba, d_state=4, conv_dilations=(1, 2), a_modulation=True, discretization="zoh", bias=True
    ),
    "mamba, complex": partial(cores.Mamba, d_state=4, a_init="s4d_lin", use_fast_path=False),
    "mamba2": partial(cores.Mamba2, d_state=8, headdim=8),
    "s5": partial(cores.S5, d_state=8),
    "s7": partial(cores.S7, d_state=4),
    "rglru": cores.RGLRU,
    "attention": cores.Attention,
}
COMPLEX = {"s5", "mamba, complex"}  # ONNX has no complex numbers


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)


def export(model: nn.Module, shape: tuple[int, ...], dynamic: dict[int, str]) -> ExportedProgram:
    axes = {axis: Dim(name, min=2, max=4096) for axis, name in dynamic.items()}
    with torch.no_grad():
        return torch.export.export(model.eval(), (torch.randn(shape),), dynamic_shapes=(axes,))


def check(program: ExportedProgram, model: nn.Module, *shapes: tuple[int, ...]) -> None:
    assert not [node.target for node in program.graph.nodes if "nvsubq" in str(node.target)]
    for shape in shapes:
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


def onnx(program: ExportedProgram, x: Tensor, folder: Path) -> Tensor:
    import onnxruntime

    with torch.no_grad():
        torch.onnx.export(program, dynamo=True, verbose=False).save(str(folder / "model.onnx"))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("name", CORES)
def test_every_core_at_lengths_it_was_not_exported_at(name: str, tmp_path: Path) -> None:
    core = CORES[name](WIDTH)
    program = export(core, (2, 7, WIDTH), {1: "L"})
    check(program, core, (2, 50, WIDTH))
    if name not in COMPLEX:
        x = torch.randn(2, 50, WIDTH)
        with torch.no_grad():
            torch.testing.assert_close(onnx(program, x, tmp_path), core(x), rtol=1e-4, atol=1e-5)


def test_a_saved_program_needs_no_nvsubq(tmp_path: Path) -> None:
    core = CORES["mamba"](WIDTH)
    torch.export.save(export(core, (2, 7, WIDTH), {1: "L"}), tmp_path / "core.pt2")
    x = torch.randn(2, 9, WIDTH)
    torch.save(x, tmp_path / "x.pt")
    text = (
        "import sys, torch; run = torch.export.load('core.pt2').module(); y = run(torch.load('x.pt'));"
        "assert not [name for name in sys.modules if name.startswith('nvsubq')]; torch.save(y, 'y.pt')"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", text], cwd=tmp_path, check=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "y.pt"), core(x), rtol=1e-4, atol=1e-5)


def test_a_mixer_of_any_field_in_row_major_order(tmp_path: Path) -> None:
    mixer = NDMixer(CORES["mamba"], d_model=WIDTH, bidirectional=True, fuse="gate")
    program = export(mixer, (2, 5, 7, WIDTH), {1: "H", 2: "W"})
    check(program, mixer, (2, 9, 4, WIDTH))
    x = torch.randn(2, 4, 9, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(onnx(program, x, tmp_path), mixer(x), rtol=1e-4, atol=1e-5)


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "orders": (
        lambda: NDMixer(CORES["mamba"], d_model=WIDTH, scan=["snake", "hilbert"], bidirectional=True),
        (5, 7, WIDTH),
    ),
    "backbone": (
        lambda: NDBackbone(
            2, 1, 3, mixer=partial(NDMixer, CORES["mamba"], bidirectional=True, scan="column_major"),
            depths=(1, 1), dims=(8, 12), local_conv=3, stem="conv",
        ),
        (1, 16, 12),
    ),
    "unet": (
        lambda: NDUNet(
            3, 1, 3, mixer=partial(NDMixer, CORES["mamba2"], bidirectional=True), depths=(1, 1), dims=(8, 16)
        ),
        (1, 8, 6, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_of_one_size_and_any_batch(name: str, tmp_path: Path) -> None:
    build, shape = MODELS[name]
    model = build()
    program = export(model, (2, *shape), {0: "B"})
    check(program, model, (5, *shape))
    if name == "unet":  # the same parts in ONNX, and minutes of its optimiser
        return
    x = torch.randn(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(onnx(program, x, tmp_path), model(x), rtol=1e-4, atol=1e-5)


def test_eager_calls_are_as_before_after_an_export() -> None:
    """No table that tracing made is left behind."""
    mixer = NDMixer(CORES["mamba"], d_model=WIDTH, scan="snake")
    export(mixer, (2, 6, 11, WIDTH), {})
    other = NDMixer(CORES["mamba"], d_model=WIDTH, scan="snake")
    other.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 6, 11, WIDTH)
    assert torch.equal(other(x), mixer(x))
    assert type(mixer(x)) is Tensor


def test_sequences_are_refused() -> None:
    core = CORES["mamba"](WIDTH)
    with pytest.raises(ValueError, match=r"`seq_idx` and `lengths` must be None in torch\.export"):
        torch.export.export(core, (torch.randn(2, 7, WIDTH),), {"lengths": torch.tensor([7, 3])})
