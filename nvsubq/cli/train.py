"""`nvsubq train`: Hydra composes the config, and `nvsubq.training.train` does the rest."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvsubq.cli import errors
from nvsubq.cli.paths import PRIMARY, config_dir


def run(arguments: Sequence[str]) -> int:
    """Composes and trains; with ``-m``, every job of a sweep.

    Args:
        arguments: Hydra's: overrides, ``-m``, ``--cfg job``, ``--config-dir``, ``--help``.

    Returns:
        0, or 1 if anything went wrong.
    """
    import hydra
    from hydra.errors import HydraException

    from nvsubq.cli import hydra_section, sweep

    job = _Job(list(sys.argv))
    compose = hydra.main(
        version_base="1.3", config_path=str(config_dir()), config_name=PRIMARY.removesuffix(".yaml")
    )
    sweep.current = sweep.runs = None
    complete = False
    try:
        with hydra_section.guarded(), _arguments_of_hydra(_flags_first(arguments)):
            compose(job)()
        complete = not job.failed
    except HydraException as error:
        return _composition_failed(error, arguments)
    except sweep.SweepRefused as refused:
        return _composition_failed(refused.error, _arguments_of_job(arguments, refused.overrides))
    except OSError as error:  # Hydra makes the folders
        if sweep.runs is not None:
            errors.advise_other_place(error, sweep.runs)
        return errors.report(error)
    finally:
        if sweep.current is not None:
            sweep.current.finish(complete=complete)
    if job.failed and sweep.current is not None:
        sys.stderr.write(f"error: {len(job.failed)} of {job.calls} jobs failed: {', '.join(job.failed)}\n")
    return 1 if job.failed else 0


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """``-m`` before the overrides: Hydra's parser refuses it between two of them."""
    flags = [a for a in arguments if a in ("-m", "--multirun")]
    return [*flags, *(a for a in arguments if a not in flags)]


def _arguments_of_job(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The arguments with one job's choices in place of the sweep's."""
    keys = {override.partition("=")[0] for override in overrides}
    return [*(a for a in arguments if a.partition("=")[0] not in keys), *overrides]


def _composition_failed(error: Exception, arguments: Sequence[str]) -> int:
    from nvsubq.cli import unknown_keys

    text = unknown_keys.explain(error, arguments)
    if text is None or errors.wants_traceback():
        return errors.report(error)
    sys.stderr.write(f"error: {text}\n")
    return 1


class _Job:
    """What Hydra calls, once or for every job of a sweep; it keeps which failed."""

    def __init__(self, argv: list[str]) -> None:
        self.argv, self.calls = argv, 0
        self.failed: list[str] = []
        # Hydra reads where a task function comes from.
        self.__name__, self.__qualname__, self.__module__ = "train", "train", __name__

    def __call__(self, config: Any) -> float | None:
        from hydra.core.hydra_config import HydraConfig

        settings = HydraConfig.get()
        sweeping = _is_sweep(settings)
        here = "basic_launcher" in settings.launcher._target_
        # Lightning starts the other processes of DDP with the arguments of this one.
        sys.argv = self.argv
        self.calls += 1
        try:
            return self._train(config, settings)
        except KeyboardInterrupt:
            raise
        except Exception as error:
            errors.advise_other_place(error, Path(str(config.paths.runs)))
            if sweeping and not here:
                raise  # another machine's launcher must see that the job failed
            # A job of a sweep that fails must not end the others.
            self.failed.append(f"#{settings.job.num}" if sweeping else "train")
            errors.report(error, context=f"job {self.failed[-1]}" if sweeping else "")
            return None

    def _train(self, config: Any, settings: Any) -> float | None:
        folder = Path(settings.runtime.output_dir)
        try:
            _say("loading ...")
            from nvsubq.training.quiet import quiet_lightning
            from nvsubq.training.runner import train

            quiet_lightning()
            _say("")
            figures = _taken_over(config, settings, _shown(folder)) if _is_sweep(settings) else None
            if figures is None:
                figures = train(config, _shown(folder), command=list(settings.overrides.task))
        finally:
            from nvsubq.training.run_folder import remove_empty

            # Hydra has made it; a run that goes on with another, or is not the first process, left it empty.
            remove_empty(folder, Path(config.paths.runs))
        return figures["metrics"].get("val/accuracy", figures["metrics"].get("val/dice"))


def _is_sweep(settings: Any) -> bool:
    return settings.mode is not None and settings.mode.name == "MULTIRUN"


def _taken_over(config: Any, settings: Any, folder: Path) -> dict[str, Any] | None:
    """What a job of a sweep that is gone on with has already reached."""
    from nvsubq.cli.sweep_resume import finished_job

    figures = finished_job(Path(settings.sweep.dir), folder, config)
    if figures is not None:
        sys.stdout.write(f"done before: {figures['folder']}\n")
    return figures


def _say(text: str) -> None:
    """Shows `text` in a terminal until the next: importing Lightning takes seconds."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def _shown(folder: Path) -> Path:
    """A path below the working directory as a short one."""
    try:
        return folder.relative_to(Path.cwd())
    except ValueError:
        return folder


@contextmanager
def _arguments_of_hydra(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads `sys.argv`, and raises its errors instead of printing them when asked for full ones."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["nvsubq train", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
