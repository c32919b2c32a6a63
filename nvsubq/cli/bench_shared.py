"""What both forms of `nvsubq bench` share: options, a console, the lines at the head."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def add_parser(devices: argparse._SubParsersAction, name: str, brief: str, text: str):
    """Adds the parser of one device."""
    return devices.add_parser(name, help=brief, description=text, allow_abbrev=False)


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Refuses options that are given and not above 0."""
    for name in names:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ValueError(f"`--{name}` (={value:g}) must be above 0.")


def new_console() -> Console:
    """Wide where the output is no terminal: a table that is cut says nothing."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 220))


def show_head(console: Console, lines: Mapping[str, str]) -> None:
    """A line for each name."""
    for name, text in lines.items():
        console.print(f"{name:<9} {text}", highlight=False, markup=False, soft_wrap=True)


def show_problems(console: Console, lines: Sequence[str]) -> None:
    """What has no times, and why."""
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def show_written(console: Console, paths: Sequence[object]) -> None:
    """The files that were written."""
    for path in paths:
        console.print(f"written  {path}", highlight=False, soft_wrap=True)
