"""Decoding of image files: every mode to the same pixels, and no file takes more than it may."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nvsubq.data import DataError
from nvsubq.data.images import decode_image, image_shape


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_decoding_of_every_mode(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png")
    if mode == "I;16":
        Image.fromarray(np.full((5, 4), 65535, np.uint16)).save(path)
    else:
        Image.new("RGB", (4, 5), (255, 255, 255)).convert(mode).save(path)
    for channels in (1, 3):
        pixels = decode_image(path, None, channels)
        assert (pixels.shape, pixels.dtype) == ((channels, 5, 4), torch.uint8)
        assert (pixels == 255).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(path)
    assert decode_image(path, None, 1).flatten().tolist() == [0, 100, 255]


def test_floats_outside_of_the_unit_range_are_refused(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(path)
    assert decode_image(path, None, 1).flatten().tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.0, 7.5]], np.float32)).save(path)
    with pytest.raises(DataError, match=r"x\.tif holds grey values from 0 to 7\.5; mode F allows 0 to 1\."):
        decode_image(path, None, 1)


def test_every_grey_value_of_sixteen_bits(tmp_path):
    path = tmp_path / "x.png"
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(path)
    assert np.array_equal(decode_image(path, None, 1)[0].numpy(), np.round(values / 257).astype(np.uint8))


def test_too_many_pixels(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    Image.new("L", (6, 5)).save(path)
    monkeypatch.setattr("nvsubq.data.images.MAX_PIXELS", 30)
    assert image_shape(path) == (5, 6)
    monkeypatch.setattr("nvsubq.data.images.MAX_PIXELS", 29)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("the header is enough"))
    text = r"x\.png has 6 x 5 pixels; an image may have up to 29\. Scale it down first\."
    for read in (image_shape, lambda path: decode_image(path, (2, 2), 1)):
        with pytest.raises(DataError, match=text):
            read(path)


def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    Image.new("L", (6, 5)).save(path)

    def load(self):
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(DataError, match=r"x\.png cannot be read as an image: MemoryError\."):
        decode_image(path, None, 1)


def test_transparent_pixels_lie_on_black(tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGBA", (2, 2), (255, 200, 100, 0)).save(path)
    assert (decode_image(path, None, 3) == 0).all()


def test_rotation_of_the_camera_is_applied(tmp_path):
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (6, 3)).save(path, exif=exif)
    assert decode_image(path, None, 1).shape == (1, 6, 3)
