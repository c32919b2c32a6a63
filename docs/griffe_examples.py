"""Docstrings as mkdocstrings reads them: `Example:` is its `Examples:`, `a, b: text` are two arguments."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_SHARED = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:,\s+\w+)+):(?=\s)", re.MULTILINE)


class Examples(Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is None:
            return
        text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
        obj.docstring.value = _SHARED.sub(_one_each, text)


def _one_each(match: re.Match[str]) -> str:
    indent, names = match["indent"], re.split(r",\s+", match["names"])
    return "".join(f"{indent}{name}: as `{names[-1]}`.\n" for name in names[:-1]) + f"{indent}{names[-1]}:"
