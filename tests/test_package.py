"""The package as a whole: what importing it costs and pulls in, its public names, what the wheel holds."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "lazy_config": 0,
    "ops": 1,
    "cores": 2,
    "nd": 3,
    "models": 4,
    "compat": 4,
    "parallel": 5,
    "training": 5,
    "viz": 5,
    "bench": 5,
    "data": 5,
    "study": 6,
    "cli": 6,
}


def run_python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names_are_pinned() -> None:
    import nvsubq

    assert set(nvsubq.__all__) == {
        "__version__", "NDMixer", "MambaND", "NDBackbone", "NDSegmenter", "NDUNet",
        "LazyConfig", "instantiate", "validate", "as_factory", "to_yaml", "from_yaml", "allow_targets",
        "ConfigError", "PLACEHOLDER",
        "generate", "load_weights",
        "backends", "use_backend",
    }  # fmt: skip
    for name in nvsubq.__all__:
        assert getattr(nvsubq, name) is not None
    with pytest.raises(AttributeError, match="module 'nvsubq' has no attribute 'Mambo'"):
        nvsubq.Mambo  # noqa: B018


def test_import_needs_only_the_base_dependencies() -> None:
    rooms = ("ops", "cores", "nd", "models", "compat.nvsubquadratic", "compat.weights", "cli.main")
    heavy = {
        "hydra", "lightning", "pytorch_lightning", "torchmetrics", "sklearn", "scipy", "matplotlib", "rich",
        "nibabel", "nilearn", "mlxtend", "PIL", "pandas",
    }  # fmt: skip
    imports = ", ".join(f"nvsubq.{room}" for room in rooms)
    code = f"import sys, {imports}\nprint(sorted({heavy} & set(sys.modules)))"
    assert run_python(code).strip() == "[]"


def test_lazy_config_imports_no_torch() -> None:
    assert run_python("import sys, nvsubq.lazy_config; print('torch' in sys.modules)").strip() == "False"


def test_import_costs_little_beside_torch() -> None:
    code = (
        "import time\nbegin = time.process_time()\nimport torch\nstart = time.process_time()\n"
        "import nvsubq; nvsubq.NDBackbone, nvsubq.LazyConfig, nvsubq.backends\n"
        "print((time.process_time() - start) / (start - begin))"
    )
    # A share of torch's own import, 0.3 s where that takes 1.2: machines and their moods cancel out.
    assert min(float(run_python(code)) for _ in range(3)) <= 0.25


def imports_of(path: Path) -> set[str]:
    """The rooms of nvsubq that a file imports anywhere, function bodies included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports in this house are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("nvsubq.") and name.count(".")}
    return found & set(FLOORS)


@pytest.mark.parametrize("room", [room for room in FLOORS if room != "lazy_config"])
def test_imports_point_downwards(room: str) -> None:
    for path in sorted((ROOT / "nvsubq" / room).rglob("*.py")):
        for other in imports_of(path) - {room}:
            assert FLOORS[other] <= FLOORS[room], (
                f"{path.relative_to(ROOT)} imports {other}, which is above {room}"
            )


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_configs(tmp_path: Path) -> None:
    built = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(ROOT)),
            # Not in that of this checkout, which has other options.
            f"--config-settings=build-dir={tmp_path / 'build'}",
        ],
        capture_output=True, text=True, check=False,
        # What else there is to compile, other tests look at.
        env={**os.environ, "NVSUBQ_CUDA": "OFF", "CMAKE_ARGS": "-DNVSUBQ_LEVELS=baseline"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    configs = {f"nvsubq/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert {"nvsubq/configs/train.yaml", "nvsubq/training/report.html.jinja"} <= names
    assert configs <= names
    assert not [n for n in names if n.startswith(("tests/", "scripts/", "shared/"))]
    kernels = sorted(n.removeprefix("nvsubq/lib/") for n in names if n.startswith("nvsubq/lib/"))
    assert len(kernels) == 2, (
        kernels
    )  # the native library, or the reason why there is none; the same for CUDA
    assert "why_not_cuda.txt" in kernels
