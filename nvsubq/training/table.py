"""The tables that a run begins and ends with."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from nvsubq.training.scores import score_text


def duration(seconds: float) -> str:
    """Seconds as people read them.

    Example:
        >>> duration(3.21), duration(75), duration(7384)
        ('3.2 s', '1 min 15 s', '2 h 03 min')
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes as people read them.

    Example:
        >>> size(1536), size(3 * 2**30)
        ('1.5 KiB', '3.0 GiB')
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count >= 1024 and power < len(units) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.1f} {units[power]}" if power else f"{count:.0f} B"


def final_table(figures: dict[str, Any], folder: str) -> Group:
    """What was run, what it cost, and the test metrics beside the baselines.

    Args:
        figures: the content of metrics.json (see `run_folder`).
        folder: the run folder, as it shall be shown.
    """
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    best = figures["best_epoch"]
    tested = figures["tested_with"]
    epochs = f"{figures['epochs']}" + (" (stopped early)" if figures["stopped_early"] else "")
    if best is not None:
        epochs += f", best {best + 1}"
    rows = {
        "run": figures["name"],
        "data": figures["data"]["name"],
        "core": figures["core"],
        "parameters": f"{figures['parameters']:,}",
        "epochs": epochs,
        "time": f"{duration(figures['train_s'])} training, {duration(figures['total_s'])} in all",
        "memory": _memory(figures),
        "folder": folder,
    }
    for name, value in rows.items():
        facts.add_row(name, Text(str(value)))
    return Group(facts, "", score_table(figures, f"test, {tested} checkpoint" if tested else "test"))


def _memory(figures: dict[str, Any]) -> str:
    parts = [size(figures["peak_memory_bytes"])] if figures["peak_memory_bytes"] else []
    if figures["peak_device_bytes"]:
        parts.append(f"{size(figures['peak_device_bytes'])} on the device")
    return ", ".join(parts) or "unknown"


def score_table(figures: dict[str, Any], title: str) -> Group:
    """Test metrics of the run, and those of the baselines below."""
    metrics = {k.removeprefix("test/"): v for k, v in figures["metrics"].items() if k.startswith("test/")}
    names = [name for name in metrics if name != "loss"] or list(metrics)
    table = Table("", *names)
    table.add_row(figures["core_name"], *(score_text(metrics[name]) for name in names), style="bold")
    for label, scores in figures["baselines"].items():
        table.add_row(label, *(score_text(scores.get(name)) for name in names), style="dim")
    # A title of rich's is broken to the width of a narrow table.
    return Group(Text(title, style="bold"), table)


def show(console: Console, what: Any) -> None:
    """Writes to a console; long paths are not broken where the output is no terminal."""
    console.print(what, highlight=False, soft_wrap=not console.is_terminal)
