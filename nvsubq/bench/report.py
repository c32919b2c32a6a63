"""The files that a measurement leaves: every figure as JSON, and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_json(folder: Path, found: Mapping[str, Any]) -> Path:
    """Writes `bench.json` into a folder that is there."""
    path = folder / "bench.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


def write(folder: Path, found: Mapping[str, Any], figures: Mapping[str, Figure]) -> list[Path]:
    """Writes `bench.json` and each figure as PNG and SVG; gives the paths."""
    paths = [write_json(folder, found)]
    for name, figure in figures.items():
        for ending in ("png", "svg"):
            paths.append(folder / f"{name}.{ending}")
            figure.savefig(paths[-1], dpi=150 if ending == "png" else None)
    return paths
