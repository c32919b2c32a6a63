"""`nvsubq bench gpu`: what it says without a device, a run over a stand-in for one, and one on a real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gpu_helpers import CEILINGS, SMALL, FakeClock

from nvsubq.bench.gpu.cases import TABLES
from nvsubq.cli.main import main

FACTS = {"gpu": "a device", "gpu_memory": 2**30, "capability": "9.0", "cuda": "13.0", "driver": "580.1"}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The CPU passes for a GPU, on small inputs."""
    clock = FakeClock()
    monkeypatch.setattr("nvsubq.cli.bench_gpu.check_device", lambda: None)
    monkeypatch.setattr("nvsubq.cli.bench_gpu.SIZES", (SMALL, SMALL._replace(name="t")))
    monkeypatch.setattr("nvsubq.cli.bench_gpu.FIELDS", ((1, 2, 3, 64),))
    monkeypatch.setattr("nvsubq.bench.gpu.blocks.DECODED_WIDTH", 64)
    monkeypatch.setattr("nvsubq.bench.gpu.clock.CudaClock", lambda repeats, limit: clock)
    monkeypatch.setattr("nvsubq.bench.gpu.ceilings.measure", lambda clock: CEILINGS)
    monkeypatch.setattr("nvsubq.bench.machine.gpu", lambda index: FACTS)
    return clock


def test_a_run(device: FakeClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    tables = ["linear_scan", "conv", "host"]
    assert main(["bench", "gpu", "--tables", *tables, "--out", str(out), "--repeats", "3"]) == 0
    shown = capsys.readouterr().out
    assert "device    a device, 1 GiB, capability 9.0, CUDA 13.0, driver 580.1" in shown
    assert "ceilings  2.00 TB/s, 4.00 Texp/s (made up)" in shown
    assert "linear_scan s (2, 8, 16) accelerated-scan: not installed: accelerated_scan" in shown
    for name in tables:
        assert TABLES[name].title in shown
    assert {path.name for path in out.iterdir()} == {
        "bench.json", *(f"{name}.{ending}" for name in tables for ending in ("png", "svg"))
    }  # fmt: skip
    found = json.loads((out / "bench.json").read_text())
    assert found["options"] == {"repeats": 3, "limit": 5.0, "quick": False}
    assert found["ceilings"] == {"bytes": 2e12, "exps": 4e12, "how": "made up"}
    assert found["machine"]["gpu"] == "a device"
    assert {row["table"] for row in found["rows"]} == set(tables)
    absent = ("nvsubq triton", "accelerated-scan", "causal-conv1d", "mamba-ssm")
    for row in found["rows"]:
        assert ("problem" in row) == (row["name"] in absent)
        for what in row.get("times", ()):
            assert row["figures"][what]["median"] == sorted(row["times"][what])[1]


def test_quick_takes_one_size(device: FakeClock, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu", "--quick", "--tables", "linear_scan"]) == 0
    shown = capsys.readouterr().out
    assert "s (2, 8, 16)" in shown
    assert "t (2, 8, 16)" not in shown
    assert "runs      5 of each, limit 0.5 s" in shown


def test_a_failure_is_told_by_the_exit_code(
    device: FakeClock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: object) -> list[float]:
        raise ValueError("no more")

    monkeypatch.setattr(device, "events", fail)
    assert main(["bench", "gpu", "--tables", "linear_scan"]) == 1
    assert "ValueError: no more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repeats", "0"], "error: `--repeats` (=0) must be above 0."),
        (["--limit", "-1"], "error: `--limit` (=-1) must be above 0."),
        (["--tables", "scans"], "invalid choice: 'scans'"),
    ],
)
def test_options_that_cannot_be(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu", *arguments]) != 0
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        (None, f"torch {torch.__version__} is built without CUDA."),
        ("13.0", "torch is built for CUDA 13.0 and finds no device or driver."),
    ],
)
def test_without_a_device_it_is_one_line(
    cuda: str | None, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert main(["bench", "gpu", "--quick"]) == 1
    assert capsys.readouterr().err == f"error: `bench gpu` needs a CUDA device: {said}\n"
    assert main(["bench", "parallel"]) == 1
    hint = "With `--on cpu --planes P` it trains small fields on the CPU."
    assert capsys.readouterr().err == f"error: `bench parallel` needs a CUDA device: {said} {hint}\n"


@pytest.mark.gpu
def test_quick_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu", "--quick", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for table in TABLES.values():
        assert table.title in shown
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["ceilings"]["bytes"] > 1e11
    assert found["ceilings"]["exps"] > 1e11
    timed = [row for row in found["rows"] if row.get("times")]
    assert {row["table"] for row in timed} == set(TABLES)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".svg"}
