"""MNI152: labels, slabs, degradation, crops, files, baselines."""

import logging
import pickle

import nibabel
import numpy as np
import pytest
import torch

from nvsubq.data import MNI152, DataError
from nvsubq.data.template import load_template

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def small(**options):
    return MNI152(**{"resolution": 4, "crop_size": 16, "crops_per_epoch": 6, "batch_size": 2, **options})


def equal(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_attributes():
    data = small()
    assert (data.task, data.spatial_dims, data.in_channels, data.num_classes) == ("segmentation", 3, 1, 4)
    assert data.class_names == ["background", "other", "grey", "white"]
    assert [data.class_names[i] for i in data.scored_classes] == ["grey", "white"]
    assert data.spatial_size == (16, 16, 16)
    described = data.describe()
    assert described["sizes"] == {"train": 6, "val": 2, "test": 4}
    assert "one averaged brain" in described["provenance"]


def test_labels_follow_their_definition():
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    t1, grey, white = (
        f(resolution=4).get_fdata()
        for f in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    )
    image, labels = load_template(4)
    assert image.shape == labels.shape == (50, 59, 48)
    assert ((labels == 2) == ((grey > 0.5) & (grey >= white))).all()
    assert ((labels == 3) == ((white > 0.5) & (white > grey))).all()
    rest = labels < 2
    assert ((labels[rest] == 0) == (t1[rest] < 0.05 * t1.max())).all()
    assert image[:, :36].max() == 1
    with pytest.raises(ValueError, match="read-only"):
        labels[0] = 0


@pytest.mark.parametrize(
    ("resolution", "expected"),
    [
        (4, [(0, 36), (38, 42), (44, 59)]),
        pytest.param(2, [(0, 71), (75, 83), (87, 117)], marks=pytest.mark.slow),
    ],
)
def test_slabs_are_apart(resolution, expected):
    volumes = MNI152(resolution=resolution).volumes
    slabs = [volumes.slab(split) for split in ("train", "val", "test")]
    assert [(y.start, y.stop) for _, y, _ in slabs] == expected
    assert [x for x, _, _ in slabs] == [slice(0, load_template(resolution)[0].shape[0])] * 3


def test_training_crops():
    data = small()
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype) == ((2, 1, 16, 16, 16), torch.float32)
    assert (labels.shape, labels.dtype) == ((2, 16, 16, 16), torch.int64)
    train = data.dataset("train")
    assert len({tuple(train[0, i][1].flatten().tolist()) for i in range(6)}) > 1
    assert not torch.equal(train[0, 3][0], train[1, 3][0])
    assert torch.equal(train[1, 3][0], small().dataset("train")[1, 3][0])
    assert not torch.equal(train[1, 3][0], small(seed=1).dataset("train")[1, 3][0])


def test_clean_training_crops_lie_in_the_training_slab():
    data = small(bias=0.0, noise=0.0)
    t1, labels = (torch.tensor(array) for array in load_template(4))
    windows = t1.unfold(0, 16, 1).unfold(1, 16, 1).unfold(2, 16, 1)
    for i in range(6):
        image, target = data.dataset("train")[0, i]
        shown = data.display(image)[0]
        near = (windows[..., 8, 8, 8] - shown[8, 8, 8]).abs() < 1e-5
        near &= (windows[..., 3, 9, 6] - shown[3, 9, 6]).abs() < 1e-5
        places = [p for p in near.nonzero().tolist() if torch.allclose(windows[tuple(p)], shown, atol=1e-5)]
        assert places
        x, y, z = places[0]
        assert y + 16 <= 36
        assert (labels[x : x + 16, y : y + 16, z : z + 16] == target).all()


def test_evaluation_volumes_are_fixed_slabs():
    data, other = small(), small(seed=7)
    image, labels = data.dataset("test")[0]
    assert image.shape == (1, 50, 15, 48)
    assert (labels.numpy() == load_template(4)[1][:, 44:]).all()
    assert data.dataset("val")[0][0].shape == (1, 50, 4, 48)
    assert torch.equal(image, other.dataset("test")[0][0])
    assert not torch.equal(image, data.dataset("test")[1][0])
    assert not torch.equal(image, small(split_seed=1).dataset("test")[0][0])
    with pytest.raises(IndexError, match="There are 4 volumes, not a number 4"):
        data.dataset("test")[4]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(workers):
    alone, helped = small(), small(num_workers=workers)
    assert equal(list(helped.train_dataloader()), list(alone.train_dataloader()))
    assert equal(list(helped.test_dataloader()), list(alone.test_dataloader()))


def test_datasets_travel_to_spawned_workers():
    data = pickle.loads(pickle.dumps(small().dataset("train")))
    assert torch.equal(data[0, 1][0], small().dataset("train")[0, 1][0])


def test_crops_are_at_most_the_slab():
    image, labels = small(crop_size=[64, 8, 64]).dataset("train")[0, 0]
    assert image.shape == (1, 50, 8, 48)
    assert labels.shape == (50, 8, 48)


def test_normalisation_constants():
    image = small().volumes.normalised("train", 0)[0]
    assert abs(image.mean()) < 0.05
    assert image.std() == pytest.approx(1, abs=0.05)


def test_read_input_and_the_way_back(tmp_path):
    data = small()
    t1, labels = load_template(4)
    # the template as a file of another scale, with its axes in another order and direction
    turned = np.ascontiguousarray(np.flip(t1.transpose(2, 0, 1) * 300, 1))
    affine = np.array([[0, -4, 0, 98], [0, 0, 4, -134], [4, 0, 0, -72], [0, 0, 0, 1.0]])
    path = tmp_path / "t1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(turned, affine), path)
    sample = data.read_input(path)
    assert sample.original_shape == turned.shape
    np.testing.assert_allclose(sample.affine, affine)
    torch.testing.assert_close(
        sample.image[0], torch.from_numpy(data.volumes.normalise(t1)[0]), rtol=0, atol=1e-4
    )
    written = nibabel.load(sample.save(torch.tensor(labels), tmp_path / "out.nii.gz"))
    np.testing.assert_allclose(written.affine, affine)
    assert (np.asarray(written.dataobj) == np.flip(labels.transpose(2, 0, 1), 1)).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.nii.gz", "t1.nii.gz"]
    with pytest.raises(ValueError, match=r"`labels` \(shape \(1, 2, 3\)\) must have shape \(50, 59, 48\)\."):
        sample.restore(np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match=r"must end with \.nii\.gz or \.nii\."):
        sample.save(labels, tmp_path / "out.png")


def test_read_input_of_a_degraded_volume_keeps_its_scale(tmp_path):
    data = small()
    path = tmp_path / "noisy.nii"
    for split in ("train", "val", "test"):
        image, _ = data.volumes.whole(split, 0)
        nibabel.save(nibabel.Nifti1Image(image * 70, AFFINE), path)
        scaled = data.display(data.read_input(path).image)[0].numpy()
        inside = (image > 0.4) & (image < 0.8)
        assert float(np.median(scaled[inside] / image[inside])) == pytest.approx(1, abs=0.12)


def test_read_input_refuses_what_it_cannot_use(tmp_path, caplog):
    data = small()
    path = tmp_path / "v.nii"
    with pytest.raises(DataError, match=r"v\.nii: no such file\."):
        data.read_input(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"v\.nii cannot be read as NIfTI"):
        data.read_input(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), AFFINE), path)
    with pytest.raises(DataError, match=r"v\.nii has 2 channels; a model of MNI152 takes one 3-D volume\."):
        data.read_input(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), AFFINE), path)
    with pytest.raises(DataError, match=r"v\.nii holds no bright voxels \(values 0 to 0\)\."):
        data.read_input(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4), np.float32), AFFINE), path)
    with pytest.raises(DataError, match=r"v\.nii has shape \(4, 4\); allowed are 3-D, and 4-D"):
        data.read_input(path)
    bad = np.ones((3, 3, 3), np.float32)
    bad[0, 0, :2] = np.nan
    nibabel.save(nibabel.Nifti1Image(bad, AFFINE), path)
    with pytest.raises(DataError, match=r"v\.nii holds 2 values that are not finite\."):
        data.read_input(path)
    image = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    with caplog.at_level(logging.WARNING):
        data.read_input(path)
    assert "v.nii has voxels of 1 x 1 x 3 mm; the model was trained on voxels of 4 mm" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": 181}, r"`rotation` \(=181\) must be in \[0, 180\]\."),
        ({"scale": -0.1}, r"`scale` \(=-0\.1\) must be in \[0, 1\]\."),
        ({"flip_axes": [3]}, r"`flip_axes` \(=\[3\]\) must be axes from 0 to 2\."),
        ({"resolution": 3}, r"`resolution` \(=3\) must be 2 or 4 \(mm\)\."),
        ({"crop_size": 0}, r"`crop_size` \(=0\) must be a positive integer, or 3 of them\."),
        ({"crop_size": [8, 8]}, r"`crop_size` \(=\[8, 8\]\) must be a positive integer, or 3 of them\."),
        ({"crops_per_epoch": 0}, r"`crops_per_epoch` \(=0\) must be an integer of at least 1\."),
        ({"test_volumes": 1.5}, r"`test_volumes` \(=1\.5\) must be an integer of at least 1\."),
        ({"noise": -0.1}, r"`noise` \(=-0\.1\) must be finite and not negative\."),
        ({"bias": float("inf")}, r"`bias` \(=inf\) must be finite and not negative\."),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MNI152(**options)


def test_baselines_at_low_resolution():
    found = small().baselines()
    assert list(found) == ["intensity histogram", "smoothed histogram"]
    assert list(found["intensity histogram"]) == ["dice", "dice_grey", "dice_white"]
    assert found["smoothed histogram"]["dice"] > found["intensity histogram"]["dice"] + 0.1


@pytest.mark.slow
def test_baselines_are_near_the_documents():
    found = MNI152().baselines()
    for name, (grey, white) in {
        "intensity histogram": (0.63, 0.58),
        "smoothed histogram": (0.86, 0.85),
    }.items():
        assert found[name]["dice_grey"] == pytest.approx(grey, abs=0.03)
        assert found[name]["dice_white"] == pytest.approx(white, abs=0.03)
    clean = MNI152(bias=0.0, noise=0.0).baselines()["intensity histogram"]
    assert clean["dice"] == pytest.approx(0.967, abs=0.01)


def test_flips_mirror_some_crops():
    """Of a clean volume: every crop is that of the same place, mirrored along the axes named or not."""
    plain, flipped = (small(noise=0.0, bias=0.0, flip_axes=axes).dataset("train") for axes in ((), (1, 2)))
    found = set()
    for index in range(12):
        for image, other in zip(plain[(0, index)], flipped[(0, index)], strict=True):
            ways = [axes for axes in ((), (1,), (2,), (1, 2))
                    if torch.equal(image.flip([axis - 3 for axis in axes]), other)]  # fmt: skip
            assert ways
        found.add(ways[0])
    assert len(found) > 1


def test_turned_and_scaled_crops_keep_their_middle_labels_and_degradation():
    """Clean crops of an odd size agree with plain ones in the middle; noise comes after, at full strength."""
    ranges = {"rotation": 180.0, "scale": 0.25, "crop_size": 15}
    plain, turned = (
        small(noise=0.0, bias=0.0, crop_size=15).dataset("train"),
        small(noise=0.0, bias=0.0, **ranges).dataset("train"),
    )
    differ = 0
    for index in range(6):
        (image, labels), (other, others) = plain[0, index], turned[0, index]
        assert (other.dtype, others.dtype) == (image.dtype, labels.dtype)
        torch.testing.assert_close(image[0, 7, 7, 7], other[0, 7, 7, 7])
        assert labels[7, 7, 7] == others[7, 7, 7]
        assert set(others.unique().tolist()) <= {0, 1, 2, 3}
        differ += not torch.equal(labels, others)
        assert torch.equal(other, small(noise=0.0, bias=0.0, **ranges).dataset("train")[0, index][0])
    assert differ >= 5
    noisy = small(bias=0.0, noise=0.2, **ranges).dataset("train")
    noise = torch.stack([noisy[0, i][0] - turned[0, i][0] for i in range(6)]) * MNI152.std
    assert noise.std().item() == pytest.approx(0.2, rel=0.05)


def test_a_quarter_turn_moves_whole_cells(monkeypatch):
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    monkeypatch.setattr("nvsubq.data.template.random_map", lambda *_, **__: quarter)
    plain = small(noise=0.0, bias=0.0).dataset("train")
    turned = small(noise=0.0, bias=0.0, rotation=90).dataset("train")
    for index in range(4):
        for image, other in zip(plain[0, index], turned[0, index], strict=True):
            torch.testing.assert_close(other, image.rot90(-1, (-3, -2)), rtol=0, atol=1e-5)
