"""The commands of the README run as for a new user: installed, in an empty folder."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from blocks import ROOT, blocks_of

BLOCKS = blocks_of(ROOT / "README.md")
COMMANDS = [command for block in BLOCKS if block.language == "bash" for command in block.commands]
SHORT = [f"trainer.{name}" for name in ("max_epochs=1", "limit_train_batches=2", "limit_test_batches=1")]


def run(command: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    # To compile for CUDA, and for newer processors, takes minutes; what is shown here is the same without it.
    short = {"NVSUBQ_CUDA": "OFF", "CMAKE_ARGS": "-DNVSUBQ_LEVELS=baseline"}
    env = {**os.environ, "COLUMNS": "120", **short, **env}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds: the tracked files and those about to be."""
    folder = tmp_path_factory.mktemp("clone") / "nvsubq"
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT)
    assert listed.returncode == 0, listed.stderr
    for name in filter(lambda n: (ROOT / n).is_file(), listed.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def fresh_environment(folder: Path) -> Path:
    """A virtual environment without nvsubq, in which the packages of this one meet the requirements."""
    assert run([sys.executable, "-m", "venv", str(folder)], folder.parent).returncode == 0
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


@pytest.fixture(scope="module")
def user_bin(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """The programs of a fresh environment after the README's `pip install`."""
    venv = fresh_environment(tmp_path_factory.mktemp("user") / "venv")
    (install,) = [command for command in COMMANDS if command[:2] == ["pip", "install"]]
    done = run([str(venv / "bin" / "python"), "-m", *install], checkout)
    assert done.returncode == 0, done.stderr
    where = run([str(venv / "bin" / "python"), "-c", "import nvsubq; print(nvsubq.__file__)"], venv)
    assert str(venv) in where.stdout
    return venv / "bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, user_bin: Path) -> Path:
    """An empty folder with two short finished runs and the files that the README predicts."""
    import nibabel
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("empty")
    for extra in (["model.depths=[1]"], ["experiment=mni152", "data.resolution=4", "model.depths=[1]"]):
        done = run([str(user_bin / "nvsubq"), "train", *extra, *SHORT], folder)
        assert done.returncode == 0, done.stderr + done.stdout
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 60, (28, 28), dtype=np.uint8)).save(folder / "digit.png")
    nibabel.save(
        nibabel.Nifti1Image(rng.random((40, 36, 34), dtype=np.float32), np.diag([4.0, 4.0, 4.0, 1.0])),
        folder / "scan.nii.gz",
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "nvsubq"], ids=" ".join)
def test_nvsubq_command(command: list[str], folder: Path, user_bin: Path) -> None:
    extra = ["trainer.fast_dev_run=true"] if command[1] == "train" else []
    done = run([str(user_bin / command[0]), *command[1:], *extra], folder)
    assert done.returncode == 0, done.stderr + done.stdout
    if command[1] == "predict":
        out = folder / (command[command.index("--out") + 1] if "--out" in command else ".")
        assert list(out.rglob("predictions.csv")) or list(out.rglob("*.nii.gz"))


@pytest.fixture(scope="module")
def script_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_environment(tmp_path_factory.mktemp("scripts") / "venv")


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0].startswith("scripts/")], ids=" ".join)
def test_script(command: list[str], checkout: Path, script_environment: Path) -> None:
    """The two scripts in a fresh clone: they install it, and the second call has nothing left to do."""
    short = {
        "scripts/run.sh": ["trainer.fast_dev_run=true"],
        "scripts/test.sh": ["-q", "tests/test_package.py::test_public_names_are_pinned"],
    }
    done = run(["bash", *command, *short[command[0]]], checkout, NVSUBQ_VENV=str(script_environment))
    assert done.returncode == 0, done.stderr + done.stdout
    where = [str(script_environment / "bin" / "python"), "-c", "import nvsubq; print(nvsubq.__file__)"]
    assert str(checkout) in run(where, script_environment).stdout
    stamps = {path: path.stat().st_mtime_ns for path in script_environment.glob(".nvsubq-*")}
    assert stamps
    run(["bash", *command, "--help"], checkout, NVSUBQ_VENV=str(script_environment))
    assert stamps == {path: path.stat().st_mtime_ns for path in script_environment.glob(".nvsubq-*")}


def test_every_command_is_covered() -> None:
    assert {command[0] for command in COMMANDS} == {"scripts/run.sh", "scripts/test.sh", "pip", "nvsubq"}
    assert len([command for command in COMMANDS if command[0] == "nvsubq"]) >= 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [b.text for b in BLOCKS if b.language == "text"], ids=lambda block: block.splitlines()[0]
)
def test_shown_output(block: str, folder: Path, user_bin: Path) -> None:
    command, *shown = block.rstrip().splitlines()
    assert command.startswith("$ nvsubq ")
    done = run([str(user_bin / "nvsubq"), *shlex.split(command)[2:]], folder)
    assert done.returncode == 1
    assert done.stderr.split() == " ".join(shown).split()  # long lines are folded in the README
