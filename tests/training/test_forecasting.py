"""ForecastingTask: masked errors, each item once, training through the command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from nvsubq.cli.main import main
from nvsubq.training import ForecastingTask


class Items(torch.utils.data.Dataset):
    """Three fields of one channel; the target is twice the field, on the last two of four steps."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.fields = torch.randn(3, 1, 4, 5, generator=generator)
        self.weights = torch.zeros(3, 4, 5)
        self.weights[:, 2:, :3] = 1

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int):
        return self.fields[i], 2 * self.fields[i], self.weights[i]


def trainer(**options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def test_rmse_is_that_of_all_weighted_cells():
    data = Items()
    task = ForecastingTask(nn.Identity(), class_names=["x"])
    loop = trainer()
    loop.test(task, DataLoader(data, batch_size=2), verbose=False)
    found = {name: float(value) for name, value in loop.callback_metrics.items()}
    squares = data.fields[:, 0, :, :3] ** 2
    assert found["test/rmse"] == pytest.approx(float(squares[:, 2:].mean().sqrt()), rel=1e-6)
    assert found["test/loss"] == pytest.approx(found["test/rmse"] ** 2, rel=1e-6)
    for month in (1, 2):
        expected = float(squares[:, month + 1].mean().sqrt())
        assert found[f"test/rmse_month_{month}"] == pytest.approx(expected, rel=1e-6)
    assert "test/rmse_month_3" not in found
    arrays = task.predictions()
    assert arrays["indices"].tolist() == [0, 1, 2]
    assert arrays["weights"].sum() == data.weights.sum()


def test_training_learns():
    torch.manual_seed(0)
    data = Items()
    task = ForecastingTask(
        nn.Conv2d(1, 1, 1), class_names=["x"], lr=0.1, weight_decay=0.0, schedule="constant"
    )
    loop = trainer(max_epochs=100)
    loop.fit(task, DataLoader(data, batch_size=3), DataLoader(data))
    assert float(loop.callback_metrics["val/rmse"]) < 0.1
    assert task.model.weight.item() == pytest.approx(2.0, abs=0.1)


def test_cells_without_weight_have_no_gradient():
    model = nn.Conv2d(1, 1, 1)
    task = ForecastingTask(model, class_names=["x"])
    task.log_epoch = lambda *_: None
    fields, targets, weights = (part[None] for part in Items()[0])
    task.training_step((fields, targets, weights), 0).backward()
    expected = model.weight.grad.clone()
    model.zero_grad()
    task.training_step((fields, targets + 100 * (1 - weights)[:, None], weights), 0).backward()
    assert torch.equal(model.weight.grad, expected)
    model.zero_grad()
    loss = task.training_step((fields, targets, torch.zeros_like(weights)), 0)  # a crop of land
    loss.backward()
    assert loss == 0


def test_wrong_shape_of_the_output():
    task = ForecastingTask(nn.Conv2d(1, 3, 1), class_names=["x"])
    fields, targets, _ = (part[None] for part in Items()[0])
    with pytest.raises(ValueError, match=r"\(shape \(1, 3, 4, 5\)\) must be \[1, 1, 4, 5\]"):
        task.checked(fields, targets)
    with pytest.raises(ValueError, match="must name at least one quantity"):
        ForecastingTask(nn.Identity(), class_names=[])


@pytest.mark.skipif(
    importlib.util.find_spec("iris_sample_data") is None, reason="nvsubq[ocean] is not installed"
)
def test_through_the_command_line(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = (
        "data.crop=12",
        "data.batch_size=1",
        "model.dims=[8]",
        "model.depths=[1]",
        "epochs=1",
        "threads=1",
    )
    limits = ("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1")
    assert main(["train", "experiment=ocean", *small, *limits]) == 0
    assert "persistence" in capsys.readouterr().out
    run = tmp_path / "runs" / "latest"
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["baselines"]["persistence"]["rmse"] > figures["baselines"]["climatology"]["rmse"]
    report = (run / "report.html").read_text()
    assert "test RMSE" in report
    assert main(["evaluate", str(run)]) == 0
    assert "The stored numbers are the same." in capsys.readouterr().out
