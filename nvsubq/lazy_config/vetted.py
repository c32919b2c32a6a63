"""What a config may name of the packages that are on the allow-list by default.

An entry such as ``lightning.*`` says whose code may be named; these lists say which of it: what builds a part
of a model or of a training, and on being called starts nothing, unpickles nothing and writes no file. What is
not here is refused: a function that is added to one of the packages is no target until someone lists it.
"""

from __future__ import annotations

import inspect
from typing import Any

# Classes, by the module that defines them or by name. Building one of them is all that a config does with it.
CLASSES = (
    "nvsubq.compat.",
    "nvsubq.cores.",
    "nvsubq.data.",
    "nvsubq.models.",
    "nvsubq.nd.",
    # Not all of nvsubq.training: there are classes that write a run's folder.
    "nvsubq.training.classification.",
    "nvsubq.training.forecasting.",
    "nvsubq.training.fsdp.",
    "nvsubq.training.nan_watch.",
    "nvsubq.training.regression.",
    "nvsubq.training.segmentation.",
    "nvsubq.training.state_norm.",
    "nvsubq.training.watch.",
    "torch.nn.",
    "torch.optim.",
    "lightning.pytorch.accelerators.",
    "lightning.pytorch.callbacks.",
    # By name: beside CSVLogger lies a class that empties a log folder as soon as it is built.
    "lightning.pytorch.loggers.csv_logs.CSVLogger",
    "lightning.pytorch.loggers.tensorboard.TensorBoardLogger",
    "lightning.pytorch.loggers.wandb.WandbLogger",
    "lightning.pytorch.plugins.layer_sync.",
    "lightning.pytorch.plugins.precision.",
    "lightning.pytorch.profilers.",
    "lightning.pytorch.strategies.",
    "lightning.pytorch.trainer.trainer.Trainer",
    # Not audio, multimodal, text and most of image: metrics there fetch and load networks.
    "torchmetrics.aggregation.",
    "torchmetrics.classification.",
    "torchmetrics.clustering.",
    "torchmetrics.collections.",
    "torchmetrics.image.psnr.",
    "torchmetrics.image.ssim.",
    "torchmetrics.nominal.",
    "torchmetrics.regression.",
    "torchmetrics.retrieval.",
    "torchmetrics.segmentation.",
    "torchmetrics.wrappers.",
    "mamba_ssm.Mamba",
    "mamba_ssm.Mamba2",
    "mamba_ssm.models.",
    "mamba_ssm.modules.",
    "mamba_ssm.ops.",
)

# Functions of a module, which compute on tensors, shapes or modules. Never a method: through its class, with
# an object as `self`, a config could call whatever the object can do (save, load, apply, ...).
FUNCTIONS = (
    "nvsubq.nd.curves.",
    "nvsubq.nd.orders.",
    "torch.nn.functional.",
    "torch.nn.init.",
    "torch.nn.utils.parametrizations.",
    "torchmetrics.functional.classification.",
    "torchmetrics.functional.regression.",
    "torchmetrics.functional.segmentation.",
)


def is_method(target: Any) -> bool:
    """Whether a callable was defined in a class: bound or not, written in Python or in C."""
    if isinstance(target, type):
        return False
    home = getattr(target, "__qualname__", ".").rpartition(".")[0]
    # A function that another one made has a home as well, which is no class: torch.nn.functional.max_pool2d.
    return inspect.ismethod(target) or not (home == "" or home.endswith("<locals>"))


def is_vetted(own: str, target: Any) -> bool:
    """Whether a class or a function that was defined as `own` is on the lists."""
    if isinstance(target, type):
        return _within(own, CLASSES)
    return not is_method(target) and _within(own, FUNCTIONS)


def may_hold(module: str) -> bool:
    """Whether a module defines something of the lists, or is a package on the way to one that does."""
    below = f"{module}."
    return any(below.startswith(entry) or entry.startswith(below) for entry in (*CLASSES, *FUNCTIONS))


def _within(own: str, entries: tuple[str, ...]) -> bool:
    return any(own == entry or (entry.endswith(".") and own.startswith(entry)) for entry in entries)
