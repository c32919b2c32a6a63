"""Random draws and orders are functions of their keys."""

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from nvsubq.data.augment import RandomAffine, random_corner, random_flips, random_map
from nvsubq.data.degrade import bias_field, degrade
from nvsubq.data.sampling import EpochSampler, generator, split_key
from nvsubq.data.splits import stratified_split


def test_generator_depends_on_every_part_of_its_key():
    keys = [(0, "a", 1), (0, "b", 1), (0, "a", 2), (1, "a", 1), (2**32, "a"), (0, 1, "a"), (0, "a")]
    draws = [generator(*key).integers(2**62) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [generator(*key).integers(2**62) for key in keys]


def test_generator_refuses_negative_keys():
    with pytest.raises(ValueError, match=r"A random key \(=-1\) must not be negative\."):
        generator(-1)


def test_split_key_of_index_and_pair():
    assert split_key(3) == (0, 3)
    assert split_key((2, 3)) == (2, 3)


def test_sampler_order_depends_on_seed_and_epoch_alone():
    sampler = EpochSampler(100, seed=3)
    first = list(sampler)
    assert list(sampler) == first
    assert sorted(index for _, index in first) == list(range(100))
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert [i for _, i in second] != [i for _, i in first]
    again = EpochSampler(100, seed=3)
    again.set_epoch(1)
    assert list(again) == second
    assert list(EpochSampler(100, seed=4)) != first


def test_sampler_resumes_at_a_position_once():
    sampler = EpochSampler(10, seed=0)
    sampler.set_epoch(2)
    whole = list(sampler)
    state = sampler.state_dict(taken=4)
    other = EpochSampler(10, seed=0)
    other.load_state_dict(state)
    assert list(other) == whole[4:]
    assert list(other) == whole
    with pytest.raises(ValueError, match=r"`position` \(=11\) must be in \[0, 10\]\."):
        other.load_state_dict({"epoch": 0, "position": 11})


@pytest.mark.parametrize(("size", "replicas"), [(10, 2), (10, 3), (2, 5)])
def test_sampler_shares_an_epoch_between_processes(size, replicas):
    parts = [list(EpochSampler(size, seed=1, num_replicas=replicas, rank=r)) for r in range(replicas)]
    assert len({len(part) for part in parts}) == 1
    assert {index for part in parts for _, index in part} == set(range(size))
    assert isinstance(EpochSampler(3), DistributedSampler)  # Lightning then leaves it in place


def test_sampler_refuses_bad_arguments():
    with pytest.raises(ValueError, match=r"`size` \(=0\) must be at least 1\."):
        EpochSampler(0)
    with pytest.raises(ValueError, match=r"`rank` \(=2\) must be in \[0, `num_replicas` \(=2\)\)\."):
        EpochSampler(4, num_replicas=2, rank=2)


def test_stratified_split_is_a_partition_in_equal_shares():
    labels = np.repeat([0, 1, 2], [20, 40, 10])
    split = stratified_split(labels, 7, val=0.1, test=0.2)
    assert sorted(np.concatenate(list(split.values()))) == list(range(70))
    assert [np.bincount(labels[part]).tolist() for part in split.values()] == [
        [14, 28, 7],
        [2, 4, 1],
        [4, 8, 2],
    ]
    again, other = (stratified_split(labels, seed, val=0.1, test=0.2) for seed in (7, 8))
    assert all((split[name] == again[name]).all() for name in split)
    assert any((split[name] != other[name]).any() for name in split)


def test_affine_item_does_not_depend_on_its_batch():
    affine = RandomAffine(shift=2, rotation=12, scale=0.1, flip=True)
    images = torch.rand(37, 3, 28, 20)
    keys = [(1, i) for i in range(37)]
    batch = affine(images, seed=5, keys=keys)
    alone = torch.cat([affine(images[i : i + 1], seed=5, keys=keys[i : i + 1]) for i in range(37)])
    assert torch.equal(batch, alone)
    assert torch.equal(batch[7:12], affine(images[7:12], seed=5, keys=keys[7:12]))
    assert not torch.equal(batch, affine(images, seed=6, keys=keys))


def test_affine_without_ranges_is_the_identity():
    images = torch.rand(2, 1, 9, 14)
    out = RandomAffine()(images, seed=0, keys=[(0, 0), (0, 1)])
    torch.testing.assert_close(out, images, rtol=0, atol=1e-5)


def test_affine_moves_by_whole_pixels(monkeypatch):
    images = torch.rand(1, 1, 8, 8)
    monkeypatch.setattr(RandomAffine, "draw", lambda *_: (1.0, 0.0, 2.0, 0.0, 1.0, -1.0))
    out = RandomAffine()(images, seed=0, keys=[(0, 0)])
    torch.testing.assert_close(out[..., 1:, :6], images[..., :7, 2:], rtol=0, atol=1e-5)
    assert (out[..., 0, :] == 0).all()


def test_affine_draws_stay_in_their_ranges():
    affine = RandomAffine(shift=2, rotation=12, scale=0.1)
    draws = np.array([affine.draw(0, (0, i)) for i in range(500)])
    size = np.hypot(draws[:, 0], draws[:, 3])
    angle = np.degrees(np.arctan2(draws[:, 3], draws[:, 0]))
    assert 1 / 1.1 <= size.min() < 0.93
    assert 1.08 < size.max() <= 1 / 0.9
    assert 11 < abs(angle).max() <= 12
    assert 1.9 < abs(draws[:, [2, 5]]).max() <= 2


def test_affine_flips_half_of_the_items():
    flipped = [RandomAffine(flip=True).draw(0, (0, i))[0] < 0 for i in range(400)]
    assert 150 < sum(flipped) < 250


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"shift": -1}, r"`shift` \(=-1\) must be finite and not negative\."),
        ({"rotation": float("nan")}, r"`rotation` \(=nan\) must be finite"),
        ({"scale": 1.0}, r"`scale` \(=1\.0\) must be below 1"),
    ],
)
def test_affine_refuses_bad_ranges(ranges, message):
    with pytest.raises(ValueError, match=message):
        RandomAffine(**ranges)


def test_corners_reach_every_place():
    corners = [random_corner((5, 3), (3, 3), seed=0, key=(0, i)) for i in range(60)]
    assert {c[0].start for c in corners} == {0, 1, 2}
    assert all(c[1] == slice(0, 3) for c in corners)
    with pytest.raises(ValueError, match=r"A crop of \(4, 4\) does not fit into a volume of \(5, 3\)\."):
        random_corner((5, 3), (4, 4), seed=0, key=(0, 0))


def test_flips_choose_each_axis_half_of_the_time():
    chosen = [random_flips([0, 2], seed=0, key=(0, i)) for i in range(400)]
    assert all(150 < sum(axis in flips for flips in chosen) < 250 for axis in (0, 2))
    assert random_flips([], seed=0, key=(0, 0)) == []


def test_random_maps_stay_in_their_ranges():
    key = [(0, i) for i in range(200)]
    turns = np.stack([random_map(30, 0, seed=0, key=k) for k in key])
    np.testing.assert_allclose(
        turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-12
    )
    angles = np.degrees(np.arccos((np.trace(turns, axis1=1, axis2=2) - 1) / 2))
    assert 25 < angles.max() <= 30 + 1e-9
    scales = np.stack([np.diag(random_map(0, 0.25, seed=0, key=k)) for k in key])
    assert 1 / 1.25 <= scales.min() < 0.85
    assert 1.2 < scales.max() <= 1.25
    np.testing.assert_array_equal(
        random_map(30, 0.1, seed=3, key=(1, 2)), random_map(30, 0.1, seed=3, key=(1, 2))
    )


def test_bias_field_is_smooth_bounded_and_the_same_in_every_region():
    shape, region = (40, 30, 20), (slice(5, 20), slice(0, 30), slice(7, 9))
    for seed in range(5):
        whole = bias_field(np.random.default_rng(seed), shape)
        assert 0.05 < abs(whole).max() <= 1
        assert max(abs(np.diff(whole, axis=axis)).max() for axis in range(3)) < 0.1
        part = bias_field(np.random.default_rng(seed), shape, region)
        np.testing.assert_allclose(part, whole[region], rtol=0, atol=1e-6)


def test_degrade_has_the_strengths_asked_for():
    image = np.full((30, 30, 30), 0.5)
    clean = degrade(image, np.random.default_rng(0), bias=0.0, noise=0.0)
    assert clean.dtype == np.float32
    assert (clean == 0.5).all()
    noisy = degrade(image, np.random.default_rng(0), bias=0.0, noise=0.2)
    assert noisy.std() == pytest.approx(0.2, rel=0.02)
    field = bias_field(np.random.default_rng(0), image.shape)
    biased = degrade(image, np.random.default_rng(0), bias=0.4, noise=0.0)
    np.testing.assert_allclose(biased, 0.5 * np.exp(0.4 * field), rtol=1e-6)
