"""`nvsubq.bench`: what is skipped and why, agreement, workers that fail, and the figures made from times."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch

from nvsubq.bench.cpu import cases, measure, peers, worker
from nvsubq.bench.cpu.cases import PEERS, Size
from nvsubq.bench.cpu.process import Worker, WorkerError
from nvsubq.bench.cpu.results import Cell
from nvsubq.bench.names import OURS, PORTABLE

SMALL = Size(2, 9, 16)


def timed(size: Size, seconds: float, memory: int = 1, name: str = "mambapy") -> Cell:
    return Cell("mamba", size, name, "1.0", forward=[seconds], both=[seconds], memory=memory)


class TestEstimates:
    def test_nothing_is_known(self):
        assert measure.too_slow(Cell("mamba", Size(1, 4096, 192), "mambapy"), [], 1.0) == ""

    def test_grows_with_the_elements(self):
        earlier = [timed(Size(1, 1000, 192), 2.0)]
        assert measure.too_slow(Cell("mamba", Size(1, 4000, 192), "mambapy"), earlier, 9.0) == ""
        reason = measure.too_slow(Cell("mamba", Size(1, 8000, 192), "mambapy"), earlier, 9.0)
        assert reason == "skipped: takes about 16 s by (1, 1000, 192), over --limit 9"

    def test_grows_as_fast_as_it_was_seen_to(self):
        earlier = [timed(Size(4, 100, 192), 0.4), timed(Size(1, 1000, 192), 10.0)]  # 0.1 s a row: squares
        reason = measure.too_slow(Cell("mamba", Size(1, 2000, 192), "mambapy"), earlier, 30.0)
        assert reason == "skipped: takes about 40 s by (1, 1000, 192), over --limit 30"

    def test_another_implementation_says_nothing(self):
        earlier = [timed(Size(1, 1000, 192), 2.0, name="lite-mamba")]
        assert measure.too_slow(Cell("mamba", Size(1, 8000, 192), "mambapy"), earlier, 9.0) == ""

    def test_what_was_stopped_is_not_tried_at_a_larger_size(self):
        stopped = Cell(
            "mamba", Size(1, 10, 192), "mambapy", problem="skipped: one forward+backward takes over 3 s"
        )
        reason = measure.too_slow(Cell("mamba", Size(1, 20, 192), "mambapy"), [stopped], 3.0)
        assert reason == "skipped: (1, 10, 192) takes longer than --limit 3 already"
        assert measure.too_slow(Cell("mamba", Size(1, 5, 192), "mambapy"), [stopped], 3.0) == ""

    def test_memory(self):
        earlier = [timed(Size(1, 1000, 192), 2.0, memory=2**30)]
        cell = Cell("mamba", Size(1, 16000, 192), "mambapy")
        assert measure.too_big(cell, earlier, available=20 * 2**30) == ""
        reason = measure.too_big(cell, earlier, available=15 * 2**30)
        assert reason == "skipped: needs about 16 GiB by (1, 1000, 192), 15 GiB are free"


class TestWorkers:
    def make(self, tmp_path: Path, name: str, size: Size = SMALL, core: str = "mamba") -> Worker:
        return Worker(core, size, name, 1, tmp_path / "outputs.pt")

    def test_is_stopped_at_the_limit(self, tmp_path):
        """A thousandth of a second is less than any answer takes."""
        worker = self.make(tmp_path, PORTABLE, Size(1, 4096, 64))
        worker.ready()
        with pytest.raises(WorkerError, match=r"skipped: one forward\+backward takes over 0.001 s"):
            worker.ask("first", 0.001)
        assert worker.process.returncode == -9

    def test_one_that_dies_says_how(self, tmp_path):
        worker = self.make(tmp_path, OURS)
        worker.ready()
        worker.process.kill()
        with pytest.raises(WorkerError, match="it was ended by signal 9: out of memory"):
            worker.ask("forward", 60.0)
        worker.close()

    def test_an_error_is_its_message(self, tmp_path):
        worker = self.make(tmp_path, OURS, Size(1, 2, 3), core="mamba2")  # no head fits into this width
        with pytest.raises(WorkerError, match=r"ValueError: .*headdim"):
            worker.ready()
        worker.close()


class TestAgreement:
    def cells(self) -> list[Cell]:
        return [Cell("mamba", SMALL, name) for name in (OURS, PORTABLE, "mambapy")]

    def workers(self, tmp_path: Path, outputs: dict[str, torch.Tensor]) -> dict:
        found = {}
        for name, output in outputs.items():
            torch.save((output, output), tmp_path / name)
            found[name] = type("Saved", (), {"outputs": tmp_path / name})
        return found

    def test_a_peer_that_disagrees_has_no_times(self, tmp_path):
        right = torch.arange(1.0, 5.0)
        cells = self.cells()
        measure._compare(
            cells, self.workers(tmp_path, {OURS: right, PORTABLE: right, "mambapy": right + torch.eye(4)[0]})
        )
        assert [cell.problem for cell in cells[:2]] == ["", ""]
        assert cells[2].problem == "disagrees: output and gradient are off by 2.5e-01 and 2.5e-01"
        assert cells[2].error == (0.25, 0.25)

    def test_values_that_are_not_numbers_disagree(self, tmp_path):
        right = torch.ones(3)
        cells = self.cells()
        measure._compare(
            cells, self.workers(tmp_path, {OURS: right / 0 * 0, PORTABLE: right, "mambapy": right})
        )
        assert [bool(cell.problem) for cell in cells] == [True, False, False]


@pytest.mark.parametrize("name", PEERS)
def test_peers_have_our_weights(name):
    ours = cases.build("mamba", SMALL)
    theirs = peers.build(name, ours)
    x = torch.randn(*SMALL)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setattr(peers, "version", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="mambapy is not installed: pip install mambapy"):
        peers.build("mambapy", cases.build("mamba", SMALL))


@pytest.mark.parametrize("core", list(cases.CORES))
def test_both_of_ours_are_the_same_core(core):
    one, other = (cases.build(core, Size(1, 7, 64), portable=portable) for portable in (False, True))
    assert (one.backend, other.backend) == (None, "torch")
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("core", list(cases.CORES))
def test_matrix_products_are_those_of_the_forward(core, monkeypatch):
    """Every `F.linear` of a forward is in the list, with its number of multiplications."""
    size = Size(2, 7, 64)
    block = cases.build(core, size, portable=True)
    listed = sorted(given.numel() * weight.shape[0] for given, weight in worker.matrix_products(block, size))
    seen = []
    linear = torch.nn.functional.linear

    def spy(given, weight, bias=None):
        seen.append(given.numel() * weight.shape[0])
        return linear(given, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", spy)
    block(torch.randn(*size))
    assert sorted(seen) == listed


def test_worker_answers_in_json(monkeypatch, tmp_path, capfd):
    given = {
        "core": "s5",
        "size": SMALL,
        "implementation": OURS,
        "threads": 1,
        "outputs": str(tmp_path / "o.pt"),
    }
    monkeypatch.setattr(sys, "stdin", io.StringIO("first\nforward\nboth\nproducts\n"))
    monkeypatch.setattr(worker.os, "dup2", lambda *_: None)
    assert worker.main(json.dumps(given)) == 0
    ready, first, *times = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert ready == {"ready": True}
    assert first["seconds"] > 0
    assert first["memory"] is None or first["memory"] >= 0
    assert all(answer["seconds"] > 0 for answer in times)
    assert len(times) == 3
    output, gradient = torch.load(tmp_path / "o.pt")
    assert output.shape == gradient.shape == SMALL
