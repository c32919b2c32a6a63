"""Draws the pictures of docs/scan_orders.md: `python docs/scans/draw.py`."""

from functools import partial
from pathlib import Path

import torch

from nvsubq import NDBackbone, NDMixer, viz
from nvsubq.cores import Mamba

HERE = Path(__file__).parent
FLAT = ["row_major", "column_major", "snake", "window(4)", "hilbert", "morton", "random", "axes(1, 0)"]
SOLID = ["row_major", "snake", "hilbert", "morton"]


def field(scan, bidirectional: bool):
    torch.manual_seed(0)
    mixer = partial(NDMixer, Mamba, scan=scan, bidirectional=bidirectional, fuse="mean")
    model = NDBackbone(2, 1, 0, mixer=mixer, patch_size=1, depths=(2,), dims=(32,), pos_embed="none")
    return viz.receptive_field(model, (1, 32, 32))


def main() -> None:
    viz.scan_paths(FLAT[:7], (8, 8), columns=4).savefig(HERE / "paths_2d.svg")
    viz.scan_paths(SOLID, (4, 4, 4), columns=4).savefig(HERE / "paths_3d.svg")
    viz.neighbour_distances(FLAT[:7], (64, 64)).savefig(HERE / "neighbours.svg")
    for name, scan, both in (
        ("one_way", "row_major", False),
        ("both_ways", "row_major", True),
        ("cross", ["row_major", "column_major"], True),
        ("hilbert", "hilbert", True),
    ):
        viz.receptive_map(field(scan, both)).savefig(HERE / f"field_{name}.png", dpi=130)


if __name__ == "__main__":
    main()
