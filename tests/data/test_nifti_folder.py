"""NiftiFolder: pairs, subjects, crops, orientation, and one clear error for whatever does not belong."""

import logging

import nibabel
import numpy as np
import pytest
import torch

from nvsubq.data import DataError, NiftiFolder
from nvsubq.data.nifti_pairs import normalise

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def subject(seed, shape=(12, 10, 9)):
    rng = np.random.default_rng(seed)
    labels = (rng.random(shape) < 0.3).astype(np.uint8) + (rng.random(shape) < 0.1)
    return (labels * 100 + rng.normal(0, 10, shape)).astype(np.float32), labels.astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    """Ten volumes with labels 0, 1, 2."""
    for i in range(10):
        image, labels = subject(i)
        save(tmp_path / "images" / f"case {i}.nii.gz", image)
        save(tmp_path / "labels" / f"case {i}.nii.gz", labels)
    return tmp_path


def test_attributes_and_splits(root):
    data = NiftiFolder(root, crop_size=8)
    assert (data.task, data.spatial_dims, data.in_channels, data.num_classes) == ("segmentation", 3, 1, 3)
    assert data.class_names == ["background", "label 1", "label 2"]
    assert (data.scored_classes, data.spatial_size) == ([1, 2], (8, 8, 8))
    assert data.describe()["sizes"] == {"train": 64, "val": 2, "test": 2}
    names = {image.name for part in data.files.values() for image, _ in part}
    assert len(names) == 10
    assert NiftiFolder(root, seed=5).files == data.files
    assert NiftiFolder(root, split_seed=5).files != data.files
    assert NiftiFolder(root, num_classes=5, class_names=list("abcde")).class_names == list("abcde")


def test_items(root):
    data = NiftiFolder(root, crop_size=[8, 4, 6], crops_per_epoch=20)
    image, labels = data.dataset("train")[0, 3]
    assert (image.shape, image.dtype) == ((1, 8, 4, 6), torch.float32)
    assert (labels.shape, labels.dtype) == ((8, 4, 6), torch.int64)
    assert not torch.equal(image, data.dataset("train")[1, 3][0])
    image, labels = data.dataset("test")[0]
    assert (image.shape, labels.shape) == ((1, 12, 10, 9), (12, 10, 9))
    assert abs(image.mean()) < 1e-5
    assert image.std() == pytest.approx(1, abs=1e-3)
    stored = np.asarray(nibabel.load(data.files["test"][0][1]).dataobj)
    assert (labels.numpy() == stored).all()


@pytest.mark.parametrize("cache", [True, False])
def test_batches_do_not_depend_on_workers_or_cache(root, cache):
    options = {"crop_size": 6, "crops_per_epoch": 8, "flip_axes": [0, 2]}
    expected = list(NiftiFolder(root, **options).train_dataloader())
    for workers in (0, 2):
        found = list(NiftiFolder(root, **options, cache=cache, num_workers=workers).train_dataloader())
        assert all(
            torch.equal(a, b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)
        )


def test_files_of_one_subject_stay_together(tmp_path):
    for i in range(5):
        for run in (1, 2):
            image, labels = subject(10 * i + run)
            save(tmp_path / "images" / f"sub-{i}_run-{run}.nii", image)
            save(tmp_path / "labels" / f"sub-{i}_run-{run}.nii", labels)
    files = NiftiFolder(tmp_path).files
    assert [len(part) for part in files.values()] == [6, 2, 2]
    found = [{image.name.split("_")[0] for image, _ in part} for part in files.values()]
    assert len(set.union(*found)) == sum(map(len, found)) == 5


def test_volumes_are_turned_to_one_orientation(tmp_path):
    image, labels = subject(0)
    for i in range(3):
        save(tmp_path / "images" / f"{i}.nii", image)
        save(tmp_path / "labels" / f"{i}.nii", labels)
    straight = NiftiFolder(tmp_path).dataset("test")[0]
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    for i in range(3):
        save(tmp_path / "images" / f"{i}.nii", np.flip(image, 0), flipped)
        save(tmp_path / "labels" / f"{i}.nii", np.flip(labels, 0), flipped)
    data = NiftiFolder(tmp_path)
    turned = data.dataset("test")[0]
    assert all(torch.equal(a, b) for a, b in zip(straight, turned, strict=True))
    sample = data.read_input(tmp_path / "images" / "1.nii")
    assert torch.equal(sample.image, turned[0])
    assert (sample.restore(turned[1]) == np.flip(labels, 0)).all()


def test_voxel_sizes_follow_the_turned_axes(tmp_path):
    affine = np.array([[0, 0, 3.0, 0], [-2.0, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])
    for i in range(4):
        save(tmp_path / "images" / f"{i}.nii.gz", np.random.rand(8, 9, 10).astype(np.float32), affine)
        save(
            tmp_path / "labels" / f"{i}.nii.gz", np.eye(8, 9, dtype=np.uint8)[..., None].repeat(10, 2), affine
        )
    told = NiftiFolder(root=tmp_path, crop_size=8).describe()["voxel_size"]
    assert told == [[3.0, 2.0, 1.5]] * len(told)
    assert told


def test_channels_come_last(tmp_path):
    for i in range(3):
        image, labels = subject(i)
        save(tmp_path / "images" / f"{i}.nii", np.stack([image, 5 - image], -1))
        save(tmp_path / "labels" / f"{i}.nii", labels)
    data = NiftiFolder(tmp_path, crop_size=4)
    assert data.in_channels == 2
    assert data.dataset("train")[0, 0][0].shape == (2, 4, 4, 4)
    assert data.baselines() == {}
    save(tmp_path / "one.nii", subject(0)[0])
    with pytest.raises(DataError, match=r"one\.nii has 1 channels; the data set has 2\."):
        data.read_input(tmp_path / "one.nii")


def test_normalisation_ignores_scale_and_outliers():
    image = np.random.default_rng(0).normal(50, 7, (20, 20, 20)).astype(np.float32)
    plain = normalise(image, None)
    np.testing.assert_allclose(normalise(image * 1000 - 3, None), plain, atol=1e-3)
    image[0, 0, 0] = 1e6
    np.testing.assert_allclose(normalise(image, None)[0, 1:], plain[0, 1:], atol=0.01)
    assert (normalise(np.full((3, 3, 3), 9, np.float32), None) == 0).all()
    window = normalise(np.array([-2000, -100, 150, 400, 3000], np.float32).reshape(5, 1, 1), (-100, 400))
    assert window.flatten().tolist() == [-1, -1, 0, 1, 1]


def test_crops_shrink_to_the_smallest_volume(root, caplog):
    with caplog.at_level(logging.WARNING):
        data = NiftiFolder(root, crop_size=[8, 64, 64])
    assert data.spatial_size == (8, 10, 9)
    assert "crops are (8, 10, 9), not (8, 64, 64): a volume is smaller." in caplog.text
    assert next(iter(data.train_dataloader()))[0].shape == (4, 1, 8, 10, 9)


def test_baseline(root):
    found = NiftiFolder(root).baselines()
    assert found["intensity histogram"]["dice"] > 0.9
    assert list(found["intensity histogram"]) == ["dice", "dice_label_1", "dice_label_2"]
    assert NiftiFolder(root, cache=False).baselines() == {}


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match=r"`root` \(=.*none\) does not exist\."):
        NiftiFolder(tmp_path / "none")
    with pytest.raises(DataError, match=r"There is no folder .*images\."):
        NiftiFolder(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"images is empty; it must hold \.nii\.gz and \.nii files\."):
        NiftiFolder(tmp_path)


def test_files_that_do_not_belong(root):
    (root / "images" / "notes.txt").touch()
    with pytest.raises(
        DataError, match=r"images holds notes\.txt; only \.nii\.gz and \.nii files are allowed there\."
    ):
        NiftiFolder(root)


def test_a_file_without_partner(root):
    (root / "labels" / "case 3.nii.gz").unlink()
    with pytest.raises(DataError, match=r"must hold the same names; case 3\.nii\.gz have no partner\."):
        NiftiFolder(root)


def test_different_grids(root):
    save(root / "labels" / "case 3.nii.gz", np.zeros((12, 10, 8), np.uint8))
    with pytest.raises(
        DataError, match=r"case 3\.nii\.gz has shape \(12, 10, 8\) and its image \(12, 10, 9\)"
    ):
        NiftiFolder(root)


def test_different_directions(root):
    save(root / "labels" / "case 3.nii.gz", subject(3)[1], np.diag([-1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(DataError, match=r"case 3\.nii\.gz and its image have axes in different directions"):
        NiftiFolder(root)


def test_different_channels(root):
    save(root / "images" / "case 3.nii.gz", np.stack([subject(3)[0]] * 2, -1))
    with pytest.raises(
        DataError, match=r"equally many channels; case 0\.nii\.gz has 1, case 3\.nii\.gz has 2\."
    ):
        NiftiFolder(root)


@pytest.mark.parametrize(
    ("value", "dtype", "told"), [(7, np.uint8, "7"), (-1, np.int16, "-1"), (0.5, np.float32, "0.5")]
)
def test_labels_out_of_range(root, value, dtype, told):
    labels = subject(3)[1].astype(dtype)
    labels[0, 0, 0] = value
    save(root / "labels" / "case 3.nii.gz", labels)
    message = rf"case 3\.nii\.gz has the label {told} \(1 voxels .*\); labels must be integers from 0 to 2\."
    with pytest.raises(DataError, match=message):
        NiftiFolder(root, num_classes=3).setup()


def test_one_class_only(root):
    for path in (root / "labels").iterdir():
        save(path, np.zeros((12, 10, 9), np.uint8))
    with pytest.raises(DataError, match=r"labels holds one class only \(0\); at least 2 are needed\."):
        NiftiFolder(root).setup()


def test_too_few_subjects(tmp_path):
    for i in range(2):
        image, labels = subject(i)
        save(tmp_path / "images" / f"{i}.nii", image)
        save(tmp_path / "labels" / f"{i}.nii", labels)
    with pytest.raises(DataError, match=r"images holds 2 subjects; at least 3 are needed to split\."):
        NiftiFolder(tmp_path)


def test_damaged_files(root):
    path = root / "images" / "case 3.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"case 3\.nii\.gz (is damaged|cannot be read)"):
        NiftiFolder(root).setup()
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"case 3\.nii\.gz cannot be read as NIfTI"):
        NiftiFolder(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, r"`num_classes` \(=1\) must be from 2 to 256\."),
        ({"crops_per_epoch": 0}, r"`crops_per_epoch` \(=0\) must be at least 1\."),
        ({"flip_axes": [3]}, r"`flip_axes` \(=\[3\]\) must be different numbers of 0, 1 and 2\."),
        (
            {"intensity_range": [4, 1]},
            r"`intensity_range` \(=\[4, 1\]\) must be two numbers, the lower one first\.",
        ),
        ({"subject": "("}, r"`subject` \(='\('\) is not a regular expression"),
        ({"crop_size": -1}, r"`crop_size` \(=-1\) must be a positive integer"),
    ],
)
def test_bad_options(root, options, message):
    with pytest.raises(ValueError, match=message):
        NiftiFolder(root, **options)


def test_wrong_number_of_class_names(root):
    with pytest.raises(DataError, match=r"`class_names` \(=\['a'\]\) must be 3 names, one for each class\."):
        _ = NiftiFolder(root, class_names=["a"]).class_names
