"""Callbacks that watch a training: what they log is right, and a NaN is traced to its layer."""

from __future__ import annotations

import csv
import errno
import math
import os
import time
from pathlib import Path

import pytest
import torch
from crash_driver import CONFIG
from hydra import compose, initialize_config_dir
from torch import nn

from nvsubq import NDMixer
from nvsubq.cli.paths import config_dir
from nvsubq.cores import RGLRU, Attention
from nvsubq.lazy_config import instantiate
from nvsubq.training import train
from nvsubq.training.state_norm import state_norms


def composed(root: Path, *overrides: str):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", overrides=[*CONFIG, "epochs=2", f"paths.runs={root}", *overrides])


def run(root: Path, *overrides: str) -> Path:
    return Path(train(composed(root, *overrides), root / "a")["folder"])


def test_all_callbacks(tmp_path):
    start = time.perf_counter()
    options = ("checkpoint.every_steps=3", "callbacks.throughput.every_n_steps=4")
    folder = run(tmp_path, "callbacks=all", *options)
    seconds = time.perf_counter() - start
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == 2
    for row in rows:
        phases = [row[f"time/{phase}_s"] for phase in ("data", "forward", "backward", "step")]
        assert min(phases) > 0
        assert row["time/validation_s"] > 0
        assert row["time/checkpoint_s"] > 0
        assert 0 < row["gradient/norm"] <= row["gradient/norm_max"] * (1 + 1e-6)
        assert 0 < row["state/norm"] <= row["state/norm_max"] * (1 + 1e-6)
        assert row["throughput/cells_per_s"] == pytest.approx(64 * row["throughput/items_per_s"], rel=1e-5)
        assert row["memory/peak_bytes"] > 2**20
    # No second counts for two phases.
    assert sum(value for row in rows for key, value in row.items() if key.startswith("time/")) < seconds


def test_watching_changes_no_bit(tmp_path):
    weights = []
    for name in ("none", "all"):
        folder = run(tmp_path / name, f"callbacks={name}")
        weights.append(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_gradient_norm_is_that_of_all_gradients():
    from nvsubq.training.nan_watch import gradient_norm

    module = nn.Linear(3, 2)
    assert gradient_norm(module) == 0.0
    module.weight.grad, module.bias.grad = torch.full((2, 3), 2.0), torch.full((2,), 1.0)
    assert gradient_norm(module) == pytest.approx(math.sqrt(6 * 4 + 2))


@pytest.mark.parametrize("scan", ["row_major", "hilbert"])
def test_state_norm_is_that_of_the_walk(scan):
    torch.manual_seed(0)
    mixer = NDMixer(RGLRU, d_model=8, bidirectional=True, scan=scan)
    field = torch.randn(2, 4, 4, 8)
    found = state_norms(nn.Sequential(mixer), field)
    assert len(found) == 2
    # With the cells of the walk in memory order, a plain walk ends in the same state.
    from nvsubq.nd.tables import order_table

    cells = field.flatten(1, 2)
    order = torch.arange(16)
    if scan != "row_major":
        order = order_table(mixer.paths[0].order, field.shape[1:-1], cells.device, False).long()
    for norm, core, walk in zip(
        found, (mixer.core_layer, mixer.core_layer_rev), (order, order.flip(0)), strict=True
    ):
        cache = core.allocate_inference_cache(2, 16)
        with torch.no_grad():
            core(cells[:, walk], inference_cache=cache)
        assert norm == pytest.approx(float(cache["lrnn_state"].pow(2).mean().sqrt()), rel=1e-5)


def test_attention_has_no_state():
    assert state_norms(NDMixer(Attention, d_model=8), torch.randn(1, 3, 3, 8)) == []


class Poison(nn.Module):
    """Passes on what it gets, and spoils the `at`th training step on the way there or back."""

    def __init__(self, at: int, backward: bool) -> None:
        super().__init__()
        self.at, self.backward, self.steps = at, backward, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training and torch.is_grad_enabled()
        if self.steps < self.at or not self.training:
            return x
        return x + torch.sqrt(x * 0) if self.backward else x / 0


def poison(monkeypatch: pytest.MonkeyPatch, at: int, backward: bool) -> None:
    """Every backbone that is built from here on has a `Poison` behind its first mixer."""
    from nvsubq.training import build

    def poisoned(node, **late):
        built = instantiate(node, **late)
        if "NDBackbone" in str(node.get("_target_")):
            built.blocks[0].mixer = nn.Sequential(built.blocks[0].mixer, Poison(at, backward))
        return built

    monkeypatch.setattr(build, "instantiate", poisoned)


@pytest.mark.parametrize("backward", [False, True])
def test_nan_is_traced_to_its_layer(backward, tmp_path, monkeypatch):
    poison(monkeypatch, 5, backward)
    with pytest.raises(FloatingPointError) as caught:
        run(tmp_path)
    message = str(caught.value)
    assert "(step 5, epoch 1, batch 5): training diverged." in message
    what = "the gradient through" if backward else "the output of"
    assert f"It came from {what} model.blocks.0.mixer.1 (Poison)." in message
    kept = torch.load(tmp_path / "a" / "nan_batch.pt", weights_only=True)
    assert (kept["batch_idx"], kept["epoch"], kept["step"]) == (4, 0, 4)
    assert kept["batch"][0].shape == (16, 1, 8, 8)
    assert all(bool(torch.isfinite(value).all()) for value in kept["state_dict"].values())


@pytest.mark.parametrize("every", [1, 2])
def test_nan_among_added_gradients_is_that_of_its_batch(every, tmp_path, monkeypatch):
    """Batch 5 is the first of the third step, which both look at; batch 6 would be the one that steps."""
    poison(monkeypatch, 5, backward=True)
    with pytest.raises(FloatingPointError) as caught:
        run(tmp_path, "trainer.accumulate_grad_batches=2", f"callbacks.nan_watch.every_n_steps={every}")
    message = str(caught.value)
    assert "(step 3, epoch 1, batch 5): training diverged." in message
    assert "It came from the gradient through model.blocks.0.mixer.1 (Poison)." in message
    assert torch.load(tmp_path / "a" / "nan_batch.pt", weights_only=True)["batch_idx"] == 4


def test_a_full_disk_does_not_hide_the_nan(tmp_path, monkeypatch):
    from nvsubq.training import nan_watch

    def full(file, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    poison(monkeypatch, 5, backward=False)
    monkeypatch.setattr(nan_watch, "write_whole", full)
    with pytest.raises(FloatingPointError) as caught:
        run(tmp_path)
    message = str(caught.value)
    assert "It came from the output of model.blocks.0.mixer.1 (Poison)." in message
    file = tmp_path / "a" / "nan_batch.pt"
    assert f"Batch and weights could not be written to {file}: No space left on device." in message


def test_nan_in_the_batch_and_in_a_parameter(tmp_path, monkeypatch):
    from nvsubq.data.images import Images
    from nvsubq.training.nan_watch import NaNWatch

    served = Images.__getitems__

    def spoilt(self, keys):
        items = served(self, keys)
        items[0][0].fill_(math.nan)
        return items

    monkeypatch.setattr(Images, "__getitems__", spoilt)
    with pytest.raises(FloatingPointError, match=r"It came from the batch: it holds values"):
        run(tmp_path)
    monkeypatch.undo()

    def spoil(self, trainer, pl_module):
        next(pl_module.model.parameters()).data.fill_(math.inf)

    monkeypatch.setattr(NaNWatch, "on_train_start", spoil, raising=False)
    with pytest.raises(FloatingPointError, match=r"It came from the parameter model\.\S+: an earlier step"):
        run(tmp_path / "other")


@pytest.mark.parametrize("name", ["throughput", "gradient_norm", "nan_watch"])
def test_options(name, tmp_path):
    with pytest.raises(ValueError, match=r"`every_n_steps` \(=0\) must be an integer of at least 1\."):
        run(tmp_path, f"callbacks={name}", f"callbacks.{name}.every_n_steps=0")
    assert not (tmp_path / "a").exists()
