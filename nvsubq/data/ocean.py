"""Sea-surface temperature on (time, latitude, longitude): forecast the next months from the last ones."""

from __future__ import annotations

import importlib.util
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nvsubq.data.base import DataModule
from nvsubq.data.errors import DataError
from nvsubq.data.sample import Sample
from nvsubq.data.sampling import Key, generator, split_key

YEAR = 12
TRAIN_MONTHS, VAL_MONTHS = 36, 6
FILE = Path("sample_data") / "ostia_monthly.nc"


class SeaSurface(DataModule):
    """Monthly sea-surface temperature around the equator (OSTIA), April 2006 to September 2010.

    54 months x 18 latitudes (5 S to 4.5 N) x 432 longitudes, all around the globe; land is masked. An item
    is a window of `past` months that are known and `ahead` that are not, on one lattice `[T, 18, 432]`.
    Training takes windows within the first 36 months, validation forecasts the next 6, test the last 12. It
    is little data with one El Niño in it: a score shows that a model learns, not how well the sea can be
    forecast.

    Channels of a cell: the anomaly in kelvin (0 where it is not known), the climatology, whether the cell is
    known, whether it is sea, sine and cosine of the time of year. The climatology is the mean of the same
    calendar month over the training months outside of the window, so nothing of an answer is in it. The
    target is what must be added, in kelvin, to a persisting anomaly: the climatology of the month plus the
    last known anomaly. Weights are 1 on the sea of the months ahead, else 0.

    Args:
        batch_size, eval_batch_size, num_workers, seed: as `DataModule`; there is one split, by time.
        past: known months of a window.
        ahead: months to forecast; at most 6.
        crop: longitudes of a training window, from a random one on, around the globe; evaluation has all 432.
        windows_per_epoch: training windows.

    Example:
        >>> data = SeaSurface(batch_size=2, crop=48)  # doctest: +SKIP
        >>> fields, targets, weights = next(iter(data.train_dataloader()))  # doctest: +SKIP
        >>> fields.shape, targets.shape, weights.shape  # doctest: +SKIP
        (torch.Size([2, 6, 15, 18, 48]), torch.Size([2, 1, 15, 18, 48]), torch.Size([2, 15, 18, 48]))
    """

    name = "sea-surface temperature"
    task = "forecasting"
    provenance = (
        "Monthly OSTIA sea-surface temperature, 2006 to 2010, from iris-sample-data (Crown copyright, Open "
        "Government Licence); split by time. Few months: it shows that a model learns, no forecasting skill."
    )
    spatial_dims, in_channels, num_classes = 3, 6, 1

    def __init__(
        self,
        *,
        batch_size: int = 4,
        eval_batch_size: int = 2,
        num_workers: int = 0,
        seed: int = 0,
        past: int = 12,
        ahead: int = 3,
        crop: int = 108,
        windows_per_epoch: int = 64,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            split_seed=0,
        )
        # More than two years and a half would leave a training window no other year for its climatology.
        for key, value, least, most in (
            ("past", past, 1, 18),
            ("ahead", ahead, 1, VAL_MONTHS),
            ("crop", crop, 1, 432),
            ("windows_per_epoch", windows_per_epoch, 1, 2**31),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"`{key}` (={value!r}) must be an integer from {least} to {most}.")
        self.past, self.ahead, self.crop, self.windows_per_epoch = past, ahead, crop, windows_per_epoch
        self.class_names = ["temperature"]
        self.spatial_size = (past + ahead, 18, crop)

    def build(self) -> dict[str, Dataset]:
        months = len(load_months()[0])
        val, test = TRAIN_MONTHS, TRAIN_MONTHS + VAL_MONTHS
        return {
            "train": RandomWindows(self, range(self.past, val - self.ahead + 1)),
            "val": WholeWindows(self, range(val, test - self.ahead + 1)),
            "test": WholeWindows(self, range(test, months - self.ahead + 1)),
        }

    def window(self, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The item that forecasts the months from `first` on: fields `[6, T, Y, X]`, targets, weights."""
        temperature, sea = load_months()
        begin, end = first - self.past, first + self.ahead
        climatology = climatology_without(begin, end)
        normal = climatology[np.arange(begin, end) % YEAR]
        anomaly = (temperature[begin:end] - normal) * sea
        known = np.zeros_like(anomaly)
        known[: self.past] = sea
        phase = 2 * math.pi * (np.arange(begin, end) % YEAR) / YEAR
        season = np.stack([np.sin(phase), np.cos(phase)])[..., None, None] * np.ones(sea.shape)
        fields = [
            anomaly * known,
            (normal - 300.0) / 3.0 * sea,
            known,
            np.broadcast_to(sea, known.shape),
            *season,
        ]
        weights = (1 - known) * sea
        target = (anomaly - anomaly[self.past - 1]) * weights
        return (
            np.stack(fields).astype(np.float32),
            target[None].astype(np.float32),
            weights.astype(np.float32),
        )

    def read_input(self, path: str | Path) -> Sample:
        """There is no format for a user's months.

        Raises:
            DataError: always.
        """
        raise DataError(f"{path}: SeaSurface forecasts the months that its package holds and reads no files.")

    def baselines(self) -> dict[str, dict[str, float]]:
        """Test RMSE in kelvin of the last month, the climatology, and that plus the last anomaly."""
        temperature, sea = load_months()
        normal = climatology_without(0, 0)
        errors: dict[str, list[np.ndarray]] = {"persistence": [], "climatology": [], "persisting anomaly": []}
        for first in self.dataset("test").firsts:  # type: ignore[attr-defined]
            months = np.arange(first, first + self.ahead) % YEAR
            last, truth = temperature[first - 1], temperature[first : first + self.ahead]
            guesses = {
                "persistence": np.broadcast_to(last, truth.shape),
                "climatology": normal[months],
                "persisting anomaly": normal[months] + last - normal[(first - 1) % YEAR],
            }
            for name, guess in guesses.items():
                errors[name].append(((guess - truth) ** 2)[:, sea > 0].mean(1))  # (ahead)
        return {name: rmse_scores(np.mean(found, 0)) for name, found in errors.items()}


def rmse_scores(mean_squares: np.ndarray) -> dict[str, float]:
    """RMSE over all months ahead and of each, from the mean squared error of each.

    Example:
        >>> rmse_scores(np.array([1.0, 4.0]))
        {'rmse': 1.5811388300841898, 'rmse_month_1': 1.0, 'rmse_month_2': 2.0}
    """
    months = {f"rmse_month_{i}": float(value) for i, value in enumerate(np.sqrt(mean_squares), 1)}
    return {"rmse": float(np.sqrt(mean_squares.mean())), **months}


class RandomWindows(Dataset):
    """Windows within the training months; window `(epoch, index)` is a function of `(seed, epoch, index)`.

    Args:
        data: makes the window of a month.
        firsts: months that a forecast may begin with.
    """

    def __init__(self, data: SeaSurface, firsts: range) -> None:
        self.data, self.firsts = data, firsts

    def __len__(self) -> int:
        return self.data.windows_per_epoch

    def __getitem__(self, key: int | Key) -> tuple[Tensor, ...]:
        data = self.data
        rng = generator(data.seed, "window", *split_key(key))
        parts = data.window(self.firsts[int(rng.integers(len(self.firsts)))])
        around = parts[0].shape[-1]
        place = (int(rng.integers(around)) + np.arange(data.crop)) % around
        return tuple(torch.from_numpy(np.ascontiguousarray(part[..., place])) for part in parts)


class WholeWindows(Dataset):
    """All longitudes of every window in turn.

    Args:
        data: makes the window of a month.
        firsts: months that a forecast begins with.
    """

    def __init__(self, data: SeaSurface, firsts: range) -> None:
        self.data, self.firsts = data, firsts

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, key: int | Key) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(part) for part in self.data.window(self.firsts[split_key(key)[1]]))


@lru_cache(maxsize=1)
def load_months() -> tuple[np.ndarray, np.ndarray]:
    """Temperature `[54, 18, 432]` float64 in kelvin (0 on land) and sea `[18, 432]` (1 or 0), read-only.

    Raises:
        DataError: iris-sample-data or h5py is not installed, or the package lacks the file.
    """
    lacking = [name for name in ("iris_sample_data", "h5py") if importlib.util.find_spec(name) is None]
    if lacking:
        raise DataError(
            f"SeaSurface needs {' and '.join(lacking).replace('_', '-')}, which is not installed: "
            "pip install 'nvsubq[ocean]'."
        )
    import h5py

    found = importlib.util.find_spec("iris_sample_data")
    assert found is not None
    assert found.origin is not None
    file = Path(found.origin).parent / FILE
    if not file.is_file():
        raise DataError(f"{file}: no such file; iris-sample-data 2.5 has it.")
    with h5py.File(file) as content:  # NetCDF-4 is HDF5
        stored = content["surface_temperature"]
        temperature = np.asarray(stored[...], dtype=np.float64)
        land = (temperature == float(stored.attrs["_FillValue"][0])).any(0)
    temperature[:, land] = 0.0
    sea = (~land).astype(np.float64)
    temperature.setflags(write=False)
    sea.setflags(write=False)
    return temperature, sea


@lru_cache(maxsize=128)
def climatology_without(begin: int, end: int) -> np.ndarray:
    """The mean `[12, 18, 432]` of each calendar month over the training months outside of [begin, end)."""
    temperature, _ = load_months()
    months = [m for m in range(TRAIN_MONTHS) if not begin <= m < end]
    means = [temperature[[m for m in months if m % YEAR == calendar]].mean(0) for calendar in range(YEAR)]
    return np.stack(means)
