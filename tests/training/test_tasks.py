"""The two tasks: losses, metrics, and what they refuse."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nvsubq.training import ClassificationTask, SegmentationTask
from nvsubq.training.segmentation import dice_of, soft_dice_loss


def trainer() -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def classifier(**options) -> ClassificationTask:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    return ClassificationTask(model, class_names=["a", "b", "c"], **options)


def test_classification_metrics_are_those_of_all_items():
    torch.manual_seed(0)
    task = classifier()
    images, labels = torch.randn(23, 1, 4, 4), torch.randint(3, (23,))
    loader = DataLoader(TensorDataset(images, labels), batch_size=5)
    (found,) = trainer().test(task, loader, verbose=False)
    with torch.no_grad():
        logits = task(images)
    assert found["test/accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert found["test/loss"] == pytest.approx(float(F.cross_entropy(logits, labels)))
    arrays = task.predictions()
    assert arrays["indices"].tolist() == list(range(23))
    np.testing.assert_allclose(arrays["probabilities"], logits.softmax(1).numpy(), rtol=1e-6)
    worst = int(arrays["shown"][0])
    np.testing.assert_array_equal(arrays["images"][0], images[worst].numpy())


def test_label_smoothing_is_for_training_alone():
    task = classifier(label_smoothing=0.5)
    batch = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    task.log_epoch = task.log = lambda *args, **kwargs: seen.append(args)
    seen: list = []
    with torch.no_grad():
        smooth = task.training_step(batch, 0)
        task.validation_step(batch, 0)
        logits = task(batch[0])
    logged = {call[0]: call[1] for call in seen}
    torch.testing.assert_close(smooth, F.cross_entropy(logits, batch[1], label_smoothing=0.5))
    torch.testing.assert_close(logged["val/loss"], F.cross_entropy(logits, batch[1]))


def test_training_learns():
    torch.manual_seed(0)
    images = torch.randn(64, 1, 4, 4)
    labels = (images.mean((1, 2, 3)) > 0).long()
    task = classifier(lr=0.1, weight_decay=0.0)
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    fit = trainer()
    fit.fit_loop.max_epochs = 4
    fit.fit(task, loader, loader)
    assert float(fit.callback_metrics["val/accuracy"]) > 0.8


def test_dice_counts_cells_of_all_volumes_together():
    torch.manual_seed(0)
    task = SegmentationTask(nn.Conv2d(1, 3, 1), class_names=["back", "left side", "right"])
    images, labels = torch.randn(5, 1, 6, 7), torch.randint(3, (5, 6, 7))
    (found,) = trainer().test(task, DataLoader(TensorDataset(images, labels), batch_size=2), verbose=False)
    with torch.no_grad():
        predicted = task(images).argmax(1)

    def dice(number):
        return (
            2
            * float(((predicted == number) & (labels == number)).sum())
            / float((predicted == number).sum() + (labels == number).sum())
        )

    assert found["test/dice_left_side"] == pytest.approx(dice(1))
    assert found["test/dice"] == pytest.approx((dice(1) + dice(2)) / 2)
    assert "test/dice_back" not in found
    arrays = task.predictions()
    assert arrays["confusion"].sum() == labels.numel()
    worst = int(arrays["shown"][0])
    np.testing.assert_array_equal(arrays["label_0"], labels[worst].numpy())
    np.testing.assert_array_equal(arrays["prediction_0"], predicted[worst].numpy())
    assert arrays["prediction_0"].dtype == np.uint8


def test_segmentation_by_tiles_equals_whole_images():
    torch.manual_seed(0)
    model = nn.Conv3d(1, 2, 1)
    tiles = SegmentationTask(model, class_names=["a", "b"], tile=(4, 4, 4), overlap=0.5)
    whole = SegmentationTask(model, class_names=["a", "b"])
    volume = torch.randn(1, 1, 9, 6, 11)
    torch.testing.assert_close(tiles.probabilities(volume), whole.probabilities(volume))
    assert model.training


def test_soft_dice():
    labels = torch.randint(3, (2, 5, 5))
    perfect = 1e3 * F.one_hot(labels, 3).movedim(-1, 1).float()
    assert float(soft_dice_loss(perfect, labels)) == pytest.approx(0.0, abs=1e-6)
    assert float(soft_dice_loss(-perfect, labels)) > 0.7
    logits = torch.randn(2, 3, 5, 5, dtype=torch.float32, requires_grad=True)
    soft_dice_loss(logits, labels).backward()
    assert torch.isfinite(logits.grad).all()


def test_dice_of_an_absent_class_is_no_number():
    assert torch.isnan(dice_of(torch.tensor([[3, 0], [0, 0]]))[1])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": 0.0}, r"`lr` \(=0\.0\) must be a number above 0"),
        ({"lr": "fast"}, r"`lr` \(='fast'\) must be a number above 0"),
        ({"weight_decay": -1}, r"`weight_decay` \(=-1\) must be a number at least 0"),
        ({"betas": [0.9]}, r"`betas` \(=\[0\.9\]\) must be two numbers"),
        ({"betas": [0.9, 2]}, r"`betas\[1\]` \(=2\) must be a number at least 0\.0 and at most 1"),
        ({"schedule": "step"}, r"`schedule` \(='step'\) must be one of cosine, constant"),
        ({"warmup": 1.5}, r"`warmup` \(=1\.5\) must be a number"),
        ({"label_smoothing": -0.1}, r"`label_smoothing` \(=-0\.1\) must be a number"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        classifier(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scored_classes": [2]}, r"`scored_classes` \(=\[2\]\) must be class numbers below 2"),
        ({"tile_batch": 0}, r"`tile_batch` \(=0\) must be an integer of at least 1"),
        ({"overlap": 1.0}, r"`overlap` \(=1\.0\) must be a number"),
        ({"class_names": ["one"]}, r"`class_names` \(=\['one'\]\) must name at least two classes"),
    ],
)
def test_bad_segmentation_options(options, text):
    with pytest.raises(ValueError, match=text):
        SegmentationTask(nn.Conv2d(1, 2, 1), **{"class_names": ["a", "b"], **options})


def test_wrong_shape_of_logits():
    task = SegmentationTask(nn.Conv2d(1, 3, 1), class_names=["a", "b"])
    with pytest.raises(
        ValueError, match=r"\(shape \(1, 3, 4, 4\)\) must be \[1, 2, 4, 4\]: one logit for each class"
    ):
        task.loss(task(torch.zeros(1, 1, 4, 4)), torch.zeros(1, 4, 4, dtype=torch.long))


def test_cosine_needs_an_end():
    task = classifier()
    fit = trainer()
    fit.fit_loop.max_epochs = -1
    loader = DataLoader(TensorDataset(torch.zeros(4, 1, 4, 4), torch.zeros(4, dtype=torch.long)))
    with pytest.raises(ValueError, match=r"`schedule` \(='cosine'\) needs an end"):
        fit.fit(task, loader, loader)
