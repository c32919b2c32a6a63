"""Every code block of the README and of the documentation runs, or says why not and is checked."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from blocks import LANGUAGES, PAGES, ROOT, blocks_of, train_arguments
from page import Page

import nvsubq
from nvsubq.lazy_config import targets

MARK = re.compile(r"(with \S.*|not run: \S.*|)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nvsubq"])
    monkeypatch.setattr(targets, "_policy", targets._policy)
    for variable in ("NVSUBQ_RUNS", "NVSUBQ_TRACEBACK", "NVSUBQ_BACKEND"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    before = set(sys.modules)
    yield Page(tmp_path)
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[module]


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PAGES if blocks_of(p)], ids=name)
def test_blocks_run(path: Path, page: Page) -> None:
    blocks = blocks_of(path)
    if path.name == "README.md":  # its commands run as for a new user, in test_readme.py
        blocks = [block for block in blocks if block.language == "python"]
    for block in blocks:
        page.run(block)
    for file in page.files:
        uses = sum(Path(file).stem in block.text for block in blocks)
        assert uses, f"{name(path)} shows {file} and never uses it"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_no_block_escapes(path: Path) -> None:
    """Each fence is found, in a language that is tested, and each mark is understood."""
    text = path.read_text()
    blocks = blocks_of(path)
    assert text.count("```") == 2 * len(blocks)
    assert text.count("<!-- test:") == sum(bool(block.mark) for block in blocks)
    for block in blocks:
        assert block.language in LANGUAGES, block
        assert MARK.fullmatch(block.mark), f"{block}: {block.mark!r}"
        if block.added:
            assert any(train_arguments(command) is not None for command in block.commands), block


def test_api_pages_show_every_public_name() -> None:
    shown = set(re.findall(r"^::: (\S+)$", "\n".join(p.read_text() for p in PAGES), re.MULTILINE))
    last = {path.rsplit(".", 1)[-1] for path in shown}
    from nvsubq import cores, data, lazy_config, models, nd, ops, parallel, training, viz

    for module in (nvsubq, cores, data, lazy_config, models, nd, ops, parallel, training, viz):
        missing = set(module.__all__) - last - {"__version__"}
        assert not missing, f"docs/api lacks {sorted(missing)} of {module.__name__}"
