"""`nvsubq COMMAND ...`: picks the command, imports that one alone, and turns errors into one message."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from nvsubq.cli import errors

COMMANDS = {
    "train": "train a model; takes Hydra overrides, such as core=s5 trainer.max_epochs=2",
    "evaluate": "score a run's checkpoint on its test split",
    "predict": "apply a run's model to files",
    "study": "run a study: many trainings, one table with error bars",
    "compare": "put runs side by side in one table",
    "bench": "time ops and cores beside the portable path and other packages",
    "doctor": "say what is installed, which backends are active, and why others are not",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        argv: the arguments after ``nvsubq``; those of the process without it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _spin_less()
    _import_from_here()
    try:
        return _dispatch(arguments)
    except SystemExit as error:  # argparse, Hydra's --help, Lightning after Ctrl-C
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        sys.stderr.write(f"{error.code}\n")
        return 1
    except BrokenPipeError:
        # The reader (head, less) left; Python would complain again while it flushes at exit.
        sys.stderr.close()
        return 1
    except BaseException as error:
        return errors.report(error)


def _spin_less() -> None:
    """Lets the threads of torch's OpenMP sleep sooner after a loop, unless the user has said how they wait.

    GNU's spin for milliseconds by default, on cores that the native kernels' own threads could use: a
    training step on two cores takes about an eighth longer. It reads its settings when torch is loaded.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _import_from_here() -> None:
    """Lets configs name modules of the user's own, which lie where the command is called.

    Behind everything else, so that no file there takes the place of an installed package.
    """
    with contextlib.suppress(FileNotFoundError):  # the folder has been removed
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())


def _check_allow_list() -> None:
    """Refuses a wrong entry in the variable before each node of a config complains of it."""
    if os.environ.get("NVSUBQ_ALLOW_TARGETS"):
        from nvsubq.lazy_config import targets

        targets.policy()


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else None
    if name in COMMANDS:
        _check_allow_list()
    if name == "train":
        # Hydra has its own parser, --help included.
        from nvsubq.cli import train

        return train.run(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="nvsubq", description="N-dimensional mixers from linear-recurrent cores.", allow_abbrev=False
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    command = None
    for known, text in COMMANDS.items():
        if known == name:
            command = importlib.import_module(f"nvsubq.cli.{known}")
            command.add_parser(subparsers)
        else:
            subparsers.add_parser(known, help=text, add_help=False)
    parsed = parser.parse_args(arguments)
    if parsed.version:
        from importlib.metadata import version

        print(version("nvsubq"))
        return 0
    if command is None:
        parser.print_help()
        return 0 if not arguments else 2
    return int(command.run(parsed))


if __name__ == "__main__":
    sys.exit(main())
