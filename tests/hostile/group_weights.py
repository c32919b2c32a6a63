"""Checkpoints and pretrained folders with pickles inside, bombs, and damage."""

from __future__ import annotations

import functools
import io
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from guard import MARKER, Call, Case

from nvsubq import NDBackbone
from nvsubq.models import from_pretrained
from nvsubq.training.load import read_checkpoint


class Payload:
    """Unpickled, it runs a command."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {MARKER}",)


class Import:
    """Unpickled, it evaluates an expression."""

    def __reduce__(self) -> Any:
        return eval, (f"__import__('pathlib').Path('{MARKER}').touch()",)


def saved(content: Any, **options: Any) -> bytes:
    memory = io.BytesIO()
    torch.save(content, memory, **options)
    return memory.getvalue()


def rezipped(content: bytes, compression: int, extra: dict[str, bytes] | None = None) -> bytes:
    """A checkpoint whose container is written anew."""
    memory = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(memory, "w", compression) as new:
        for part in old.infolist():
            new.writestr(part.filename, (extra or {}).pop(part.filename, old.read(part)))
        for name, data in (extra or {}).items():
            new.writestr(name, data)
    return memory.getvalue()


GOOD = {"state_dict": {"w": torch.zeros(4)}, "epoch": 0}

CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    "payload": lambda: saved({"state_dict": {}, "x": Payload()}),
    "payload in the weights": lambda: saved({"state_dict": {"w": Import()}}),
    "payload in the old format": lambda: saved(
        {"state_dict": {}, "x": Payload()}, _use_new_zipfile_serialization=False
    ),
    "plain pickle": lambda: pickle.dumps({"state_dict": {}, "x": Payload()}),
    "protocol 0": lambda: pickle.dumps(Payload(), protocol=0),
    "pickled module": lambda: saved({"state_dict": torch.nn.Linear(2, 2)}),
    "pickled function": lambda: saved({"state_dict": os.system}),
    "payload put into the container": lambda: rezipped(
        saved(GOOD), zipfile.ZIP_STORED, {"archive/data.pkl": pickle.dumps(Payload(), protocol=2)}
    ),
    "compressed bomb": lambda: rezipped(saved(GOOD), zipfile.ZIP_DEFLATED, {"archive/data/0": bytes(2**29)}),
    "no weights": lambda: saved({"epoch": 0}),
    "a list": lambda: saved([1, 2]),
    "weights are a word": lambda: saved({"state_dict": "none"}),
    "empty": lambda: b"",
    "text": lambda: b"not a checkpoint",
    "cut": lambda: saved(GOOD)[:-100],
    "container without data": lambda: rezipped(saved({}), zipfile.ZIP_STORED, {"archive/data.pkl": b""}),
}


def tensors(header: bytes, length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    return struct.pack("<Q", len(header) if length is None else length) + header


WEIGHTS: dict[str, Callable[[], bytes]] = {
    "pickle": lambda: saved({"state_dict": {}, "x": Payload()}),
    "plain pickle": lambda: pickle.dumps(Payload()),
    "empty": lambda: b"",
    "header longer than the file": lambda: tensors(b"{}", 2**62),
    "header is no JSON": lambda: tensors(b"not JSON"),
    "offsets beyond the end": lambda: tensors(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "shape beyond all": lambda: tensors(
        b'{"w":{"dtype":"F32","shape":[9999999999,9999999999],"data_offsets":[0,16]}}' + bytes(16)
    ),
    "weights of another model": lambda: (
        tensors(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}') + bytes(16)
    ),
}

CONFIGS = {
    "target": f"_target_: os.system\ncommand: touch {MARKER}",
    "python tag": f"!!python/object/apply:os.system ['touch {MARKER}']",
    "no module": "_target_: nvsubq.scan_order\nname: hilbert",
    "unpickler": "_target_: lightning.LightningModule.load_from_checkpoint\ncheckpoint_path: x",
    "bomb": "a: &a [x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 8)}]\n" for i in range(9)),
}


def cases(folder: Path) -> list[Case]:
    """A good model lies in `folder`; each case spoils one of its files, or offers a pickle in its place."""
    from nvsubq import NDMixer
    from nvsubq.cores import RGLRU

    mixer = functools.partial(NDMixer, RGLRU)
    good = folder / "good"
    NDBackbone(1, 1, 3, depths=(1,), dims=(8,), mixer=mixer).save_pretrained(good)
    shutil.rmtree(folder / "models", ignore_errors=True)

    def checkpoint(name: str, make: Callable[[], bytes]) -> Callable[[], Call]:
        def prepare() -> Call:
            file = folder / f"{name}.ckpt"
            file.write_bytes(make())
            return functools.partial(read_checkpoint, file)

        return prepare

    def model(name: str, spoil: Callable[[Path], Any]) -> Callable[[], Call]:
        def prepare() -> Call:
            place = folder / "models" / name
            shutil.copytree(good, place, dirs_exist_ok=True)
            spoil(place)
            return functools.partial(from_pretrained, place)

        return prepare

    def weights(make: Callable[[], bytes]) -> Callable[[Path], Any]:
        return lambda place: (place / "model.safetensors").write_bytes(make())

    def renamed(name: str) -> Callable[[Path], Any]:
        """The folder offers a pickle alone."""

        def spoil(place: Path) -> None:
            (place / "model.safetensors").unlink()
            (place / name).write_bytes(CHECKPOINTS["payload"]())

        return spoil

    return [
        *((f"checkpoint: {name}", checkpoint(name, make)) for name, make in CHECKPOINTS.items()),
        *((f"weights: {name}", model(f"w {name}", weights(make))) for name, make in WEIGHTS.items()),
        *(
            (f"config: {name}", model(f"c {name}", lambda p, t=text: (p / "config.yaml").write_text(t)))  # type: ignore[misc]
            for name, text in CONFIGS.items()
        ),
        *(
            (f"folder with {name}", model(f"f {name}", renamed(name)))
            for name in ("pytorch_model.bin", "model.pt", "model.pkl", "checkpoint.ckpt")
        ),
    ]
