"""RegressionTask: the error inside the readout, each item once, training through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from nvsubq.cli.main import main
from nvsubq.training import RegressionTask
from nvsubq.training.regression import SHOWN

READOUT = [[1, 3], [2, 5]]


class Items(torch.utils.data.Dataset):
    """Seven canvases of one channel; the answer is twice what lies in the readout."""

    def __init__(self) -> None:
        self.inputs = torch.randn(7, 1, 4, 5, generator=torch.Generator().manual_seed(0))
        self.answers = 2 * self.inputs[:, :, 1:3, 2:5]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int):
        return self.inputs[i], self.answers[i]


def trainer(**options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def copying(**options) -> RegressionTask:
    return RegressionTask(nn.Identity(), class_names=["x"], readout=READOUT, **options)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_error_is_that_of_the_readout_of_all_items(batch_size):
    data, task, loop = Items(), copying(), trainer()
    loop.test(task, DataLoader(data, batch_size=batch_size), verbose=False)
    found = {name: float(value) for name, value in loop.callback_metrics.items()}
    squares = data.inputs[:, 0, 1:3, 2:5].double().square().mean((1, 2))
    assert found["test/mse"] == pytest.approx(float(squares.mean()), rel=1e-6)
    assert found["test/loss"] == found["test/mse"]
    arrays = task.predictions()
    assert arrays["indices"].tolist() == list(range(7))
    np.testing.assert_allclose(arrays["squares"], squares.numpy(), rtol=1e-6)
    assert arrays["shown"].tolist() == list(range(SHOWN))
    assert np.array_equal(arrays["inputs"], data.inputs[:SHOWN].numpy())
    assert np.array_equal(arrays["targets"], data.answers[:SHOWN].numpy())
    assert np.array_equal(arrays["answers"], data.answers[:SHOWN].numpy() / 2)


def test_a_second_test_forgets_the_first():
    task, loop = copying(), trainer()
    for _ in range(2):
        loop.test(task, DataLoader(Items(), batch_size=2), verbose=False)
    assert task.predictions()["indices"].tolist() == list(range(7))


def test_items_of_other_processes_count_once(monkeypatch):
    """Two processes have items 0, 2, 4, 6 and 1, 3, 5, and one more that fills up the second."""
    data, task, loop = Items(), copying(), trainer()
    other = [(i, float(i)) for i in (1, 3, 5)] + [(7, 1e9)]
    monkeypatch.setattr(
        task, "test_indices", lambda first, count: (first + torch.arange(count)) * 2 if first < 4 else None
    )
    monkeypatch.setattr(task, "gathered", lambda rows: rows + other)
    monkeypatch.setattr(task, "test_size", lambda: 7)
    own = torch.utils.data.Subset(data, [0, 2, 4, 6])
    loop.test(task, DataLoader(own, batch_size=2), verbose=False)
    squares = data.inputs[::2, 0, 1:3, 2:5].double().square().mean((1, 2))
    assert float(loop.callback_metrics["test/mse"]) == pytest.approx((float(squares.sum()) + 9) / 7)
    assert task.predictions()["indices"].tolist() == list(range(7))


def test_training_learns():
    torch.manual_seed(0)
    model = nn.Conv2d(1, 1, 1)
    task = RegressionTask(
        model, class_names=["x"], readout=READOUT, lr=0.1, weight_decay=0.0, schedule="constant"
    )
    loop = trainer(max_epochs=60)
    loop.fit(task, DataLoader(Items(), batch_size=4), DataLoader(Items(), batch_size=2))
    assert float(loop.callback_metrics["val/mse"]) < 1e-3
    assert loop.callback_metrics["val/loss"] == loop.callback_metrics["val/mse"]
    assert model.weight.item() == pytest.approx(2.0, abs=0.1)


def test_cells_outside_the_readout_have_no_gradient():
    inputs = Items().inputs.requires_grad_()
    task = copying()
    task.log_epoch = lambda *_: None
    task.training_step((inputs, Items().answers), 0).backward()
    outside = torch.ones(4, 5, dtype=torch.bool)
    outside[1:3, 2:5] = False
    assert (inputs.grad[:, 0, outside] == 0).all()
    assert (inputs.grad[:, 0, ~outside] != 0).all()


def test_without_a_readout_every_cell_counts():
    task = RegressionTask(nn.Identity(), class_names=["x"])
    inputs = Items().inputs
    assert torch.equal(task.checked(inputs, inputs), inputs)


def test_wrong_shapes_are_named():
    inputs, answers = Items().inputs, Items().answers
    three = RegressionTask(nn.Conv2d(1, 3, 1), class_names=["x"], readout=READOUT)
    with pytest.raises(
        ValueError, match=r"output \(shape \(7, 3, 4, 5\)\) must be \[7, 1, 4, 5\]: 1 number "
    ):
        three.checked(inputs, answers)
    pooled = RegressionTask(nn.AvgPool2d(2), class_names=["x"])
    with pytest.raises(ValueError, match=r"output \(shape \(7, 1, 2, 2\)\) must be \[7, 1, 4, 5\]"):
        pooled.checked(inputs, answers)
    with pytest.raises(ValueError, match=r"targets \(shape \(7, 1, 4, 5\)\) must be \[7, 1, 2, 3\]"):
        copying().checked(inputs, inputs)
    with pytest.raises(ValueError, match=r"`readout` \(=\[\[1, 3\], \[2, 5\]\]\) must lie within .*\[4, 4\]"):
        copying().read(inputs[..., :4])
    with pytest.raises(ValueError, match="must lie within"):
        copying().read(inputs[..., 0])


@pytest.mark.parametrize(
    "readout", [[[3, 3]], [[-1, 3]], [[1, 2, 3]], [1, 3], [], [["a", "b"]], [[0.0, 1.0]]]
)
def test_bad_readouts(readout):
    with pytest.raises(ValueError, match="`readout`"):
        RegressionTask(nn.Identity(), class_names=["x"], readout=readout)


SMALL = (
    "data.batch_size=4", "data.test_items=8", "data.eval_batch_size=4", "model.dims=[8]", "model.depths=[1]",
    "threads=1", "trainer.max_steps=2", "trainer.limit_val_batches=1",
)  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        ("core=s5", "data.spatial_dims=1"),
        ("core=mamba2", "core.headdim=16", "core.d_state=32", "data.recall=mask_selection"),
        (
            "core=attention",
            "data.spatial_dims=3",
            "data.recall=color_conditioning",
            "model.mixer.bidirectional=true",
        ),
    ],
)  # fmt: skip
def test_through_the_command_line(options, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "experiment=spatial_recall", *SMALL, *options]) == 0
    assert "per-pixel mean" in capsys.readouterr().out
    run = tmp_path / "runs" / "latest"
    figures = json.loads((run / "metrics.json").read_text())
    assert (figures["steps"], figures["task"], figures["tested_with"]) == (2, "regression", "last")
    assert figures["baselines"]["constant"]["mse"] > figures["baselines"]["per-pixel mean"]["mse"]
    report = (run / "report.html").read_text()
    for text in ("test MSE", "lower is better", "per-pixel mean", "Answers", "4 test items: input, target"):
        assert text in report, text
    assert main(["evaluate", str(run), "--checkpoint", "last"]) == 0
    assert "The stored numbers are the same." in capsys.readouterr().out
    assert main(["compare", str(run)]) == 0
    assert "mse" in capsys.readouterr().out
