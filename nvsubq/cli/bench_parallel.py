"""`nvsubq bench parallel`: the largest field that trains on one device and on several, and its exchanges."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvsubq.cli import bench_shared

SIDE, LIMIT, REPEATS = 512, 60.0, 2


def add_parser(devices: Any) -> None:
    """Adds the command."""
    parser = bench_shared.add_parser(
        devices,
        "parallel",
        "the largest 3-D field that trains on one device and on several",
        (
            "Trains a 3-D segmenter with Mamba both ways on random fields, whole on one device, and in slabs "
            "along the first axis on all of them (sequence parallelism), in bf16 as trainer=gpu does; fields "
            "grow until memory is full unless --planes says their sizes. The share of the exchange is what a "
            "step takes more than the same work without any exchange: sending and waiting."
        ),
    )
    parser.add_argument("--on", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--processes", type=int, metavar="N", help="devices (default: all there are)")
    parser.add_argument(
        "--side", type=int, default=SIDE, metavar="CELLS", help=f"second and third axis (default: {SIDE})"
    )
    parser.add_argument("--planes", type=int, nargs="+", metavar="P", help="first axis: these, no search")
    parser.add_argument(
        "--width", type=int, default=96, metavar="C", help="channels of a token (default: 96)"
    )
    parser.add_argument("--depth", type=int, default=4, metavar="N", help="blocks (default: 4)")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, metavar="N", help=f"timed steps (default: {REPEATS})"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT,
        metavar="SECONDS",
        help=f"try no larger field after so long, for one device and for all (default: {LIMIT:g})",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write bench.json here")


def run(args: argparse.Namespace) -> int:
    """Measures and prints; returns 0, or 1 where nothing trained."""
    bench_shared.check_positive(args, "processes", "side", "width", "depth", "repeats", "limit")
    import torch

    from nvsubq.bench import machine, report
    from nvsubq.bench.parallel.search import measure
    from nvsubq.bench.parallel.step import PATCH, Setting
    from nvsubq.cli.bench_gpu import check_device

    if args.on == "cuda":
        check_device("bench parallel", " With `--on cpu --planes P` it trains small fields on the CPU.")
    count = args.processes or (torch.cuda.device_count() if args.on == "cuda" else 2)
    if args.on == "cuda" and count > torch.cuda.device_count():
        raise ValueError(f"`--processes` (={count}) must be at most the {torch.cuda.device_count()} devices.")
    if args.on == "cpu" and not args.planes:
        raise ValueError("`--planes` must be given with `--on cpu`: memory there has no end to look for.")
    wrong = [planes for planes in args.planes or () if planes < 1 or planes % (count * PATCH)]
    if wrong:
        raise ValueError(f"`--planes` (={wrong[0]}) must be a multiple of processes times {PATCH}.")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(args.side, args.width, args.depth, args.repeats)
    facts = machine.facts()
    console = bench_shared.new_console()
    rows: list[dict[str, Any]] = []
    ends: list[str] = []

    def write() -> None:
        if args.out is not None:
            found = {"machine": facts, "setting": setting._asdict(), "ends": ends, "rows": rows}
            report.write_json(args.out, found)

    def measured(processes: int, planes: Sequence[int]) -> None:
        found, end = measure(processes, setting, args.on, planes, args.limit)
        rows.extend(found)
        ends.append(f"{processes} x {args.on}: {end}")
        console.print(ends[-1], highlight=False, markup=False)
        write()  # after each: figures outlive what ends the process

    for processes in dict.fromkeys((1, count)):
        measured(processes, args.planes or ())
    if count > 1 and not args.planes and rows:  # the largest fields of one and of all, with their exchange
        step = PATCH * count
        largest = [
            max((row["field"][0] for row in rows if row["processes"] == processes), default=0) // step * step
            for processes in (1, count)
        ]
        measured(count, sorted({planes for planes in largest if planes}))
    if args.on == "cuda":  # now: looking at a device takes memory there
        facts |= machine.gpu(0)
        write()
    console.print(table(rows), highlight=False)
    return int(not rows)


def table(rows: Sequence[dict[str, Any]]) -> Any:
    """A line for each field."""
    from rich.table import Table

    shown = Table(title="a training step of a field in slabs")
    for name in ("devices", "field", "cells", "step", "one stream", "no exchange", "share", "sent", "peak"):
        shown.add_column(name, justify="right")
    for row in rows:
        alone = "exchange_share" not in row
        shown.add_row(
            str(row["processes"]),
            "x".join(map(str, row["field"])),
            f"{row['cells'] / 1e6:.3g} M",
            f"{row['step_s']:.3f} s",
            "" if alone else f"{row['step_without_overlap_s']:.3f} s",
            "" if alone else f"{row['step_without_exchange_s']:.3f} s",
            "" if alone else f"{row['exchange_share']:.1%}",
            "" if alone else f"{row['sent_bytes'] / 1e6:.3g} MB",
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f} GiB",
        )
    return shown
