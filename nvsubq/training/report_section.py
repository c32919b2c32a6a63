"""What sections of a report are made of."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Picture:
    """An image of the page: its data URI, what it shows in words, its width, and a line above it."""

    uri: str
    alt: str
    width: int = 960
    caption: str = ""


@dataclass
class Section:
    """A part of the page: pictures, and per-class rows `(name, count, value, share in percent)`.

    Rows stand beside the one picture with `beside`; pictures stand beside each other, where they fit, with
    `flowing`.
    """

    title: str
    text: str = ""
    pictures: list[Picture] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    rows: list[tuple[str, str, str, float]] = field(default_factory=list)
    keys: list[tuple[str, str]] = field(default_factory=list)
    beside: bool = False
    flowing: bool = False
