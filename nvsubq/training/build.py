"""From a config to its parts: datamodule first, then the model with what the data knows, then the task."""

from __future__ import annotations

import importlib.util
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from nvsubq.lazy_config import ConfigError, allow_targets, instantiate, validate
from nvsubq.training.run_name import check_name
from nvsubq.training.task import Task

FROM_DATA = ("spatial_dims", "in_channels", "num_classes")
"""What the datamodule decides of the model; its classes are `out_channels` where the config has that."""


# Networks of MONAI that `configs/model` has for comparison; exact, so that nothing else comes with them.
PEERS = ("monai.networks.nets.UNet", "monai.networks.nets.SegResNet")
allow_targets(*PEERS)


MODEL_FOR = {
    "classification": "backbone",
    "segmentation": "segmenter",
    "forecasting": "unet",
    "regression": "segmenter",
}
"""A model that fits the task, for the message where the task does not fit the data."""


def _model_keys(model: DictConfig) -> dict[str, str]:
    """The argument of the model for each of `FROM_DATA`."""
    keys = dict(zip(FROM_DATA, FROM_DATA, strict=True))
    if "out_channels" in list(model.keys()):  # `in model` is False for ???
        keys["num_classes"] = "out_channels"
    return keys


def check_config(config: DictConfig) -> None:
    """Reports every problem that can be seen before anything is built.

    Raises:
        ConfigError: with all problems.
    """
    copy: Any = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    # These come when the data is there; any number stands for them.
    for key in _model_keys(copy.model).values():
        if OmegaConf.is_missing(copy.model, key) or key not in copy.model:
            copy.model[key] = 1
    if copy.task.get("_target_") is not None:
        # The model and what the data says about classes are given as objects.
        copy.task["_partial_"] = True
    for node in (copy.get("logger") or {}).values():
        node["save_dir"] = "."
    validate(copy)
    _check_plain(config)
    _check_loggers(config)


LOGGERS = {"TensorBoardLogger": ("tensorboard", "tensorboardX"), "WandbLogger": ("wandb",)}
"""Packages that Lightning's loggers need, any one of them; they are imported when a run uses them."""


def _check_loggers(config: DictConfig) -> None:
    """A logger whose package is missing is known before any data is read."""
    for name, node in (config.get("logger") or {}).items():
        packages = LOGGERS.get(str(node.get("_target_")).rsplit(".", 1)[-1], ())
        if packages and not any(map(_is_installed, packages)):
            raise ConfigError(
                f"`logger` (={name}) needs the package {packages[0]!r}, which is not installed: "
                "pip install 'nvsubq[loggers]'"
            )


def _is_installed(package: str) -> bool:
    """Whether it can be imported; a folder of its name, as wandb makes one for its runs, is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


MOST_THREADS = 4096


def _check_length(config: DictConfig) -> None:
    """A training needs an end, and at least one epoch."""
    trainer = config.trainer
    if OmegaConf.is_missing(trainer, "max_epochs") or "max_epochs" not in trainer:
        return
    epochs, steps = trainer.max_epochs, trainer.get("max_steps", -1)
    whole = isinstance(epochs, int) and not isinstance(epochs, bool)
    if epochs is not None and not (whole and (epochs >= 1 or epochs == -1)):
        raise ConfigError(
            f"`trainer.max_epochs` (={epochs!r}) must be an integer of at least 1, or -1 or null "
            "with an end by max_steps or max_time."
        )
    if steps == 0:
        raise ConfigError(f"`trainer.max_steps` (={steps}) must be an integer of at least 1, or -1 or null.")
    batches = trainer.get("limit_train_batches")
    if batches == 0 and batches is not False:
        raise ConfigError(
            f"`trainer.limit_train_batches` (={batches}) must be null, an integer of at least 1, or a share "
            "above 0: a training needs a batch."
        )
    if epochs in (None, -1) and steps in (None, -1) and trainer.get("max_time") is None:
        raise ConfigError(
            f"`trainer.max_epochs` (={epochs}) gives no end: set it, or max_steps, or max_time."
        )


def _check_plain(config: DictConfig) -> None:
    """The keys at the top that are no nodes."""
    check_name(config.name)
    _check_length(config)
    seed, threads = config.seed, config.get("threads")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"`seed` (={seed!r}) must be an integer from 0 to 2**32 - 1.")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"`threads` (={threads!r}) must be null or an integer of at least 1.")
    if threads is not None and threads > MOST_THREADS:
        raise ConfigError(f"`threads` (={threads}) must be at most {MOST_THREADS}.")
    if config.test_with not in ("best", "last", None):
        raise ConfigError(f"`test_with` (={config.test_with!r}) must be best, last or null.")
    if not isinstance(config.get("resume", True), bool):
        raise ConfigError(f"`resume` (={config.resume!r}) must be true or false.")
    every_s, every_steps = (config.checkpoint.get(key) for key in ("every_s", "every_steps"))
    number = isinstance(every_s, (int, float)) and not isinstance(every_s, bool)
    if every_s is not None and not (number and every_s > 0):
        raise ConfigError(f"`checkpoint.every_s` (={every_s!r}) must be null or a number above 0.")
    whole = isinstance(every_steps, int) and not isinstance(every_steps, bool)
    if every_steps is not None and not (whole and every_steps >= 1):
        raise ConfigError(
            f"`checkpoint.every_steps` (={every_steps!r}) must be null or an integer of at least 1."
        )
    patience = config.early_stopping.patience
    if patience is not None and (isinstance(patience, bool) or not isinstance(patience, int) or patience < 0):
        raise ConfigError(
            f"`early_stopping.patience` (={patience!r}) must be null or an integer of at least 0."
        )


def build_datamodule(config: DictConfig) -> Any:
    """The datamodule of `config.data`; no data is loaded yet."""
    return instantiate(config.data)


def complete_model(config: DictConfig, datamodule: Any) -> None:
    """Writes what the data decides into `config.model`.

    Raises:
        ConfigError: the config has another value.
    """
    for attribute, key in _model_keys(config.model).items():
        value = getattr(datamodule, attribute)
        given = None if OmegaConf.is_missing(config.model, key) else config.model.get(key)
        if given is not None and given != value:
            raise ConfigError(
                f"`model.{key}` (={given}) does not fit the data, which has {attribute} {value}."
            )
        with open_dict(config.model):
            config.model[key] = value


def build_task(config: DictConfig, datamodule: Any) -> Task:
    """The task with its model. What the data decides is written into `config`: of the model, and a null tile.

    Raises:
        ConfigError: the task or the model is not for this data.
    """
    complete_model(config, datamodule)
    kind = config.task.get("_target_", "").rsplit(".", 1)[-1].removesuffix("Task").lower()
    if kind in MODEL_FOR and kind != datamodule.task:
        other = MODEL_FOR[datamodule.task]
        raise ConfigError(
            f"`task` is for {kind}, but the data ({type(datamodule).__name__}) is for {datamodule.task}: "
            f"use task={datamodule.task} model={other}."
        )
    late: dict[str, Any] = {"class_names": list(datamodule.class_names)}
    if datamodule.task == "segmentation":
        late["scored_classes"] = list(datamodule.scored_classes)
        if config.task.get("tile", ...) is None and datamodule.spatial_size is not None:
            config.task.tile = list(datamodule.spatial_size)
    if datamodule.task == "regression":
        late["readout"] = datamodule.readout
    return instantiate(config.task, model=instantiate(config.model), **late)


def core_target(config: DictConfig) -> str:
    """The dotted path of the core, or of the model where that has none of the config's core in it."""
    written = str(OmegaConf.to_container(config.model, resolve=False))
    node = config.core if "${core" in written and config.get("core") else config.model
    return str(node.get("_target_"))


def core_name(config: DictConfig) -> str:
    """The last part of `core_target`."""
    return core_target(config).rsplit(".", 1)[-1]
