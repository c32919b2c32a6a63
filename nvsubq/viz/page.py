"""Pages of HTML from templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def render_page(template: Path, values: Mapping[str, Any]) -> str:
    """What a Jinja template makes of values: all text is escaped, a name without a value is an error.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     template = Path(folder, "page.html.jinja")
        ...     _ = template.write_text("<p>{{ said }}</p>")
        ...     render_page(template, {"said": "1 < 2"})
        '<p>1 &lt; 2</p>'
    """
    import jinja2  # no picture needs it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(values)
