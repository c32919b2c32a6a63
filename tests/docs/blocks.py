"""The fenced blocks of the README and of every page of the documentation, with what the tests may change.

A comment right before a block says how it is tested; without one it runs as it stands::

    <!-- test: with epochs=1 data=digits -->     these overrides are added to each `nvsubq train` in it
    <!-- test: not run: takes hours -->          its commands are parsed, their overrides composed and checked
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("python", "yaml", "bash", "text")

_BLOCK = re.compile(
    r"(?:<!-- test: (?P<mark>[^\n]*?) -->\n\s*)?^```(?P<info>[^\n]*)\n(?P<text>.*?)^```[ ]*$", re.M | re.S
)
_TITLE = re.compile(r'title="(?P<title>[^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        page: its file.
        line: of its first line.
        language: the first word after the fence.
        title: the file that it shows (``title="..."``), or "".
        mark: the test's comment before it, or "".
        text: what is between the fences.
    """

    page: Path
    line: int
    language: str
    title: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def added(self) -> list[str]:
        """Overrides that the mark adds to `nvsubq train`."""
        return shlex.split(self.mark.removeprefix("with ")) if self.mark.startswith("with ") else []

    @property
    def reason(self) -> str:
        """Why it is not run, or ""."""
        return self.mark.removeprefix("not run: ") if self.mark.startswith("not run: ") else ""

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a bash block; a line that ends with a backslash goes on."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        words = match["info"].split()
        title = _TITLE.search(match["info"])
        line = text.count("\n", 0, match.start("text")) + 1
        language, name = (words[0] if words else ""), (title["title"] if title else "")
        found.append(Block(page, line, language, name, match["mark"] or "", match["text"]))
    return found


def train_arguments(command: list[str]) -> list[str] | None:
    """What a command gives to `nvsubq train`, whatever launches it; None where it is another command."""
    for i, word in enumerate(command[:-1]):
        if command[i + 1] == "train" and (word.endswith("nvsubq") or word == "nvsubq.cli.main"):
            return command[i + 2 :]
    return None
