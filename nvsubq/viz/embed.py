"""Figures as data URIs, for files that need no other file."""

from __future__ import annotations

import base64
import io
import warnings
from typing import Any

from matplotlib.figure import Figure

from nvsubq.viz.style import PIXELS_PER_INCH, styled


def svg_uri(figure: Figure) -> str:
    """A figure as ``data:image/svg+xml``, for lines and text; the same figure gives the same bytes.

    Example:
        >>> from nvsubq.viz import curve
        >>> svg_uri(curve([0, 1], {"train": [2.0, 1.0]}, title="loss"))[:26]
        'data:image/svg+xml;base64,'
    """
    return _uri(figure, "svg", "image/svg+xml", {"Date": None})


def png_uri(figure: Figure, *, scale: float = 2.0) -> str:
    """A figure as ``data:image/png``, for pictures; `scale` pixels to the CSS pixel."""
    return _uri(figure, "png", "image/png", {"Software": None}, dpi=PIXELS_PER_INCH * scale)


def _uri(figure: Figure, kind: str, media: str, metadata: dict, **options: Any) -> str:
    buffer = io.BytesIO()
    with styled(), warnings.catch_warnings():
        # A class name in a script that the font lacks shows boxes; the tables beside have it right.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure.savefig(buffer, format=kind, metadata=metadata, **options)
    return f"data:{media};base64,{base64.b64encode(buffer.getvalue()).decode()}"
