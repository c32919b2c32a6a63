"""`nvsubq.bench.gpu` without a GPU: what a computation moves, rows that fail, tables, JSON and plots."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
import torch
from gpu_helpers import CEILINGS, SMALL, FakeClock
from rich.console import Console

from nvsubq.bench.gpu import blocks, inputs, ops, peers, plot, table, work
from nvsubq.bench.gpu.cases import BOTH, EAGER, FIELDS, FORWARD, GRAPH, SIZES, STATES, TABLES, Size
from nvsubq.bench.gpu.measure import Subject, Task, measure, measure_all, problem_of
from nvsubq.bench.gpu.results import Row
from nvsubq.bench.gpu.tables import subjects
from nvsubq.bench.gpu.work import Work
from nvsubq.bench.names import OURS, PORTABLE
from nvsubq.ops import backends

CPU = torch.device("cpu")
NATIVE = next(backend for backend in backends() if backend.name == "native").active
needs_native = pytest.mark.skipif(not NATIVE, reason="the native library is not there")


class TestWork:
    def test_of_the_scan(self):
        """Forward: u, delta, z in and y out, two bytes each; B and C are shared by all channels."""
        size = Size("s", 2, 3, 5)
        tensors = inputs.of_scan(size, CPU)
        forward, both = work.of_op(tensors.values(), tensors["u"], work.of_scan(size.elements, STATES))
        shared = 2 * 2 * 3 * STATES * 2  # B, C
        fixed = 4 * (5 * STATES + 5 + 5)  # A, D, delta_bias
        assert forward == Work(8 * 30 + shared + fixed, 30 * (STATES + 4))
        assert both == Work(8 * 30 + 14 * 30 + 3 * (shared + fixed), 2 * 30 * (STATES + 4))

    def test_floors_of_the_cases(self):
        """At what an H100 was seen to do; kernels of the issue are held to these."""
        ceilings = work.Ceilings(bytes=3.02e12, exps=4.13e12, how="")
        floors = []
        for size in SIZES:
            bytes_ = 8 * size.elements
            found = Work(bytes_, work.of_scan(size.elements, STATES))
            assert found.floor(ceilings)[1] == "exps"
            floors.append((round(1e6 * bytes_ / ceilings.bytes), round(1e6 * found.floor(ceilings)[0])))
        assert floors == [(26, 47), (133, 244), (267, 487), (67, 122)]

    def test_of_the_recurrences(self):
        """Three tensors in fp32; the RG-LRU has four."""
        linear = inputs.of_linear(SMALL, CPU)
        assert work.of_op(linear.values(), linear["a"], 0)[0] == Work(3 * 4 * SMALL.elements, 0)
        gated = inputs.of_rglru(SMALL, CPU, torch.bfloat16)
        forward, _ = work.of_op(gated.values(), gated["x"], work.of_rglru(SMALL.elements))
        assert forward == Work(4 * 2 * SMALL.elements + 3 * 4 * SMALL.width, 6 * SMALL.elements)

    def test_rates_of_a_row(self):
        row = Row(
            "scan", "s", OURS, times={FORWARD: [1e-3, 2e-3, 3e-3]}, work={FORWARD: Work(10**9, 4 * 10**9)}
        )
        found = row.rates(FORWARD, CEILINGS)
        assert found.pop("bound") == "exps"
        assert found == pytest.approx(
            {"bytes_per_second": 5e11, "exps_per_second": 2e12, "floor": 1e-3, "reached": 0.5}
        )


class TestRows:
    def row(self, error: Exception) -> Row:
        def build() -> Task:
            raise error

        return measure(Subject("scan", "a", OURS, build), FakeClock())

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (
                torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore"),
                "out of memory: Tried",
            ),
            (ModuleNotFoundError("No module named 'x'", name="x"), "not installed: x"),
            (
                RuntimeError("`backend` (='native') does not serve this call of `conv`: no kernel."),
                "not there: `backend` (='native') does not serve this call",
            ),
            (RuntimeError("`backend` (='native') is not active: no library."), "not there: `backend`"),
            (ValueError("odd\nlines"), "ValueError: odd"),
        ],
    )
    def test_what_fails_is_a_row_that_says_why(self, error, said):
        row = self.row(error)
        assert row.problem.startswith(said)
        assert row.times == {}
        assert "\n" not in row.problem

    def test_what_was_timed_before_is_kept(self):
        def fail() -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried")

        task = Task({FORWARD: lambda: None, BOTH: fail}, remember=BOTH)
        row = measure(Subject("scan", "a", OURS, lambda: task), FakeClock())
        assert list(row.times) == [FORWARD]
        assert row.memory is None
        assert row.problem == "out of memory: Tried"

    def test_after_a_lost_context_nothing_runs(self):
        def fail() -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with")

        clock = FakeClock()
        wrong = Subject("scan", "a", "lrnnx", lambda: Task({FORWARD: fail}))
        rows = measure_all([wrong, Subject("scan", "b", OURS, lambda: Task({FORWARD: lambda: None}))], clock)
        assert rows[0].problem == "RuntimeError: CUDA error: an illegal memory access was encountered"
        assert rows[1].problem == "skipped: the CUDA context was lost in scan a lrnnx"
        assert clock.said == []

    def test_graphs_and_the_wall_clock(self):
        clock = FakeClock()
        task = Task({EAGER: lambda: None, GRAPH: lambda: None}, wall=(EAGER,), graphs=(GRAPH,))
        row = measure(Subject("decode", "x", "Mamba", lambda: task), clock)
        assert clock.said == ["wall", "captured", "events", "rest"]
        assert list(row.times) == [EAGER, GRAPH]

    def test_only_packages_have_versions(self):
        names = (OURS, PORTABLE, "Mamba", "row-major")
        rows = measure_all([Subject("scan", "a", name, lambda: Task({})) for name in names], FakeClock())
        assert [bool(row.version) for row in rows] == [True, False, False, False]


class TestOps:
    @needs_native
    @pytest.mark.parametrize("name", ["scan", "order", "linear_scan", "rglru_scan", "conv"])
    def test_ours_run(self, name):
        """Forward and backward of both implementations, with the same work; the packages say what lacks."""
        rows = measure_all(subjects(name, CPU, [SMALL]), FakeClock())
        own = [row for row in rows if row.name in (OURS, PORTABLE) or name == "order"]
        assert len(own) >= 2
        for row in own:
            assert row.problem == ""
            assert list(row.times) == [FORWARD, BOTH]
            assert row.memory == 2**20
        for case in {row.case for row in own}:
            assert len({row.work[BOTH] for row in own if row.case == case}) == 1
        for row in rows:
            if row not in own:
                assert row.problem.startswith(("not installed", "not there"))

    @needs_native
    def test_the_host(self):
        rows = measure_all(ops.host(CPU), FakeClock())
        assert [row.name for row in rows] == [OURS, "autograd alone", "mamba-ssm"]
        for row in rows[:2]:
            assert list(row.times) == list(TABLES["host"].timed)
            assert row.work == {}
        assert rows[2].problem.startswith("not installed")

    def test_autograd_alone_gives_all_that_an_op_gives(self):
        tensors, function = peers.allocation(inputs.of_scan(SMALL, CPU))
        leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        y = function(**leaves)
        gradients = torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))
        for given, found in zip((leaves["u"], *leaves.values()), (y, *gradients), strict=True):
            assert (found.shape, found.dtype) == (given.shape, given.dtype)

    @needs_native
    def test_orders_are_one_function(self):
        """A walk from the end of memory's order is the flipped scan; the tables time what they say."""
        tensors = inputs.of_scan(SMALL, CPU)
        walks = ops.order(SMALL, CPU)
        assert [walk.name for walk in walks] == [
            "row-major",
            "reverse",
            "random order",
            "random order, reverse",
        ]
        backwards = ops._ours("selective_scan", "native", {"delta_softplus": True, "reverse": True}, tensors)
        forwards = ops._ours("selective_scan", "native", {"delta_softplus": True}, tensors)
        flipped = {name: t.flip(1) if t.dim() == 3 else t for name, t in tensors.items()}
        expected = forwards[1](**flipped).flip(1)
        torch.testing.assert_close(backwards[1](**tensors), expected)

    def test_values_are_realistic(self):
        tensors = inputs.of_scan(Size("s", 4, 64, 32), CPU)
        delta = torch.nn.functional.softplus(tensors["delta"].float() + tensors["delta_bias"])
        assert 0.01 < float(delta.median()) < 0.3
        assert bool((tensors["A"] < 0).all())
        assert tensors["u"].dtype == torch.bfloat16
        assert tensors["A"].dtype == torch.float32


class TestPeers:
    def test_mamba_ssm_gets_its_layout(self, monkeypatch):
        def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
            assert u.shape == (2, 16, 8)
            assert B.shape == (2, STATES, 8)
            assert all(t.is_contiguous() for t in (u, delta, A, B, C, D, z, delta_bias))
            assert delta_softplus
            return u + delta + z

        package = ModuleType("mamba_ssm.ops.selective_scan_interface")
        package.selective_scan_fn = selective_scan_fn
        for name in ("mamba_ssm", "mamba_ssm.ops"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, package.__name__, package)
        monkeypatch.setattr("nvsubq.ops.mamba_ssm.inactive", lambda: None)
        leaves, function = peers.mamba_ssm_scan(inputs.of_scan(SMALL, CPU))
        assert function(**leaves).shape == (2, 16, 8)

    def test_causal_conv1d_gets_its_layout(self, monkeypatch):
        package = ModuleType("causal_conv1d")
        package.causal_conv1d_fn = lambda x, weight, bias, activation: (
            x.shape,
            x.is_contiguous(),
            activation,
        )
        monkeypatch.setitem(sys.modules, "causal_conv1d", package)
        leaves, function = peers.causal_conv1d(inputs.of_conv(SMALL, CPU))
        assert function(**leaves) == ((2, 16, 8), True, "silu")

    def test_accelerated_scan_knows_powers_of_two(self, monkeypatch):
        package = ModuleType("accelerated_scan.warp")
        package.scan = lambda gates, tokens: gates * tokens
        monkeypatch.setitem(sys.modules, "accelerated_scan", ModuleType("accelerated_scan"))
        monkeypatch.setitem(sys.modules, package.__name__, package)
        leaves, function = peers.accelerated_scan(inputs.of_linear(SMALL, CPU))
        assert function(**leaves).shape == (2, 16, 8)
        row = measure(ops.linear_scan(Size("o", 1, 9, 4), CPU)[-1], FakeClock())
        assert row.problem == "not there: the package knows lengths that are a power of two, not 9"

    def test_lrnnx_has_the_same_recurrence(self, monkeypatch):
        """Its kernel's definition, on what we give it, is our op in fp32."""
        from nvsubq.ops import rglru_scan

        def rglru_scan_fn(u, delta, A):
            state, outputs = torch.zeros(*u.shape[:2]), []
            for k in range(u.shape[2]):
                decay = A[:, 0] ** delta[:, :, k]
                state = decay * state + (1 - decay**2).sqrt() * u[:, :, k]
                outputs.append(state)
            return torch.stack(outputs, 2)

        package = ModuleType("lrnnx.ops.rglru_scan")
        package.rglru_scan_fn = rglru_scan_fn
        for name in ("lrnnx", "lrnnx.ops"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, package.__name__, package)
        tensors = inputs.of_rglru(SMALL, CPU, torch.float32)
        leaves, function = peers.lrnnx_rglru(tensors)
        expected = rglru_scan(**tensors, backend="reference").movedim(1, 2)
        torch.testing.assert_close(function(**leaves), expected, rtol=1e-4, atol=1e-5)


class TestBlocks:
    def test_every_core_runs(self):
        rows = measure_all(blocks.blocks((2, 3, 4, 64), CPU), FakeClock())
        ours = [row for row in rows if row.name in blocks.CORES]
        assert [row.name for row in ours] == ["Mamba", "Mamba2", "S5", "S7", "RGLRU", "Attention"]
        assert all(row.problem == "" and list(row.times) == [FORWARD, BOTH] for row in ours)
        assert {row.case for row in rows} == {"[2, 3, 4, 64]"}
        for row in rows:
            assert row in ours or row.problem.startswith("not installed")

    def test_ops_without_a_kernel_are_told(self, monkeypatch):
        from nvsubq.ops import native

        monkeypatch.setattr(native, "missing", lambda op, device: "no" if op == "ssd_scan" else None)
        assert blocks.core_factory("Mamba2")[1] == "portable: ssd_scan"
        assert blocks.core_factory("Mamba")[1] == ""

    def test_steps_that_are_no_native_call_are_told(self, monkeypatch):
        from nvsubq.ops import native

        monkeypatch.setattr(native, "missing", lambda op, device: None if op == "mamba2_step" else "no")
        assert blocks.step_note("Mamba2", "portable: ssd_scan") == ""
        assert blocks.step_note("S5", "portable: linear_scan") == "composed of ops; portable: linear_scan"
        assert blocks.step_note("S7", "") == "composed of ops"

    def test_decoding(self):
        rows = measure_all(blocks.decode(CPU, 64), FakeClock())
        for row in rows[: len(blocks.DECODED)]:
            assert row.problem == ""
            assert list(row.times) == [EAGER, GRAPH]
            assert row.work[GRAPH].bytes > 2 * 3 * 64 * 64
        assert rows[0].work[GRAPH].exps == 0

    def test_a_peer_decodes_with_its_two_states(self, monkeypatch):
        class Published(torch.nn.Module):
            def __init__(self, d_model, device=None, dtype=None):
                super().__init__()
                self.proj = torch.nn.Linear(d_model, d_model, device=device, dtype=dtype)

            def allocate_inference_cache(self, batch_size, max_seqlen):
                return torch.zeros(batch_size), torch.ones(batch_size)

            def step(self, hidden_states, conv_state, ssm_state):
                return self.proj(hidden_states), conv_state, ssm_state

        package = ModuleType("mamba_ssm")
        package.Mamba = package.Mamba2 = Published
        monkeypatch.setitem(sys.modules, "mamba_ssm", package)
        monkeypatch.setattr("nvsubq.ops.mamba_ssm.inactive", lambda: None)
        rows = measure_all(blocks.decode(CPU, 16), FakeClock())
        assert [row.problem for row in rows[-2:]] == ["", ""]


def measured() -> list[Row]:
    """Two cases: ours, the portable path at four times the time, a package that is not there."""
    rows = []
    for i, size in enumerate(SIZES[:2]):
        forward, both = (
            Work(8 * size.elements, 20 * size.elements),
            Work(22 * size.elements, 40 * size.elements),
        )
        done = {FORWARD: forward, BOTH: both}
        seconds = 1e-4 * (i + 1)
        times = {FORWARD: [seconds] * 3, BOTH: [3 * seconds] * 3}
        slow = {what: [4 * t for t in own] for what, own in times.items()}
        rows += [
            Row("scan", str(size), OURS, "0.1.0", times, done, 2**20),
            Row("scan", str(size), PORTABLE, "", slow, done, 5 * 2**20, note="slow"),
            Row("scan", str(size), "mamba-ssm", problem="not installed: there is no `selective_scan_cuda`"),
        ]
    return rows


def text_of(what: object) -> list[str]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(what)
    return capture.get().splitlines()


class TestShown:
    def test_table(self):
        lines = text_of(table.of_rows("scan", measured(), CEILINGS))
        assert lines[0].startswith("selective_scan, bf16, N = 16")
        (ours,) = (line for line in lines if "a (64, 196, 768)" in line)
        # 9.63 million elements: 77 MB and 193 million exponentials in 100 µs
        assert ours.split() == [
            "a", "(64,", "196,", "768)", "nvsubq", "0.1.0",
            "100", "µs", "0.77", "1.93", "48.2", "µs", "exps", "48", "%",
            "300", "µs", "0.71", "1.28", "106", "µs", "bytes", "35", "%", "1", "MiB",
        ]  # fmt: skip
        portable = [line for line in lines if PORTABLE in line]
        assert all(line.count("4.00x") == 2 for line in portable)
        assert sum("not installed" in line for line in lines) == 2

    def test_remarks(self):
        assert table.remarks(measured())[:2] == [
            "scan a (64, 196, 768) nvsubq torch: slow",
            "scan a (64, 196, 768) mamba-ssm: not installed: there is no `selective_scan_cuda`",
        ]

    def test_a_table_without_floors(self):
        rows = [Row("host", "selective_scan", OURS, times={what: [2e-5] for what in TABLES["host"].timed})]
        (line,) = (line for line in text_of(table.of_rows("host", rows, CEILINGS)) if OURS in line)
        assert line.split() == ["selective_scan", OURS, "20.0", "µs", "20.0", "µs", "20.0", "µs"]

    def test_json(self):
        found = json.loads(json.dumps([row.as_json(CEILINGS) for row in measured()]))
        ours, _, absent = found[:3]
        assert ours["figures"][FORWARD]["median"] == 1e-4
        assert ours["figures"][FORWARD]["bound"] == "exps"
        assert ours["figures"][FORWARD]["reached"] == pytest.approx(0.4817, rel=1e-3)
        assert ours["work"][FORWARD] == {"bytes": 8 * SIZES[0].elements, "exps": 20 * SIZES[0].elements}
        assert ours["times"][BOTH] == pytest.approx([3e-4] * 3)
        assert absent == {
            "table": "scan", "case": str(SIZES[0]), "name": "mamba-ssm", "memory": None,
            "problem": "not installed: there is no `selective_scan_cuda`",
        }  # fmt: skip

    def test_plot(self):
        figure = plot.of_rows("scan", measured(), CEILINGS)
        assert [axes.get_title(loc="left") for axes in figure.axes] == [FORWARD, BOTH]
        assert {text.get_text() for text in figure.legends[0].get_texts()} == {
            "nvsubq 0.1.0",
            PORTABLE,
            "floor",
        }
        for axes in figure.axes:
            assert axes.get_yscale() == "log"
            labels = [label.get_text() for label in axes.get_xticklabels()]
            assert labels == ["a\n(64, 196, 768)", "b\n(8, 4096, 1536)"]
        low, high = figure.axes[0].get_ylim()
        assert low < 48.2e-6 < 24e-4 < high * 1.61

    @pytest.mark.parametrize("name", TABLES)
    def test_plot_of_each_table(self, name):
        timed = TABLES[name].timed
        rows = [Row(name, "x", OURS, times={what: [1e-3] for what in timed})]
        assert len(plot.of_rows(name, rows, CEILINGS).axes) == len(timed)

    def test_plot_of_nothing(self):
        with pytest.raises(ValueError, match=r"`rows` of table 'scan' have no times"):
            plot.of_rows("scan", [Row("scan", "a", OURS, problem="failed")], CEILINGS)


def test_every_table_has_its_subjects():
    for name in TABLES:
        found = subjects(name, CPU, SIZES[:1], FIELDS[:1])
        assert found
        assert {subject.table for subject in found} == {name}


def test_problems_are_one_line():
    assert problem_of(RuntimeError("")) == "RuntimeError: "
