"""Training: Lightning tasks, the run folder, and loading a run again. Names resolve on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvsubq.training.classification import ClassificationTask
    from nvsubq.training.forecasting import ForecastingTask
    from nvsubq.training.load import CheckpointError, LoadedRun, load_run
    from nvsubq.training.regression import RegressionTask
    from nvsubq.training.runner import train
    from nvsubq.training.segmentation import SegmentationTask

_HOME = {
    "CheckpointError": "load",
    "ClassificationTask": "classification",
    "ForecastingTask": "forecasting",
    "LoadedRun": "load",
    "RegressionTask": "regression",
    "SegmentationTask": "segmentation",
    "load_run": "load",
    "train": "runner",
}

__all__ = [
    "CheckpointError",
    "ClassificationTask",
    "ForecastingTask",
    "LoadedRun",
    "RegressionTask",
    "SegmentationTask",
    "load_run",
    "train",
]


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import: what only cleans up a folder or reads a config does without it.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
