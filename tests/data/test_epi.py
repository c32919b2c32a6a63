"""EPI: parts of a 4-D scan, their split and their labels."""

import numpy as np
import pytest
import torch

from nvsubq.data import EPI, DataError
from nvsubq.data.epi import PARTS, load_scan


def test_parts_and_labels():
    data = EPI(batch_size=5, crop_size=[8, 16, 3, 2], crops_per_epoch=8)
    fields, labels = next(iter(data.train_dataloader()))
    assert fields.shape == (5, 1, 8, 16, 3, 2)
    assert labels.dtype == torch.int64
    assert data.describe()["sizes"] == {"train": 8, "val": 2, "test": 2}
    assert abs(float(fields.mean())) < 1.5


def test_back_to_front_is_what_the_label_says():
    """With parts as large as the validation slab, the field is the slab itself, one way or the other."""
    data = EPI(crop_size=[128, 96, 4, 2], crops_per_epoch=64)
    begin, end = PARTS["val"]
    slab = (load_scan()[:, :, begin:end].astype(np.float32) - data.mean) / data.std
    seen = set()
    for field, label in (data.dataset("val")[i] for i in range(16)):
        expected = slab[:, ::-1] if label else slab
        assert np.allclose(field[0].numpy(), expected, atol=1e-5)
        seen.add(int(label))
    assert seen == {0, 1}


def test_draws_follow_seed_and_epoch():
    first, again, other = (EPI(seed=seed).dataset("train") for seed in (0, 0, 1))
    assert torch.equal(first[(3, 5)][0], again[(3, 5)][0])
    assert not torch.equal(first[(3, 5)][0], other[(3, 5)][0])
    assert not torch.equal(first[(3, 5)][0], first[(4, 5)][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": [8, 8, 8]}, r"must be a positive integer, or 4 of them"),
        ({"crop_size": [8, 8, 5, 1]}, r"`crop_size` \(=\[8, 8, 5, 1\]\) must be at most \[128, 96, 4, 2\]"),
        ({"crops_per_epoch": 3}, r"`crops_per_epoch` \(=3\) must be an integer of at least 4"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        EPI(**options)


def test_no_files_are_read(tmp_path):
    with pytest.raises(DataError, match="reads no files"):
        EPI().read_input(tmp_path / "a.nii")
