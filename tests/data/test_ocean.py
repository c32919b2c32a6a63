"""Sea-surface temperature: windows, split by time, climatology without the answer, baselines."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch

from nvsubq.data import DataError, SeaSurface, ocean
from nvsubq.data.ocean import climatology_without, load_months

if importlib.util.find_spec("iris_sample_data") is None or importlib.util.find_spec("h5py") is None:
    pytest.skip("nvsubq[ocean] is not installed", allow_module_level=True)


def test_shapes_and_channels():
    data = SeaSurface(batch_size=3, crop=40, past=6, ahead=2)
    fields, targets, weights = next(iter(data.train_dataloader()))
    assert fields.shape == (3, 6, 8, 18, 40)
    assert targets.shape == (3, 1, 8, 18, 40)
    assert weights.shape == (3, 8, 18, 40)
    assert data.spatial_size == (8, 18, 40)
    known, sea = fields[:, 2], fields[:, 3]
    assert not known[:, 6:].any()
    assert torch.equal(known[:, :6], sea[:, :6])
    assert torch.equal(weights[:, 6:], sea[:, 6:])
    assert not weights[:, :6].any()
    assert not fields[:, 0][known == 0].any()
    assert not targets[:, 0][weights == 0].any()
    assert torch.allclose(fields[:, 4] ** 2 + fields[:, 5] ** 2, torch.ones(3, 8, 18, 40), atol=1e-6)


def test_split_by_time():
    data = SeaSurface(past=12, ahead=3)
    data.setup()
    firsts = {name: data.dataset(name).firsts for name in ("train", "val", "test")}
    # No month that training has as a target or an input is a target of validation or test.
    assert firsts["train"][-1] + 3 == 36
    assert firsts["train"][0] - 12 == 0
    assert (firsts["val"][0], firsts["val"][-1] + 3) == (36, 42)
    assert (firsts["test"][0], firsts["test"][-1] + 3) == (42, 54)
    assert data.describe()["sizes"] == {"train": 64, "val": 4, "test": 10}


def test_climatology_holds_nothing_of_the_window():
    temperature, _ = load_months()
    january = [m for m in range(36) if m % 12 == 9]
    assert np.allclose(climatology_without(0, 0)[9], temperature[january].mean(0))
    assert np.allclose(climatology_without(9, 24)[9], temperature[[33]].mean(0))
    fields, _, _ = SeaSurface(past=6, ahead=3).window(20)
    changed = temperature.copy()
    changed[14:23] += 5.0
    sea = load_months()[1]
    with pytest.MonkeyPatch.context() as patch:
        climatology_without.cache_clear()
        patch.setattr(ocean, "load_months", lambda: (changed, sea))
        other, _, _ = SeaSurface(past=6, ahead=3).window(20)
    climatology_without.cache_clear()
    assert np.array_equal(fields[1], other[1])
    # A shift of all months is a shift of the anomalies that are known, and of nothing else.
    assert np.allclose(other[0] - fields[0], 5.0 * fields[2], atol=1e-4)


def test_target_is_what_a_persisting_anomaly_lacks():
    data = SeaSurface(past=5, ahead=2)
    _, target, weights = data.window(50)
    temperature, sea = load_months()
    normal = climatology_without(45, 52)
    guess = normal[[50 % 12, 51 % 12]] + temperature[49] - normal[49 % 12]
    assert np.allclose((guess + target[0, 5:])[:, sea > 0], temperature[50:52][:, sea > 0], atol=1e-4)
    assert weights.sum() == 2 * sea.sum()
    # An output of 0 is that baseline.
    baseline = SeaSurface(past=5, ahead=1).baselines()["persisting anomaly"]["rmse"]
    squares = [SeaSurface(past=5, ahead=1).window(first) for first in range(42, 54)]
    mean = np.mean([(t[0] ** 2)[w > 0].mean() for _, t, w in squares])
    assert baseline == pytest.approx(np.sqrt(mean), rel=1e-4)


def test_baselines_in_kelvin():
    found = SeaSurface().baselines()
    assert found["persistence"]["rmse"] == pytest.approx(1.311, abs=1e-3)
    assert found["climatology"]["rmse"] == pytest.approx(1.004, abs=1e-3)
    assert found["persisting anomaly"]["rmse"] == pytest.approx(0.783, abs=1e-3)
    assert list(found["persistence"]) == ["rmse", "rmse_month_1", "rmse_month_2", "rmse_month_3"]


def test_crops_go_around_the_globe_and_follow_their_key():
    first, again, other = (SeaSurface(crop=432, seed=seed).dataset("train")[(0, 1)] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    sea = torch.tensor(load_months()[1], dtype=torch.float32)
    assert any(torch.equal(first[0][3, 0], sea.roll(-k, 1)) for k in range(432))


def test_what_is_missing_is_named(monkeypatch):
    load_months.cache_clear()
    real = importlib.util.find_spec
    lacking = "iris_sample_data"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacking else real(name))
    monkeypatch.delitem(sys.modules, "iris_sample_data", raising=False)
    message = r"needs iris-sample-data, which is not installed: pip install 'nvsubq\[ocean\]'"
    with pytest.raises(DataError, match=message):
        SeaSurface().setup()


def test_no_files_are_read(tmp_path):
    with pytest.raises(DataError, match="reads no files"):
        SeaSurface().read_input(tmp_path / "sea.nc")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"past": 0}, r"`past` \(=0\) must be an integer from 1 to 18\."),
        ({"ahead": 7}, r"`ahead` \(=7\) must be an integer from 1 to 6\."),
        ({"crop": 433}, r"`crop` \(=433\) must be an integer from 1 to 432\."),
        ({"batch_size": 0}, r"`batch_size` \(=0\) must be an integer of at least 1\."),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SeaSurface(**options)
