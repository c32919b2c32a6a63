"""`nvsubq bench gpu`: ops, blocks and decoding on a CUDA device, beside other packages and its ceilings."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvsubq.bench.gpu.cases import FIELDS, PACKAGES, SIZES, TABLES
from nvsubq.cli import bench_shared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nvsubq.bench.gpu.results import Row
    from nvsubq.bench.gpu.work import Ceilings

REPEATS, LIMIT = 30, 5.0
QUICK_REPEATS, QUICK_LIMIT = 5, 0.5


def add_parser(devices: Any) -> None:
    """Adds the command."""
    gpu = bench_shared.add_parser(
        devices,
        "gpu",
        "ops, blocks and decoding on a CUDA device",
        (
            "Times the native kernels beside the portable backend and the packages mamba-ssm, "
            "causal-conv1d, accelerated-scan and lrnnx where they are installed. Shown are medians by CUDA "
            "events with a cold L2 cache (eager decoding and the host's time: by the wall clock), bytes and "
            "exponentials per second, and the floor: the time that the least possible bytes, or "
            "exponentials, take at what a copy and a loop of exponentials reach in the same run. Peak memory "
            "is that of torch's allocator beyond weights and inputs. docs/benchmarks.md tells what each "
            "column means."
        ),
    )
    gpu.add_argument(
        "--tables",
        nargs="+",
        metavar="TABLE",
        choices=tuple(TABLES),
        help=f"of {', '.join(TABLES)} (default: all)",
    )
    gpu.add_argument("--repeats", type=int, metavar="N", help=f"timed runs (default: {REPEATS})")
    gpu.add_argument(
        "--limit",
        type=float,
        metavar="SECONDS",
        help=(
            "skip what needs more for one run; all runs of a figure take about so long at most "
            f"(default: {LIMIT:g})"
        ),
    )
    gpu.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write bench.json with every time, and plots, here"
    )
    gpu.add_argument(
        "--quick",
        action="store_true",
        help=f"one size of each table, --repeats {QUICK_REPEATS} --limit {QUICK_LIMIT:g}",
    )


def run(args: argparse.Namespace) -> int:
    """Measures and prints; returns 0, or 1 where something failed."""
    bench_shared.check_positive(args, "repeats", "limit")
    check_device()
    from nvsubq.bench import machine, report
    from nvsubq.bench.gpu import ceilings as ceilings_of
    from nvsubq.bench.gpu import table
    from nvsubq.bench.gpu.clock import CudaClock
    from nvsubq.bench.gpu.measure import measure_all
    from nvsubq.bench.gpu.tables import subjects

    options = {
        "repeats": args.repeats or (QUICK_REPEATS if args.quick else REPEATS),
        "limit": args.limit or (QUICK_LIMIT if args.quick else LIMIT),
        "quick": args.quick,
    }
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    console = bench_shared.new_console()
    clock = CudaClock(options["repeats"], options["limit"])
    facts = {**machine.facts(PACKAGES), **machine.gpu(clock.device.index)}
    ceilings = ceilings_of.measure(clock)
    bench_shared.show_head(console, head(facts, ceilings, options))
    sizes, fields = (SIZES[:1], FIELDS[:1]) if args.quick else (SIZES, FIELDS)
    rows: list[Row] = []
    for name in args.tables or TABLES:
        with console.status("") as status, warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* runs without its CUDA kernel")  # rows have a note of it
            own = measure_all(subjects(name, clock.device, sizes, fields), clock, status.update)
        rows += own
        console.print()
        console.print(table.of_rows(name, own, ceilings), highlight=False)
        bench_shared.show_problems(console, table.remarks(own))
        if args.out is not None:  # after each table: figures outlive what ends the process
            report.write_json(args.out, findings(facts, options, ceilings, rows))
    if args.out is not None:
        found = findings(facts, options, ceilings, rows)
        bench_shared.show_written(console, report.write(args.out, found, figures(ceilings, rows)))
    return int(any(row.problem and not row.problem.startswith(EXPECTED) for row in rows))


EXPECTED = ("skipped", "not installed", "not there", "out of memory")


def check_device(command: str = "bench gpu", hint: str = "") -> None:
    """Refuses where torch has no CUDA device.

    Args:
        command: what needs one.
        hint: a sentence on how to do without.

    Raises:
        ValueError: there is none; says why.
    """
    import torch

    if torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        raise ValueError(
            f"`{command}` needs a CUDA device: torch {torch.__version__} is built without CUDA.{hint}"
        )
    raise ValueError(
        f"`{command}` needs a CUDA device: torch is built for CUDA {torch.version.cuda} "
        f"and finds no device or driver.{hint}"
    )


def head(facts: dict[str, Any], ceilings: Ceilings, options: dict[str, Any]) -> dict[str, str]:
    """The lines above the tables."""
    return {
        "device": f"{facts['gpu']}, {facts['gpu_memory'] / 2**30:.0f} GiB, capability {facts['capability']}, "
        f"CUDA {facts['cuda']}, driver {facts['driver']}",
        "host": f"{facts['cpu']}, {facts['cores']} usable cores",
        "native": facts["native"],
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "ceilings": f"{ceilings.bytes / 1e12:.2f} TB/s, {ceilings.exps / 1e12:.2f} Texp/s ({ceilings.how})",
        "runs": f"{options['repeats']} of each, limit {options['limit']:g} s",
    }


def findings(
    facts: dict[str, Any], options: dict[str, Any], ceilings: Ceilings, rows: Sequence[Row]
) -> dict[str, Any]:
    """What the JSON holds."""
    from dataclasses import asdict

    return {
        "machine": facts,
        "options": options,
        "ceilings": asdict(ceilings),
        "rows": [row.as_json(ceilings) for row in rows],
    }


def figures(ceilings: Ceilings, rows: Sequence[Row]) -> dict[str, Figure]:
    """A plot of each table that has times."""
    from nvsubq.bench.gpu import plot

    timed = dict.fromkeys(row.table for row in rows if row.times)
    return {name: plot.of_rows(name, [row for row in rows if row.table == name], ceilings) for name in timed}
