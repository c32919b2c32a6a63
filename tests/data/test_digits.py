"""Digits and MNIST-5k: sizes, determinism, reading of files, baselines."""

import logging
import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image

from nvsubq.data import DataError, Digits, MNIST5k

# Python 3.12 and newer warn whenever a process with threads forks, which is how a DataLoader starts workers.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def batches(data, epochs=(0,)):
    loader = data.train_dataloader()
    out = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        out += list(loader)
    return out


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_mnist_is_what_the_documents_say():
    data = MNIST5k()
    assert (data.task, data.spatial_dims, data.in_channels, data.num_classes) == ("classification", 2, 1, 10)
    assert data.spatial_size == (28, 28)
    described = data.describe()
    assert described["sizes"] == {"train": 3500, "val": 500, "test": 1000}
    assert "not comparable with full MNIST" in described["provenance"]
    for split, count in (("train", 350), ("val", 50), ("test", 100)):
        assert torch.bincount(data.dataset(split).labels).tolist() == [count] * 10
    image, label = data.dataset("test")[0]
    assert (image.shape, image.dtype) == ((1, 28, 28), torch.float32)
    assert (label.shape, label.dtype) == ((), torch.int64)


def test_mnist_splits_share_no_image():
    data = MNIST5k()
    keys = [{p.numpy().tobytes() for p in data.dataset(s).pixels} for s in ("train", "val", "test")]
    assert not (keys[0] & keys[2])
    assert not (keys[0] & keys[1])
    assert not (keys[1] & keys[2])


def test_split_depends_on_split_seed_alone():
    a, b, c = Digits(seed=0), Digits(seed=1), Digits(split_seed=1)
    assert torch.equal(a.dataset("test").pixels, b.dataset("test").pixels)
    assert not torch.equal(a.dataset("test").pixels, c.dataset("test").pixels)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(workers):
    alone, helped = (Digits(batch_size=100, num_workers=n) for n in (0, workers))
    expected = batches(alone, (0, 1, 4))
    assert same(batches(helped, (0, 1, 4)), expected)
    assert same(list(helped.val_dataloader()), list(alone.val_dataloader()))
    assert same(list(helped.test_dataloader()), list(alone.test_dataloader()))


def test_epochs_seeds_and_torch_state():
    first, second = batches(Digits()), batches(Digits(), (1,))
    assert not same(first, second)
    assert not same(first, batches(Digits(seed=1)))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(first, batches(Digits()))
    assert torch.equal(state, torch.get_rng_state())  # looking at data changes no later draw


def test_an_item_does_not_depend_on_its_batch():
    data = MNIST5k().dataset("train")
    keys = [(3, i) for i in range(50, 115)]
    for key, (image, label) in zip(keys, data.__getitems__(keys), strict=True):
        alone = data[key]
        assert torch.equal(image, alone[0])
        assert torch.equal(label, alone[1])


def test_augmentation_is_of_training_alone():
    data = MNIST5k()
    train, test = data.dataset("train"), data.dataset("test")
    assert not torch.equal(train[0, 5][0], train[1, 5][0])
    assert torch.equal(test[0][0], test[(7, 0)][0])
    plain = MNIST5k(augment=False).dataset("train")
    assert torch.equal(plain[0, 5][0], plain[1, 5][0])
    pixels = plain.pixels[5].float() / 255
    torch.testing.assert_close(plain[0, 5][0], (pixels - 0.1307) / 0.3081)


def test_an_epoch_of_augmentation_is_cheap():
    data = MNIST5k()
    data.setup()
    started = time.process_time()
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 3500
    assert time.process_time() - started < 2.0  # about 0.3 s on a quiet core


def test_normalisation_constants():
    for data in (MNIST5k(augment=False), Digits(augment=False)):
        images = torch.stack([image for image, _ in data.dataset("train").__getitems__(range(1000))])
        assert abs(images.mean()) < 0.02
        assert images.std() == pytest.approx(1, abs=0.02)


def test_flatten_makes_a_sequence():
    data = MNIST5k(flatten=True, augment=False)
    assert (data.spatial_dims, data.spatial_size) == (1, (784,))
    image = data.dataset("val")[3][0]
    assert image.shape == (1, 784)
    assert torch.equal(image.view(1, 28, 28), MNIST5k().dataset("val")[3][0])
    assert data.display(image).shape == (1, 28, 28)


def test_datasets_travel_to_spawned_workers():
    data = pickle.loads(pickle.dumps(Digits().dataset("train")))
    assert torch.equal(data[2, 3][0], Digits().dataset("train")[2, 3][0])


def test_read_input_of_any_size_and_mode(tmp_path, caplog):
    data = MNIST5k()
    image, _ = data.dataset("test")[12]
    pixels = (data.display(image)[0] * 255).round().byte().numpy()
    path = tmp_path / "a b(1).png"
    Image.fromarray(pixels).save(path)
    sample = data.read_input(path)
    torch.testing.assert_close(sample.image, image, rtol=0, atol=1e-5)
    assert (sample.path, sample.original_shape) == (path, (28, 28))
    Image.fromarray(pixels).convert("RGBA").resize((56, 84)).save(path)
    sample = data.read_input(str(path))
    assert (sample.image.shape, sample.original_shape) == ((1, 28, 28), (84, 56))
    assert not caplog.records
    Image.fromarray(255 - pixels).save(path)
    with caplog.at_level(logging.WARNING):
        data.read_input(path)
    assert "is mostly bright; the digits of MNIST-5k are white on black" in caplog.text


def test_read_input_names_a_bad_file(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(DataError, match=r"x\.png: no such file\."):
        Digits().read_input(path)
    path.write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"x\.png cannot be read as an image: not a format that Pillow reads\."
    ):
        Digits().read_input(path)


def test_baselines_of_digits():
    found = Digits().baselines()
    assert found["3 nearest neighbours"]["accuracy"] > 0.97
    assert found["support vector machine"]["accuracy"] > 0.97


@pytest.mark.slow
def test_baselines_of_mnist_are_near_the_documents():
    found = MNIST5k().baselines()
    assert found["3 nearest neighbours"]["accuracy"] == pytest.approx(0.935, abs=0.02)
    assert found["support vector machine"]["accuracy"] == pytest.approx(0.957, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"`batch_size` \(=0\) must be an integer of at least 1\."),
        ({"num_workers": -1}, r"`num_workers` \(=-1\) must be an integer of at least 0\."),
        ({"seed": 0.5}, r"`seed` \(=0\.5\) must be an integer of at least 0\."),
        ({"split_seed": True}, r"`split_seed` \(=True\) must be an integer"),
        ({"scale": 2.0}, r"`scale` \(=2\.0\) must be below 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Digits(**options)


def test_unknown_split():
    with pytest.raises(ValueError, match=r"`split` \(='dev'\) must be one of train, val, test\."):
        Digits().dataset("dev")


def test_loaded_arrays_are_protected():
    pixels, labels = Digits().load()
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 1
    assert labels.dtype == np.int64
