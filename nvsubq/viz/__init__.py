"""Pictures of runs, walks and models, as matplotlib figures that pyplot does not know of."""

from nvsubq.viz.answers import answer_grid, folded
from nvsubq.viz.confusion import confusion, confusion_counts
from nvsubq.viz.curves import curve
from nvsubq.viz.embed import png_uri, svg_uri
from nvsubq.viz.examples import example_grid, to_unit
from nvsubq.viz.page import render_page
from nvsubq.viz.receptive import receptive_field, receptive_map
from nvsubq.viz.scans import distances, neighbour_distances, scan_paths
from nvsubq.viz.slices import best_cut, slices
from nvsubq.viz.style import region_colours

__all__ = [
    "answer_grid",
    "best_cut",
    "confusion",
    "confusion_counts",
    "curve",
    "distances",
    "example_grid",
    "folded",
    "neighbour_distances",
    "png_uri",
    "receptive_field",
    "receptive_map",
    "region_colours",
    "render_page",
    "scan_paths",
    "slices",
    "svg_uri",
    "to_unit",
]
