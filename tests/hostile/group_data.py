"""Broken data files and folders, as a user's `data.root`, and as a file for `predict`."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from guard import MARKER, Call, Case
from PIL import Image, features

from nvsubq.data import ImageFolder, NiftiFolder

SHAPE = (8, 8, 8)


def fresh(root: Path) -> Path:
    """The first case runs twice."""
    shutil.rmtree(root, ignore_errors=True)
    return root


def images(root: Path) -> Path:
    """A folder in order: two classes, four images each."""
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def volumes(root: Path) -> Path:
    """A folder in order: four volumes with labels."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
        for i in range(4):
            data = rng.integers(0, 2, SHAPE, dtype=np.uint8) if kind == "labels" else rng.random(SHAPE)
            nifti(root / kind / f"sub-{i}.nii.gz", np.asarray(data, np.float32))
    return root


def nifti(path: Path, data: np.ndarray, affine: Any = None) -> None:
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine), path)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *, bits: int = 8, colour: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def zeros(count: int) -> bytes:
    """That many zeros, compressed without ever being there."""
    packer = zlib.compressobj(9)
    block = bytes(2**20)
    return b"".join(packer.compress(block) for _ in range(count // 2**20)) + packer.flush()


def grey(side: int) -> bytes:
    """A black image of 16 bits, complete and small: 0.16 MB for 9000 x 9000."""
    return png(side, side, zeros(2 * side * side + side + 2**20), bits=16, colour=0)


def icon(image: bytes) -> bytes:
    """Says that it is 16 x 16, and holds another image."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(image), 22) + image


def saved(form: str, old: bytes | int, new: bytes) -> bytes:
    """A small image in a format of Pillow's; bytes of its head, or those at a place, are others."""
    memory = io.BytesIO()
    Image.new("RGB", (12, 12)).save(memory, form)
    content = memory.getvalue()
    if isinstance(old, int):
        return content[:old] + new + content[old + len(new) :]
    return content.replace(old, new, 1)


def gzip_zeros(head: bytes, count: int) -> bytes:
    """A file of `head` and that many zeros: one block of them, repeated as it is."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * (count // 2**20)


def header(shape: tuple[int, ...], **fields: Any) -> bytes:
    """348 bytes of NIfTI header, and the 4 after it, with any field set to anything."""
    found = nibabel.Nifti1Header()
    found.set_data_dtype(np.float32)
    raw = found.structarr
    raw["dim"][0] = len(shape)
    raw["dim"][1 : len(shape) + 1] = shape
    raw["vox_offset"], raw["magic"] = 352, b"n+1"
    raw["sform_code"] = 1
    for i, axis in enumerate("xyz"):
        raw[f"srow_{axis}"][i] = 1
    for name, value in fields.items():
        raw[name] = value
    return raw.tobytes() + b"\x00" * 4


Spoil = Callable[[Path], Any]

IMAGES: dict[str, Spoil] = {
    "empty file": lambda f: f.write_bytes(b""),
    "cut in half": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "cut in its header": lambda f: f.write_bytes(f.read_bytes()[:12]),
    "wrong magic": lambda f: f.write_bytes(b"XXXX" + f.read_bytes()[4:]),
    "text": lambda f: f.write_text("not an image"),
    "zeros": lambda f: f.write_bytes(bytes(1000)),
    "random bytes": lambda f: f.write_bytes(np.random.default_rng(1).bytes(5000)),
    "flipped bits": lambda f: f.write_bytes(
        bytes(b ^ 8 if i > 60 else b for i, b in enumerate(f.read_bytes()))
    ),
    "pickle": lambda f: f.write_bytes(f"cos\nsystem\n(S'touch {MARKER}'\ntR.".encode()),
    "size zero": lambda f: f.write_bytes(png(0, 12, zlib.compress(b""))),
    "size beyond all": lambda f: f.write_bytes(png(2**31 - 1, 2**31 - 1, zlib.compress(b""))),
    "bomb of pixels": lambda f: f.write_bytes(png(40_000, 40_000, zeros(2**24))),
    "bomb of grey, below Pillow's limit": lambda f: f.write_bytes(grey(9_000)),
    "bomb of grey, at Pillow's limit": lambda f: f.write_bytes(grey(13_300)),
    "bomb of grey in an icon": lambda f: f.write_bytes(icon(grey(9_000))),
    "damaged head of DDS": lambda f: f.write_bytes(saved("DDS", 80, b"\0")),
    "damaged head of IM": lambda f: f.write_bytes(saved("IM", b"12*12", b"12*12*3")),
    **(
        {"damaged head of AVIF": lambda f: f.write_bytes(saved("AVIF", b"iinf", b"iixf"))}
        if features.check("avif")
        else {}
    ),
    "bomb of a text chunk": lambda f: f.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 12, 12, 8, 2, 0, 0, 0))
        + chunk(b"zTXt", b"k\x00\x00" + zeros(2**28))
        + chunk(b"IEND", b"")
    ),
    "pixels missing": lambda f: f.write_bytes(png(12, 12, zlib.compress(b"\x00"))),
    "svg with a reference": lambda f: f.write_text('<svg><image href="file:///etc/passwd"/></svg>'),
    "postscript": lambda f: f.write_text(
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({MARKER}) (w) file\n"
    ),
    "symlink to itself": lambda f: (f.unlink(), f.symlink_to(f)),
    "symlink to nothing": lambda f: (f.unlink(), f.symlink_to("nothing")),
    "symlink to a device": lambda f: (f.unlink(), f.symlink_to("/dev/zero")),
    "named pipe": lambda f: (f.unlink(), os.mkfifo(f)),
    "folder named as a file": lambda f: (f.unlink(), f.mkdir()),
    "loop of folders": lambda f: (f.unlink(), f.symlink_to(f.parent.parent)),
    "one class only": lambda f: shutil.rmtree(f.parent),
    "class of two images": lambda f: [p.unlink() for p in list(f.parent.iterdir())[:2]],
    "class without images": lambda f: [p.unlink() for p in f.parent.iterdir()],
    "stray file beside the classes": lambda f: (f.parent.parent / "notes.txt").write_text(""),
    "half a split": lambda f: (f.parent.parent / "train").mkdir(),
}

VOLUMES: dict[str, Spoil] = {
    "empty file": lambda f: f.write_bytes(b""),
    "cut in half": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "wrong magic of gzip": lambda f: f.write_bytes(b"XX" + f.read_bytes()[2:]),
    "wrong magic of nifti": lambda f: f.write_bytes(gzip.compress(header(SHAPE, magic=b"abc") + bytes(2048))),
    "text in gzip": lambda f: f.write_bytes(gzip.compress(b"not a volume")),
    "flipped bits": lambda f: f.write_bytes(
        bytes(b ^ 8 if i > 90 else b for i, b in enumerate(f.read_bytes()))
    ),
    "nan voxels": lambda f: nifti(f, np.full(SHAPE, np.nan, np.float32)),
    "one infinite voxel": lambda f: nifti(f, np.where(np.indices(SHAPE).sum(0) == 0, np.inf, 1.0)),
    "size zero": lambda f: f.write_bytes(gzip.compress(header((8, 0, 8)))),
    "negative size": lambda f: f.write_bytes(gzip.compress(header((8, -8, 8)) + bytes(2048))),
    "size beyond all": lambda f: f.write_bytes(gzip.compress(header((32767, 32767, 32767)))),
    "two axes": lambda f: nifti(f, np.ones((8, 8), np.float32)),
    "seven axes": lambda f: nifti(f, np.ones((2,) * 7, np.float32)),
    "other grid": lambda f: nifti(f, np.ones((8, 8, 9), np.float32)),
    "voxels missing": lambda f: f.write_bytes(gzip.compress(header(SHAPE) + bytes(100))),
    "unknown type of voxels": lambda f: f.write_bytes(
        gzip.compress(header(SHAPE, datatype=999) + bytes(2048))
    ),
    "voxels that are colours": lambda f: f.write_bytes(
        gzip.compress(header(SHAPE, datatype=128, bitpix=24) + bytes(1536))
    ),
    "offset beyond the end": lambda f: f.write_bytes(
        gzip.compress(header(SHAPE, vox_offset=1e9) + bytes(2048))
    ),
    "offset is nan": lambda f: f.write_bytes(gzip.compress(header(SHAPE, vox_offset=np.nan) + bytes(2048))),
    "affine of zeros": lambda f: f.write_bytes(gzip.compress(header(SHAPE, srow_x=0) + bytes(2048))),
    "affine of nan": lambda f: f.write_bytes(gzip.compress(header(SHAPE, srow_y=np.nan) + bytes(2048))),
    "bomb of gzip": lambda f: f.write_bytes(gzip_zeros(header((1500, 1500, 1500)), 2**30)),
    "symlink to itself": lambda f: (f.unlink(), f.symlink_to(f)),
    "symlink to nothing": lambda f: (f.unlink(), f.symlink_to("nothing")),
    "named pipe": lambda f: (f.unlink(), os.mkfifo(f)),
    "pickle": lambda f: f.write_bytes(f"cos\nsystem\n(S'touch {MARKER}'\ntR.".encode()),
    "other format": lambda f: f.write_bytes(b"MINC" * 100),
    "label without image": lambda f: f.unlink(),
}

LABELS: dict[str, Spoil] = {
    "label of 300": lambda f: nifti(f, np.full(SHAPE, 300, np.float32)),
    "negative label": lambda f: nifti(f, np.full(SHAPE, -1, np.float32)),
    "label of a half": lambda f: nifti(f, np.full(SHAPE, 0.5, np.float32)),
    "nan label": lambda f: nifti(f, np.full(SHAPE, np.nan, np.float32)),
    "labels turned": lambda f: nifti(f, np.ones(SHAPE, np.float32), np.diag([-1.0, 1, 1, 1])),
}


def read_images(root: Path, cache: bool) -> None:
    data = ImageFolder(root, size=8, cache=cache)
    data.setup()
    for split in ("train", "val", "test"):
        dataset: Any = data.dataset(split)
        for i in range(len(dataset)):
            dataset[i]


def cases(folder: Path) -> list[Case]:
    """Each folder is in order but for one file; what is asked for is the data of a training."""

    def of_images(name: str, spoil: Spoil, cache: bool) -> Callable[[], Call]:
        def prepare() -> Call:
            root = images(fresh(folder / f"images {name} {cache}"))
            spoil(root / "dogs" / "2.png")
            return lambda: read_images(root, cache)

        return prepare

    def of_volumes(name: str, kind: str, spoil: Spoil) -> Callable[[], Call]:
        def prepare() -> Call:
            root = volumes(fresh(folder / f"volumes {kind} {name}"))
            spoil(root / kind / "sub-2.nii.gz")
            return lambda: NiftiFolder(root, crop_size=4, crops_per_epoch=4).setup()

        return prepare

    return [
        *((f"image: {name}", of_images(name, spoil, True)) for name, spoil in IMAGES.items()),
        *((f"image, no cache: {name}", of_images(name, spoil, False)) for name, spoil in IMAGES.items()),
        *((f"volume: {name}", of_volumes(name, "images", spoil)) for name, spoil in VOLUMES.items()),
        *((f"labels: {name}", of_volumes(name, "labels", spoil)) for name, spoil in LABELS.items()),
    ]
