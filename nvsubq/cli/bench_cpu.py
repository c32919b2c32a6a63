"""`nvsubq bench cpu`: whole cores on this machine, beside the portable path and other packages."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvsubq.bench.cpu.cases import CORES, PEERS, QUICK, SIZES, implementations, parse_size
from nvsubq.cli import bench_shared

if TYPE_CHECKING:
    from rich.console import Console

    from nvsubq.bench.cpu.results import Cell

REPEATS, LIMIT = 7, 30.0
QUICK_REPEATS, QUICK_LIMIT = 3, 3.0


def add_parser(devices: Any) -> None:
    """Adds the command."""
    sizes = " ".join(f"{b},{length},{c}" for b, length, c in SIZES)
    cpu = bench_shared.add_parser(
        devices,
        "cpu",
        "whole cores on the CPU, in fp32",
        (
            "Times forward and forward+backward of whole cores in fp32: what backend `auto` picks, the "
            "portable backend `torch` and, for Mamba, the packages mambapy, transformers and lite-mamba "
            "where they are installed, with the same weights. Outputs and input gradients are compared "
            "first. Runs alternate; shown are medians, quartiles and ratios. Peak memory is the growth of "
            "the high-water mark (VmHWM on Linux) of a fresh process over its first forward+backward. "
            "A machine that does other work gives wrong times."
        ),
    )
    cpu.add_argument("--sizes", nargs="+", metavar="B,L,C", help=f"batch, length, width (default: {sizes})")
    cpu.add_argument(
        "--cores",
        nargs="+",
        metavar="CORE",
        choices=tuple(CORES),
        help=f"of {', '.join(CORES)} (default: all)",
    )
    cpu.add_argument(
        "--peers",
        nargs="*",
        metavar="PACKAGE",
        choices=PEERS,
        help=f"other packages, of {', '.join(PEERS)} (default: all; without a name: none)",
    )
    cpu.add_argument(
        "--repeats", type=int, metavar="N", help=f"rounds of alternating runs (default: {REPEATS})"
    )
    cpu.add_argument(
        "--limit",
        type=float,
        metavar="SECONDS",
        help=(
            "skip what needs more for one forward+backward; all rounds of one implementation "
            f"at one size take about so long at most (default: {LIMIT:g})"
        ),
    )
    cpu.add_argument("--threads", type=int, metavar="N", help="of torch (default: the usable cores)")
    cpu.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write bench.json with every time, and plots, here"
    )
    quick = " ".join(f"{b},{length},{c}" for b, length, c in QUICK)
    cpu.add_argument(
        "--quick",
        action="store_true",
        help=f"under a minute: --sizes {quick} --repeats {QUICK_REPEATS} --limit {QUICK_LIMIT:g}",
    )


def run(args: argparse.Namespace) -> int:
    """Measures and prints; returns 0, or 1 where something failed or disagrees."""
    from nvsubq.bench import machine
    from nvsubq.bench.cpu import measure
    from nvsubq.training.system import usable_cores

    bench_shared.check_positive(args, "repeats", "limit", "threads")
    sizes = [parse_size(text) for text in args.sizes] if args.sizes else list(QUICK if args.quick else SIZES)
    options = measure.Options(
        repeats=args.repeats or (QUICK_REPEATS if args.quick else REPEATS),
        limit=args.limit or (QUICK_LIMIT if args.quick else LIMIT),
        threads=args.threads or usable_cores(),
    )
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    peers = PEERS if args.peers is None else tuple(args.peers)
    console = bench_shared.new_console()
    facts = machine.facts(PEERS)
    _head(console, facts, options)
    cells: list[Cell] = []
    for core in args.cores or CORES:
        with console.status("") as status:
            own: list[Cell] = []
            for size in sizes:
                own += measure.measure(core, size, implementations(core, peers), options, own, status.update)
        cells += own
        _show_core(console, core, own)
    _show_end(console, cells)
    if args.out is not None:
        bench_shared.show_written(console, _write(args.out, facts, options, cells))
    return int(any(c.problem and not c.problem.startswith(("skipped", "not installed")) for c in cells))


def _head(console: Console, facts: dict[str, Any], options: Any) -> None:
    memory = f", {facts['memory'] / 2**30:.0f} GiB" if facts["memory"] else ""
    load = "" if facts["load"] is None else f", load {facts['load']:.1f} before"
    lines = {
        "machine": f"{facts['cpu']}, {facts['cores']} usable cores{memory}{load}",
        "native": facts["native"],
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "runs": f"{options.threads} threads, {options.repeats} rounds, limit {options.limit:g} s",
    }
    bench_shared.show_head(console, lines)


def _show_core(console: Console, core: str, cells: Sequence[Cell]) -> None:
    from nvsubq.bench.cpu import table

    console.print()
    console.print(table.core_table(core, cells), highlight=False)
    bench_shared.show_problems(console, table.problems(cells))


def _show_end(console: Console, cells: Sequence[Cell]) -> None:
    from nvsubq.bench.cpu import table

    console.print()
    console.print(table.products_table(cells), highlight=False)


def _write(folder: Path, facts: dict[str, Any], options: Any, cells: Sequence[Cell]) -> list[Path]:
    from dataclasses import asdict

    from nvsubq.bench.cpu.plot import time_by_length
    from nvsubq.bench.report import write

    found = {"machine": facts, "options": asdict(options), "cells": [cell.as_json() for cell in cells]}
    timed = dict.fromkeys(cell.core for cell in cells if cell.both)
    return write(folder, found, {core: time_by_length(core, cells) for core in timed})
