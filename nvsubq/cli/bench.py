"""`nvsubq bench`: ops and cores timed on this machine, on the CPU, on a CUDA device or on several."""

from __future__ import annotations

import argparse
from typing import Any

from nvsubq.cli import bench_cpu, bench_gpu, bench_parallel

DEVICES = {"cpu": bench_cpu, "gpu": bench_gpu, "parallel": bench_parallel}


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "bench",
        help="time ops and cores beside the portable path and other packages",
        description="Times ops and cores on this machine.",
        allow_abbrev=False,
    )
    devices = parser.add_subparsers(dest="device", metavar="DEVICE", required=True)
    for module in DEVICES.values():
        module.add_parser(devices)


def run(args: argparse.Namespace) -> int:
    """Measures and prints; returns 0, or 1 where something failed."""
    return DEVICES[args.device].run(args)
