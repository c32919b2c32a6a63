"""`nvsubq doctor`: healthy here, with the base install alone, and honest where something is broken."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from nvsubq.cli import doctor, self_test
from nvsubq.cli.main import main
from nvsubq.ops import dispatch

# Everything that the base install lacks.
WITHOUT_EXTRAS = """
import sys
extra = "hydra lightning torchmetrics mlxtend sklearn skimage scipy nibabel nilearn"
extra += " matplotlib rich PIL jinja2"
for name in extra.split():
    sys.modules[name] = None
from nvsubq.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def base_install(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", WITHOUT_EXTRAS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[-1] == "all is well"
    assert f"  torch              {torch.__version__}" in lines
    assert sum(line.startswith("  triton             ") and "active: " in line for line in lines) == 1
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
        for op in ("selective_scan", "linear_scan"):
            assert any(line.startswith(f"  {op}, triton, cuda") and " ok " in line for line in lines)
    assert (
        sum(
            line.startswith(
                (
                    "  native             active: compiled kernels for CPU tensors (",
                    "  native             not active: ",
                )
            )
            for line in lines
        )
        == 1
    )
    foreign = "mamba_ssm_mamba, mamba_ssm_mamba2"
    assert f"  core               attention, mamba, mamba2, {foreign}, rglru, s5, s7" in lines
    for op in self_test.OPS:
        assert any(line.startswith(f"  {op}, torch, cpu") and " ok " in line for line in lines)
    for core in ("attention", "mamba", "mamba2", "rglru", "s5", "s7"):
        assert any(line.startswith(f"  {core} ") and "parameters" in line for line in lines)
    if importlib.util.find_spec("mamba_ssm") is None:
        for core in ("mamba_ssm_mamba", "mamba_ssm_mamba2"):
            assert f"  {core:<28} not there: no package 'mamba_ssm' is installed" in lines
    assert max(map(len, lines)) <= 100


def test_base_install_is_enough() -> None:
    done = base_install("doctor")
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.rstrip().endswith("all is well")


@pytest.mark.parametrize("arguments", [["evaluate", "."], ["predict", ".", "x.png"]])
def test_the_other_commands_say_what_to_install(arguments: list[str]) -> None:
    done = base_install(*arguments)
    assert done.returncode == 1
    assert "which is not installed: pip install 'nvsubq[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_extras_that_are_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name in ("rich", "timm") else "1.0")
    doctor._extras()
    lines = capsys.readouterr().out.splitlines()
    assert "  train              not installed: pip install 'nvsubq[train]'" in lines
    assert "    rich             not installed (needs >=13.9)" in lines
    assert "    lightning        1.0" in lines
    assert "  timm               not installed: pip install 'nvsubq[timm]'" in lines
    assert "  monai              installed" in lines
    for extra in ("ocean", "slurm", "onnx", "docs"):
        assert f"  {extra:<18} installed" in lines
    assert not any(line.startswith("  test ") for line in lines)


def test_extra_of_a_requirement_with_another_marker() -> None:
    line = "triton>=3.6; (platform_system == 'Linux') and extra == 'test'"
    match = doctor.REQUIREMENT.match(line)
    assert match is not None
    assert (match["name"], match["wanted"], match["extra"]) == ("triton", ">=3.6", "test")


def test_not_installed_at_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    doctor._extras()
    assert "nvsubq runs from a folder and is not installed" in capsys.readouterr().out


@pytest.fixture
def _nothing_remembered() -> Iterator[None]:
    """Ops remember who served a call; neither from before the test nor from within."""
    dispatch.forget()
    yield
    dispatch.forget()


@pytest.mark.usefixtures("_nothing_remembered")
def test_a_wrong_backend_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = dispatch._load("torch")
    right = module.causal_conv1d
    monkeypatch.setattr(module, "causal_conv1d", lambda *a, **k: 1.01 * right(*a, **k))
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("  causal_conv1d, torch, cpu"))
    assert "FAILED: ArithmeticError: 1.0e-02 / " in line
    assert "is above 1e-04" in line
    assert lines[-1] == "not well: causal_conv1d, torch, cpu"


@pytest.mark.usefixtures("_nothing_remembered")
def test_values_that_are_not_numbers_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = dispatch._load("torch")
    monkeypatch.setattr(module, "linear_scan", lambda a, b, **k: (a + b) * float("nan"))
    with pytest.raises(ArithmeticError, match="nan"):
        self_test.op_error("linear_scan", "torch", "cpu")


def test_backend_that_is_forced_but_unknown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVSUBQ_BACKEND", "cudda")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "  NVSUBQ_BACKEND     cudda" in out
    assert "`NVSUBQ_BACKEND` (='cudda') must be one of auto, native, triton, torch" in out


def test_configs_that_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise FileNotFoundError("no configs: neither a nor b holds train.yaml.")

    monkeypatch.setattr("nvsubq.cli.paths.config_dir", gone)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAILED: no configs: neither a nor b holds train.yaml." in out
    assert out.splitlines()[-1] == "not well: configs, cores"


def test_doctor_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    doctor._ops()
    assert torch.equal(state, torch.get_rng_state())
