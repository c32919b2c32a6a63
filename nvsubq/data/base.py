"""What every datamodule here shares: attributes, loaders, and what a report asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nvsubq.data.sample import Sample
from nvsubq.data.sampling import EpochSampler


class LateLoader(DataLoader):
    """A DataLoader whose workers start with the first batch that is taken.

    Lightning makes the iterator before it restores a checkpoint and calls `set_epoch`: torch's workers would
    then be loading epoch 0 already.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


class TrainLoader(LateLoader):
    """A LateLoader over an `EpochSampler` that knows how far the epoch is, so that a training can stop and
    go on between any two batches. Batches that workers have made ahead do not count: they are made again.
    """

    sampler: EpochSampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not isinstance(self.sampler, EpochSampler):  # `trainer.overfit_batches` puts another in its place
            yield from super().__iter__()
            return
        self._taken = self.sampler.position // self.batch_size  # type: ignore[operator]
        for batch in super().__iter__():
            self._taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and items taken from it; Lightning saves them with a checkpoint."""
        if not isinstance(self.sampler, EpochSampler):
            return {}
        items = getattr(self, "_taken", 0) * self.batch_size  # type: ignore[operator]
        return self.sampler.state_dict(min(items, self.sampler.num_samples))

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass goes on from there."""
        if not state:
            return
        self.sampler.load_state_dict(state)


class DataModule(L.LightningDataModule):
    """A LightningDataModule whose batches depend on `(seed, epoch, index)` alone.

    Subclasses set the attributes below and `build`, which returns the three data sets. The attributes are
    there after construction, so that a model can be built before anything heavy is loaded.

    Args:
        batch_size: items in a training batch.
        eval_batch_size: items in a batch of validation and test.
        num_workers: processes that load; batches do not depend on it.
        seed: of order, augmentation and crops.
        split_seed: of the split, and of what is fixed in validation and test.
    """

    name = "data"
    task = "classification"
    spatial_dims: int
    in_channels: int
    num_classes: int
    class_names: list[str]
    spatial_size: tuple[int, ...] | None = None
    provenance = ""

    def __init__(
        self, *, batch_size: int, eval_batch_size: int, num_workers: int, seed: int, split_seed: int
    ) -> None:
        super().__init__()
        for key, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
            ("split_seed", split_seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{key}` (={value!r}) must be an integer of at least {least}.")
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.seed, self.split_seed = seed, split_seed
        self._datasets: dict[str, Dataset] = {}

    @property
    def scored_classes(self) -> list[int]:
        """Segmentation classes whose mean Dice is `dice`: all but class 0 unless a set says otherwise."""
        return list(range(1, self.num_classes))

    def build(self) -> dict[str, Dataset]:
        """The data sets `train`, `val` and `test`. Training keys are `(epoch, index)`."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Loads the data once; every stage gets all splits."""
        if not self._datasets:
            self._datasets = self.build()

    def dataset(self, split: str) -> Dataset:
        """The data set of `split`: "train", "val" or "test"."""
        self.setup()
        if split not in self._datasets:
            raise ValueError(f"`split` (={split!r}) must be one of {', '.join(self._datasets)}.")
        return self._datasets[split]

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches; the order and every random draw follow from `(seed, epoch)`."""
        data = self.dataset("train")
        trainer = self.trainer
        sampler = EpochSampler(
            len(data),  # type: ignore[arg-type]
            seed=self.seed,
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
        )
        return self._loader(data, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader:
        """The validation items in their own order."""
        return self._loader(self.dataset("val"), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        """The test items in their own order."""
        return self._loader(self.dataset("test"), self.eval_batch_size)

    def _loader(self, data: Dataset, batch_size: int, sampler: EpochSampler | None = None) -> DataLoader:
        return (LateLoader if sampler is None else TrainLoader)(
            data,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Without its own generator a loader draws its base seed from torch's global stream: looking at
            # the data would change the training that follows.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def read_input(self, path: str | Path) -> Sample:
        """A user's file as a model of this data set expects it; a missing or broken file is a `DataError`."""
        raise NotImplementedError

    def display(self, image: Tensor) -> Tensor:
        """A normalised image `[C, *spatial]` with its intensities brought back to [0, 1], for pictures."""
        low, high = image.amin(), image.amax()
        return (image - low) / (high - low).clamp_min(1e-6)

    def baselines(self) -> dict[str, dict[str, float]]:
        """What simple methods reach on the test split: name -> metric -> value."""
        return {}

    def describe(self) -> dict[str, Any]:
        """What the data is, in plain values, for reports."""
        self.setup()
        return {
            "name": self.name,
            "provenance": self.provenance,
            "task": self.task,
            "spatial_dims": self.spatial_dims,
            "spatial_size": list(self.spatial_size) if self.spatial_size else None,
            "in_channels": self.in_channels,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "sizes": {split: len(data) for split, data in self._datasets.items()},  # type: ignore[arg-type]
            "split_seed": self.split_seed,
        }
