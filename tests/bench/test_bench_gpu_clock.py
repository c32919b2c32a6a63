"""The clock and the ceilings of `nvsubq bench gpu`, over a stand-in for `torch.cuda` that counts time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from gpu_helpers import FakeClock

from nvsubq.bench.gpu import ceilings, clock
from nvsubq.bench.gpu.clock import BATCH, LEAST, CudaClock, TooSlow


class Device:
    """A device on which time passes only in `work`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.held, self.peak = 1000, 1000

    def work(self, seconds: float, taken: int = 0) -> None:
        self.now += seconds
        self.peak = max(self.peak, self.held + taken)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = made.now

        def elapsed_time(self, end: Event) -> float:
            return 1000 * (end.at - self.at)

    def reset(device: object) -> None:
        made.peak = made.held

    cuda = {
        "Event": Event,
        "synchronize": lambda device: None,
        "current_device": lambda: 0,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=64, multi_processor_count=2),
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": reset,
        "memory_allocated": lambda device: made.held,
        "max_memory_allocated": lambda device: made.peak,
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(clock.time, "perf_counter", lambda: made.now)
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, device=None, **k: real(*a, **k))
    monkeypatch.setattr(clock, "CACHE_AT_LEAST", 64)
    return made


def test_events_are_of_the_run_alone(device: Device) -> None:
    found = CudaClock(repeats=5, limit=1.0).events(lambda: device.work(0.002))
    assert found == pytest.approx([0.002] * 5)


def test_fewer_runs_of_what_is_slow(device: Device) -> None:
    assert len(CudaClock(repeats=30, limit=1.0).events(lambda: device.work(0.1))) == 10
    assert len(CudaClock(repeats=30, limit=1.0).events(lambda: device.work(0.9))) == LEAST


def test_too_slow(device: Device) -> None:
    with pytest.raises(TooSlow, match=r"skipped: one run takes 2\.0 s, over --limit 1"):
        CudaClock(repeats=30, limit=1.0).events(lambda: device.work(2.0))


def test_the_wall_clock_is_of_calls_in_a_row(device: Device) -> None:
    calls = []

    def run() -> None:
        calls.append(1)
        device.work(0.001)

    found = CudaClock(repeats=4, limit=1.0).wall(run)
    assert found == pytest.approx([0.001] * 4)
    assert len(calls) > 4 * BATCH
    assert len(CudaClock(repeats=30, limit=1.01).wall(run)) == 20  # 50 ms each


def test_memory_is_the_peak_beyond_what_was_held(device: Device) -> None:
    taken = iter((9000, 700))  # a first call takes workspaces as well
    assert CudaClock(repeats=3, limit=1.0).memory(lambda: device.work(0.1, next(taken))) == 700


def test_ceilings_by_a_compiled_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def compiled(source: str, name: str):
        assert f"void {name}(float* out, int steps)" in source
        assert "CHAINS" not in source
        return lambda grid, block, args: ran.append((grid, block, args[1]))

    monkeypatch.setattr(torch.cuda, "_compile_kernel", compiled, raising=False)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda d: SimpleNamespace(multi_processor_count=2)
    )
    found = ceilings.measure(FakeClock(), copied=1000)
    assert found.bytes == pytest.approx(2000 / 2e-3)  # the median of 1, 2 and 3 ms
    assert ran == [((16, 1, 1), (ceilings.THREADS, 1, 1), ceilings.STEPS)]
    assert found.exps == pytest.approx(16 * ceilings.THREADS * ceilings.STEPS * ceilings.CHAINS / 4e-3)
    assert found.how.endswith("exponentials: a loop of ex2.approx in registers")


def test_ceilings_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("no NVRTC")

    monkeypatch.setattr(torch.cuda, "_compile_kernel", fails, raising=False)
    found = ceilings.measure(FakeClock(), copied=1000)
    assert found.exps == pytest.approx(64 * 2**21 / 4e-3)
    assert found.how.endswith("bound by the cache: too low")
