"""Trains in forked processes that are killed, and compares what is left. A program of its own: it forks.

`python crash_driver.py FOLDER` writes the findings to standard output as one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from nvsubq.cli.paths import config_dir
from nvsubq.training.quiet import quiet_lightning
from nvsubq.training.runner import train

KILLS = 10
CONFIG = (
    "data=digits",
    "core=rglru",
    "model.dims=[8]",
    "model.depths=[1]",
    "model.drop_rate=0.2",
    "model.drop_path_rate=0.1",
    "epochs=4",
    "trainer.limit_train_batches=9",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.enable_progress_bar=false",
    "checkpoint.every_steps=2",
    "checkpoint.every_s=null",
    "checkpoint.monitor=train/loss",  # the mean of an epoch must survive as well
    "data.batch_size=16",
    "threads=1",
    "baselines=false",
    "report=false",
)


def child(folder: Path, extra: tuple[str, ...] = (), before: Callable[[], None] = lambda: None) -> int:
    """A process that trains in `folder`."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose("train", overrides=[*CONFIG, *extra, f"paths.runs={folder.parent}"])
        before()
        train(config, folder)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def warm_up(root: Path) -> None:
    """Imports, by a training, what each process would import again; one thread, as a fork takes but one."""
    torch.set_num_threads(1)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", overrides=[*CONFIG, "trainer.fast_dev_run=true", f"paths.runs={root}"])
    with contextlib.redirect_stdout(sys.stderr):
        train(config, root / "warm")


def finish(folder: Path, extra: tuple[str, ...] = ()) -> None:
    """Trains to the end."""
    _, status = os.waitpid(child(folder, extra), 0)
    if status:
        raise RuntimeError((folder.parent / f"{folder.name}.log").read_text())


def result(folder: Path) -> dict:
    """What must not depend on how often a run was killed."""
    found = {}
    for name in ("last", "best"):
        content = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        found[name] = [content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")]
        found[name] += [content["nvsubq"]["random"], content["epoch"], content["global_step"]]
        found[name].append(content["callbacks"]["Checkpoints"])
    figures = json.loads((folder / "metrics.json").read_text())
    times = ("epoch_s", "cells_per_s")
    found["metrics"] = {k: v for k, v in figures["metrics"].items() if k not in times}
    found["figures"] = [figures[key] for key in ("epochs", "steps", "best_epoch")]
    rows = (folder / "metrics.csv").read_text().splitlines()
    drop = [rows[0].split(",").index(name) for name in times]
    found["rows"] = [[v for i, v in enumerate(row.split(",")) if i not in drop] for row in rows]
    return found


def same(a: object, b: object) -> bool:
    """Equality, bit for bit, of nested containers with tensors in them."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def differences(a: dict, b: dict) -> list[str]:
    """Which parts of two results differ."""
    return [key for key in a if not same(a[key], b[key])]


def at_random_moments(root: Path, whole: dict, seconds: float, seed: int) -> dict:
    """Kills at moments drawn over the time that a training takes, until `KILLS` have been hit."""
    draw = random.Random(seed)
    kills, runs, wrong, steps = 0, 0, [], []
    while kills < KILLS:
        folder = root / f"random_{runs}"
        runs += 1
        while True:
            process = child(folder)
            if kills < KILLS:
                time.sleep(draw.uniform(0.1, seconds))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            if os.WIFSIGNALED(status):
                kills += 1
                steps.append(len(list(folder.glob("checkpoints/*.ckpt"))))
                continue
            if status:
                raise RuntimeError((root / f"{folder.name}.log").read_text())
            break
        wrong += differences(whole, result(folder))
    return {"kills": kills, "runs": runs, "wrong": wrong, "checkpoints": steps, "seed": seed}


def at_the_nth_call(name: str, number: int) -> Callable[[], None]:
    """Kills this process right before the `number`th call of `os.<name>`, then right after it."""

    def install() -> None:
        real, count = getattr(os, name), [0]

        def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
            count[0] += 1
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(os, name, counted)

    return install


def while_writing(root: Path, whole: dict) -> dict:
    """One run, killed at each of the steps by which files replace each other."""
    folder, killed = root / "writing", 0
    for number in range(4, 24):
        name = "fsync" if number % 2 else "replace"
        process = child(folder, before=at_the_nth_call(name, number))
        _, status = os.waitpid(process, 0)
        killed += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):
            if status:
                raise RuntimeError((root / "writing.log").read_text())
            break
    else:
        finish(folder)
    return {"kills": killed, "wrong": differences(whole, result(folder))}


def broken_last(root: Path, whole: dict) -> dict:
    """A run that is killed and whose newest checkpoint is then cut, or has a bit flipped."""
    found: dict = {}
    for damage in ("cut", "flipped"):
        folder = root / damage
        os.waitpid(child(folder, before=at_the_nth_call("replace", 11)), 0)
        file = folder / "checkpoints" / "last.ckpt"
        content = bytearray(file.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 4
        file.unlink()  # it may be a hard link of another file
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
        finish(folder)
        log = (root / f"{damage}.log").read_text()
        found[damage] = {
            "wrong": differences(whole, result(folder)),
            "named": [line for line in log.splitlines() if line.startswith("warning: checkpoint (=")],
        }
    return found


def variants(root: Path) -> dict:
    """Other ways to count: accumulated gradients, validation within an epoch, an end by steps, workers."""
    found = {}
    for name, extra in {
        "accumulated, with a worker": (
            "trainer.accumulate_grad_batches=5",
            "checkpoint.every_steps=1",
            "data.num_workers=1",
        ),
        "validated within, ended by steps": (
            "trainer.val_check_interval=3",
            "checkpoint.monitor=val/loss",
            "trainer.max_steps=25",
            "trainer.max_epochs=-1",
        ),
    }.items():
        finish(root / f"{name} whole", extra)
        folder = root / name
        for number in (15, 9):
            os.waitpid(child(folder, extra, before=at_the_nth_call("replace", number)), 0)
        if not (folder / ".unfinished").is_file():
            raise RuntimeError(f"{name}: no kill has hit.")
        finish(folder, extra)
        found[name] = differences(result(root / f"{name} whole"), result(folder))
    return found


def main(root: Path, seed: int) -> dict:
    """All of it."""
    quiet_lightning()
    warm_up(root)
    start = time.perf_counter()
    finish(root / "whole")
    seconds = time.perf_counter() - start
    whole = result(root / "whole")
    finish(root / "again")
    return {
        "seconds": seconds,
        "undisturbed": differences(whole, result(root / "again")),
        "random": at_random_moments(root, whole, seconds, seed),
        "writing": while_writing(root, whole),
        "broken": broken_last(root, whole),
        "variants": variants(root),
        "all_seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
