"""ImageFolder: layouts, splits, and one clear error for whatever does not belong."""

import numpy as np
import pytest
import torch
from PIL import Image

from nvsubq.data import DataError, ImageFolder

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def write(folder, count, level, size=(12, 10), suffix="png"):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(level)
    for i in range(count):
        pixels = rng.integers(0, 40, (*size, 3)) + level
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i} (1).{suffix}")


@pytest.fixture
def classes(tmp_path):
    """root/CLASS/*: 20 cats, 10 dogs."""
    write(tmp_path / "cats", 20, 10)
    write(tmp_path / "dogs", 10, 150)
    return tmp_path


@pytest.fixture
def splits(tmp_path):
    """root/{train,val,test}/CLASS/*."""
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        write(tmp_path / split / "a", count, 10)
        write(tmp_path / split / "b", count + 1, 150)
    return tmp_path


def test_classes_are_split_by_split_seed(classes):
    data = ImageFolder(classes, size=8)
    assert (data.task, data.spatial_dims, data.in_channels, data.num_classes) == ("classification", 2, 3, 2)
    assert (data.class_names, data.spatial_size) == (["cats", "dogs"], (8, 8))
    assert data.describe()["sizes"] == {"train": 20, "val": 5, "test": 5}
    names = [str(path) for part in data.files.values() for path, _ in part]
    assert len(set(names)) == 30
    assert ImageFolder(classes, size=8, seed=3).files == data.files
    assert ImageFolder(classes, size=8, split_seed=3).files != data.files
    image, label = data.dataset("train")[0, 19]
    assert (image.shape, image.dtype, label.dtype, int(label)) == ((3, 8, 8), torch.float32, torch.int64, 1)


def test_given_splits_are_kept(splits):
    data = ImageFolder(splits, size=[6, 9], channels=1)
    assert data.describe()["sizes"] == {"train": 9, "val": 5, "test": 7}
    assert data.class_names == ["a", "b"]
    assert data.dataset("val")[0][0].shape == (1, 6, 9)
    assert all("/val/" in path.as_posix() for path, _ in data.files["val"])


def test_hidden_files_do_not_count(classes):
    (classes / ".DS_Store").write_bytes(b"x")
    (classes / "cats" / ".DS_Store").write_bytes(b"x")
    assert ImageFolder(classes, size=8).describe()["sizes"]["train"] == 20


@pytest.mark.parametrize("cache", [True, False])
def test_batches_do_not_depend_on_workers_or_cache(classes, cache):
    expected = list(ImageFolder(classes, size=8, batch_size=7).train_dataloader())
    for workers in (0, 2):
        data = ImageFolder(classes, size=8, batch_size=7, num_workers=workers, cache=cache, flip=True)
        plain = ImageFolder(classes, size=8, batch_size=7, num_workers=workers, cache=cache)
        found = list(plain.train_dataloader())
        assert all(
            torch.equal(a, b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)
        )
        assert not torch.equal(next(iter(data.train_dataloader()))[0], expected[0][0])


def test_read_input_has_the_form_of_the_set(classes):
    data = ImageFolder(classes, size=(8, 6), mean=[0.1, 0.2, 0.3], std=0.5)
    path, _ = data.files["test"][0]
    sample = data.read_input(path)
    assert torch.equal(sample.image, data.dataset("test")[0][0])
    assert sample.original_shape == (12, 10)
    shown = data.display(sample.image)
    assert shown.shape == (3, 8, 6)
    assert 0 <= float(shown.min()) < float(shown.max()) <= 1
    with pytest.raises(ValueError, match="is not a volume"):
        sample.restore(np.zeros((8, 6)))


def test_baseline_is_the_most_frequent_class(classes):
    assert ImageFolder(classes).baselines() == {"most frequent class": {"accuracy": 0.6}}


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match=r"`root` \(=.*none\) does not exist\."):
        ImageFolder(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"`root` \(=.*file\) is not a folder\."):
        ImageFolder(tmp_path / "file")
    (tmp_path / "file").unlink()
    with pytest.raises(DataError, match=r"is empty; it must hold folders\."):
        ImageFolder(tmp_path)


def test_an_empty_class_is_named(classes):
    (classes / "owls").mkdir()
    with pytest.raises(DataError, match=r"owls is empty; it must hold image files\."):
        ImageFolder(classes)


def test_one_class_only(tmp_path):
    write(tmp_path / "cats", 5, 10)
    with pytest.raises(DataError, match=r"has one class only \(cats\); at least 2 are needed\."):
        ImageFolder(tmp_path)


def test_too_few_files(classes):
    write(classes / "owls", 2, 10)
    with pytest.raises(DataError, match=r"owls holds 2 images; at least 3 are needed to split a class\."):
        ImageFolder(classes)


def test_loose_files_and_nested_folders(classes):
    (classes / "cats" / "more").mkdir()
    with pytest.raises(DataError, match=r"cats holds more; only image files are allowed there\."):
        ImageFolder(classes)
    (classes / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds notes\.txt; only folders are allowed there\."):
        ImageFolder(classes)


def test_half_a_split(splits, classes):
    with pytest.raises(
        DataError, match=r"holds cats, dogs, test, train, val; it must hold the folders train, val, test"
    ):
        ImageFolder(splits)


def test_splits_with_different_classes(splits):
    write(splits / "val" / "c", 2, 10)
    with pytest.raises(DataError, match=r"val must have the classes of train; c differ\."):
        ImageFolder(splits)


@pytest.mark.parametrize("cache", [True, False])
def test_a_file_that_is_no_image(classes, cache):
    (classes / "cats" / "broken.png").write_bytes(b"not an image")
    with pytest.raises(
        DataError, match=r"broken\.png cannot be read as an image: not a format that Pillow reads\."
    ):
        ImageFolder(classes, size=8, cache=cache).setup()


def test_a_truncated_image(classes):
    path = classes / "cats" / "0 (1).png"
    path.write_bytes(path.read_bytes()[:120])
    with pytest.raises(DataError, match=r"0 \(1\)\.png cannot be read as an image: .*truncated"):
        ImageFolder(classes, size=8).setup()


def test_the_error_of_a_worker_is_one_line(classes):
    for path in (classes / "cats").iterdir():
        path.write_bytes(path.read_bytes()[:120])
    data = ImageFolder(classes, size=8, cache=False, num_workers=1, batch_size=20)
    with pytest.raises(DataError) as caught:
        next(iter(data.train_dataloader()))
    assert "cannot be read as an image" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"`size` \(=0\) must be a positive integer, or two of them \(height, width\)\."),
        ({"size": [8, 8, 8]}, r"`size` \(=\[8, 8, 8\]\) must be a positive integer"),
        ({"channels": 4}, r"`channels` \(=4\) must be 1 \(grey\) or 3 \(RGB\)\."),
        ({"mean": [0.5, 0.5]}, r"`mean` \(=\[0\.5, 0\.5\]\) must be one number, or 3"),
        ({"std": 0}, r"`std` \(=0\) must be positive\."),
    ],
)
def test_bad_options(classes, options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(classes, **options)
