"""`nvsubq bench parallel`: a small run on the CPU, how it looks for the largest field, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nvsubq.bench.parallel import search
from nvsubq.bench.parallel.step import Setting
from nvsubq.cli.main import main


def test_a_run_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--side", "8", "--planes", "8", "--width", "8", "--depth", "1", "--repeats", "1"]
    assert main(["bench", "parallel", "--on", "cpu", *small, "--out", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out
    assert "1 x cpu: all were tried" in shown
    assert "2 x cpu: all were tried" in shown
    found = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert found["setting"] == {"side": 8, "width": 8, "depth": 1, "repeats": 1}
    one, two = found["rows"]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["field"] == two["field"] == [8, 8, 8]
    assert one["cells"] == 512
    assert "exchange_share" not in one
    assert 0 <= two["exchange_share"] < 1
    assert two["sent_bytes"] > 0
    assert min(one["step_s"], two["step_s"], two["step_without_exchange_s"]) > 0


def test_full_memory_ends_the_processes_and_keeps_what_was_found() -> None:
    setting = Setting(side=8, width=8, depth=1, repeats=1)
    found, end = search.measure(2, setting, "cpu", [8, 8 * 10**12])
    assert [row["field"] for row in found] == [[8, 8, 8]]
    assert end.startswith("8000000000000 planes: ")
    assert "memory" in end


class Device:
    """A device on which a field takes 100 bytes and 2 for each plane."""

    def __init__(self, room: int, count: int) -> None:
        self.slabs, self._room = SimpleNamespace(count=count), room

    def room(self) -> int:
        return self._room

    @staticmethod
    def most(value: float) -> float:
        return value


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fields_grow_until_memory_is_full(count: int) -> None:
    sizes: search.Sizes = []
    device, tried = Device(100 + 2 * 1000, count), []
    for planes in search._larger(device, sizes, limit=60.0):  # type: ignore[arg-type]
        tried.append(planes)
        sizes.append((planes, 100 + 2 * planes))
    assert tried[:2] == [probe * count for probe in search.PROBES]
    assert tried == sorted(set(tried))
    assert not any(planes % (4 * count) for planes in tried)
    assert tried[2] < 900
    assert 1000 - 3 * 4 * count <= tried[-3] <= 1000 * search.SHARES[-3]
    assert tried[-1] > 1000  # whether more fits than memory seems to have is tried, too


def test_the_search_ends_in_time() -> None:
    sizes: search.Sizes = []
    tried = 0
    for planes in search._larger(Device(10**6, 1), sizes, limit=0.0):  # type: ignore[arg-type]
        sizes.append((planes, 100 + 2 * planes))
        tried += 1
    assert tried == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--on", "cpu"], "`--planes` must be given with `--on cpu`"),
        (["--on", "cpu", "--planes", "12"], "`--planes` (=12) must be a multiple of processes times 4"),
        (["--on", "cpu", "--planes", "8", "--side", "0"], "`--side` (=0) must be above 0"),
    ],
)
def test_what_is_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "parallel", *options]) == 1
    assert message in capsys.readouterr().err
