"""Runs the blocks of one page in their order: in one folder, Python in one namespace."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from blocks import Block, train_arguments
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from nvsubq import from_yaml, instantiate
from nvsubq.cli.main import main
from nvsubq.cli.paths import config_dir
from nvsubq.cli.sweep import jobs
from nvsubq.lazy_config import targets
from nvsubq.training.build import check_config

QUICK = ("threads=1",)
"""Of every training here: so small that threads would wait for each other."""


class Page:
    """What the blocks of a page share.

    Args:
        folder: an empty one, the working directory while they run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.files: list[str] = []

    def run(self, block: Block) -> None:
        """Runs or checks one block; what goes wrong names the block."""
        try:
            getattr(self, f"_{block.language}")(block)
        except Exception as error:
            error.add_note(f"in {block}")
            raise

    def _write(self, block: Block) -> None:
        path = self.folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        self.files.append(block.title)

    def _python(self, block: Block) -> None:
        code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
        if block.title:
            self._write(block)  # a module, which a later block imports
        elif not block.reason:
            exec(code, self.names)

    def _yaml(self, block: Block) -> None:
        config = from_yaml(block.text)
        if block.title:
            self._write(block)
        else:
            instantiate(config)

    def _text(self, block: Block) -> None:
        """A command after a dollar, and what it shows; anything else is a picture."""
        first, *shown = block.text.rstrip().splitlines()
        if not first.startswith("$ "):
            assert not re.search(r"^nvsubq ", block.text, re.M), "a command belongs into ```bash"
            return
        code, said = self._called(shlex.split(first)[1:])
        # The README folds long lines.
        assert " ".join(shown).split() == said.split(), f"{first}: {said}"
        assert code == int("error:" in said)

    def _bash(self, block: Block) -> None:
        for command in block.commands:
            if block.reason:
                self.check(command)
            else:
                self._execute(command, block.added)

    def _execute(self, command: list[str], added: list[str]) -> None:
        if train_arguments(command) is not None and not {"--cfg", "--help"} & set(command):
            command = [*command, *added, *QUICK]
        code, said = self._called(command)
        assert code == 0, f"{shlex.join(command)}: {said}"

    def _called(self, command: list[str]) -> tuple[int, str]:
        """Exit code, and what was written: errors if there are some, else the output."""
        env = {}
        while "=" in command[0]:
            variable, _, env[variable] = command[0].partition("=")
            command = command[1:]
        assert command[0] == "nvsubq", f"{shlex.join(command)} is not run by this test: say so in a mark"
        out, errors = io.StringIO(), io.StringIO()
        with mock.patch.dict(os.environ, env), redirect_stdout(out), redirect_stderr(errors):
            targets._from_environment.cache_clear()  # a process reads it once; this one stands for many
            code = main(command[1:])
        targets._from_environment.cache_clear()
        return code, errors.getvalue() if code else out.getvalue()

    def check(self, command: list[str]) -> None:
        """Composes and checks every job of a training; parses another command of ours."""
        arguments = train_arguments(command)
        if arguments is None:
            if command[0] == "nvsubq":
                parser = argparse.ArgumentParser()
                importlib.import_module(f"nvsubq.cli.{command[1]}").add_parser(parser.add_subparsers())
                parser.parse_args(command[1:])
            return
        overrides = [word for word in arguments if not word.startswith("-")]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            assert GlobalHydra.instance().is_initialized()
            for job in jobs(overrides):
                config = compose("train", overrides=job)
                assert isinstance(config, DictConfig)
                check_config(config)
