"""2-D images: the data set that serves them, and the decoding of image files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nvsubq.data.augment import RandomAffine
from nvsubq.data.errors import DataError
from nvsubq.data.sampling import Key, split_key

MAX_PIXELS = 64_000_000
"""Pixels of an image file; a file of some kilobytes can claim, and then take, gigabytes."""


class Images(Dataset):
    """Labelled images; an item depends on its `(epoch, index)` key alone.

    Args:
        pixels: `[N, C, H, W]` uint8, or the `N` files to decode on access.
        labels: `[N]` int64.
        size: `(H, W)`.
        channels: 1 (grey) or 3 (RGB).
        mean, std: of each channel, for pixels in [0, 1].
        affine: random map of training images; None leaves images as they are.
        seed: of the random map.
        flatten: serve `[C, H * W]` sequences (row-major).

    Example:
        >>> pixels, labels = torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64)
        >>> data = Images(pixels, labels, size=(8, 8))
        >>> data[0, 3][0].shape
        torch.Size([1, 8, 8])
    """

    def __init__(
        self,
        pixels: Tensor | Sequence[Path],
        labels: Tensor,
        *,
        size: tuple[int, int],
        channels: int = 1,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        affine: RandomAffine | None = None,
        seed: int = 0,
        flatten: bool = False,
    ) -> None:
        self.pixels, self.labels = pixels, labels
        self.size, self.channels = size, channels
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))
        self.affine, self.seed, self.flatten = affine, seed, flatten

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | Key) -> tuple[Tensor, Tensor]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | Key]) -> list[tuple[Tensor, Tensor]]:
        """All items of a batch at once: one warp of a batch costs a tenth of a warp for each item."""
        pairs = [split_key(key) for key in keys]
        indices = [index for _, index in pairs]
        if isinstance(self.pixels, Tensor):
            raw = self.pixels[indices]
        else:
            raw = torch.stack([decode_image(self.pixels[i], self.size, self.channels) for i in indices])
        images = raw.float() / 255
        if self.affine is not None:
            images = self.affine(images, seed=self.seed, keys=pairs)
        images = (images - self.mean) / self.std
        if self.flatten:
            images = images.flatten(2)
        return list(zip(images, self.labels[indices], strict=True))


def decode_image(path: Path, size: tuple[int, int] | None, channels: int) -> Tensor:
    """Decodes one file to uint8 `[C, H, W]`, resized to `size` (height, width; the aspect ratio is not kept).

    Any mode is accepted: the camera's rotation is applied, palettes and CMYK become RGB, transparent pixels
    lie on black, 16-bit grey is divided by 257.

    Args:
        path: the file.
        size: `(H, W)`; None keeps the file's own.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        DataError: the file is missing, is not an image that Pillow reads, or has more than `MAX_PIXELS`.
    """
    from PIL import Image, ImageOps

    with _opened(path) as opened:
        opened.load()
        _check_size(opened, path)  # again: an icon may hold another size than its header names
        image = _eight_bit(ImageOps.exif_transpose(opened), path)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        image = image.convert("L" if channels == 1 else "RGB")
        if size is not None and image.size != (size[1], size[0]):
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array[None] if channels == 1 else array.transpose(2, 0, 1).copy())


def image_shape(path: Path) -> tuple[int, int]:
    """Height and width of a file, from its header.

    Raises:
        DataError: as `decode_image`.
    """
    with _opened(path) as image:
        return image.height, image.width


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """What Pillow reads by itself: for PostScript it would start another program."""
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An image file; whatever goes wrong with it inside the block is a `DataError` that names it."""
    from PIL import Image, UnidentifiedImageError

    if path.exists() and not path.is_file():  # opening a pipe waits for ever
        raise DataError(f"{path} is not a file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
            image = Image.open(path, formats=_formats())
        with image:
            _check_size(image, path)
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} cannot be read as an image: not a format that Pillow reads.") from None
    except Exception as error:  # each of Pillow's decoders has its own
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read as an image: {reason}.") from error


def _check_size(image: Any, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{path} has {image.width} x {image.height} pixels; "
            f"an image may have up to {MAX_PIXELS:,}. Scale it down first."
        )


def _eight_bit(image: Any, path: Path) -> Any:
    """Grey images of more than 8 bits as 8 bits; Pillow's own conversion would clip them to white."""
    from PIL import Image

    if image.mode != "I" and image.mode != "F" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        scale, limit = 255.0, 1.0
    else:
        scale, limit = 1 / 257, 65535.0
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= limit):
        raise DataError(
            f"{path} holds grey values from {low:g} to {high:g}; mode {image.mode} allows 0 to {limit:g}."
        )
    grey = np.empty(values.shape, np.uint8)
    for row, source in zip(grey, values, strict=True):  # double precision, of a row at a time
        row[:] = np.round(source.astype(np.float64) * scale)
    return Image.fromarray(grey)
