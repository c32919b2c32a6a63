"""`nvsubq bench cpu`: a small run from end to end, and options that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvsubq.bench.cpu import measure
from nvsubq.cli.main import main


@pytest.mark.slow
def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    sizes = ["1,8,64", "1,16,64"]
    arguments = ["--cores", "mamba", "s5", "--peers", "mambapy", "--repeats", "2", "--threads", "1"]
    assert main(["bench", "cpu", "--sizes", *sizes, *arguments, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Mamba(d_state=16), fp32" in shown
    assert "S5(d_state=64, conj_sym=True), fp32" in shown
    assert "of the block's forward time" in shown
    assert shown.count("mambapy 1.2.0") == 3  # versions, two sizes
    assert {path.name for path in out.iterdir()} == {
        "bench.json",
        "mamba.png",
        "mamba.svg",
        "s5.png",
        "s5.svg",
    }
    found = json.loads((out / "bench.json").read_text())
    assert found["options"] == {"repeats": 2, "limit": 30.0, "threads": 1}
    assert {"cpu", "cores", "memory", "versions", "native"} <= set(found["machine"])
    assert len(found["cells"]) == 2 * 3 + 2 * 2
    for cell in found["cells"]:
        assert "problem" not in cell
        assert len(cell["forward"]) == len(cell["both"]) == 2
        assert max(cell["error"]) <= measure.TOLERANCE
        assert cell["name"] != "nvsubq" or len(cell["products"]) == 2


def test_a_failure_is_told_by_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measure._first

    def fail(cell, worker, options):
        if cell.name == "nvsubq":
            cell.problem = "it ended with code 1: no more"
        else:
            real(cell, worker, options)

    monkeypatch.setattr(measure, "_first", fail)
    arguments = ["--cores", "s5", "--sizes", "1,8,16", "--repeats", "1", "--threads", "1"]
    assert main(["bench", "cpu", *arguments]) == 1
    shown = capsys.readouterr().out
    assert "failed" in shown
    assert "S5 (1, 8, 16) nvsubq 0.1.0: it ended with code 1: no more" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["cpu", "--sizes", "1,2"],
            "error: `--sizes` ('1,2') must have the form B,L,C with three numbers above 0.",
        ),
        (["cpu", "--sizes", "0,2,4"], "error: `--sizes` ('0,2,4') must have the form B,L,C"),
        (["cpu", "--repeats", "0"], "error: `--repeats` (=0) must be above 0."),
        (["cpu", "--limit", "-1"], "error: `--limit` (=-1) must be above 0."),
        (["cpu", "--cores", "mambo"], "invalid choice: 'mambo'"),
        (["cpu", "--peers", "mamba-ssm"], "invalid choice: 'mamba-ssm'"),
        (["tpu"], "invalid choice: 'tpu'"),
        ([], "the following arguments are required: DEVICE"),
    ],
)
def test_options_that_cannot_be(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "measure", None)
    assert main(["bench", *arguments]) != 0
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
