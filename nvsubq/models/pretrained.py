"""Models as folders: weights as safetensors, and beside them the config that builds the model, as YAML."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from nvsubq.lazy_config import ConfigError, from_yaml, instantiate, to_yaml
from nvsubq.models.recorded import recorded

__all__ = ["CONFIG", "WEIGHTS", "Pretrained", "from_pretrained", "save_pretrained"]

CONFIG, WEIGHTS = "config.yaml", "model.safetensors"

M = TypeVar("M", bound="Pretrained")


class Pretrained(nn.Module):
    """A module that remembers the config it was built from, so that a folder can hold it.

    Subclasses need nothing more than a signature; factories among their arguments (classes, functions,
    ``functools.partial``, lazy configs) become nodes.
    """

    _built_from: dict[str, Any] | str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        build = cls.__init__

        @functools.wraps(build)
        def init(self: Pretrained, *args: Any, **arguments: Any) -> None:
            build(self, *args, **arguments)
            if type(self) is cls:
                self._built_from = recorded(cls, build, (self, *args), arguments)

        cls.__init__ = init  # type: ignore[assignment, method-assign]

    @property
    def config(self) -> DictConfig:
        """The node that builds this model anew, with other weights.

        Raises:
            ConfigError: an argument that no config can name, a lambda for one.
        """
        built_from = self._built_from
        if isinstance(built_from, str):
            raise ConfigError(f"This {type(self).__name__} has no config: {built_from}")
        return OmegaConf.create(built_from)

    def _remember(self, **changed: Any) -> None:
        """Put arguments into the config of which something changed after the model was built."""
        built_from = vars(self).get("_built_from")
        if isinstance(built_from, dict):
            self._built_from = {**built_from, **changed}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.yaml` into `folder`, which is made where it is missing."""
        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls: type[M], folder: str | Path, *, device: torch.device | str = "cpu") -> M:
        """The model in `folder`, in evaluation mode (see `nvsubq.models.from_pretrained`)."""
        model = from_pretrained(folder, device=device)
        if not isinstance(model, cls):
            raise TypeError(f"{folder} holds a {type(model).__name__}, not a {cls.__name__}.")
        return model


def save_pretrained(model: Pretrained, folder: str | Path) -> None:
    """Write a model's weights and config into `folder`.

    Raises:
        ConfigError: an argument of the model that no config can name.
    """
    text = to_yaml(model.config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / WEIGHTS))
    (folder / CONFIG).write_text(text, encoding="utf-8")


def from_pretrained(folder: str | Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """Build the model in `folder` and load its weights, of the dtypes that were saved; in evaluation mode.

    Nothing is fetched, and nothing runs that the allow-list does not name (`nvsubq.allow_targets`).

    Raises:
        FileNotFoundError: `folder` lacks one of the two files.
        ConfigError: the config names what is not allowed, or does not build a module.
        ValueError: the weights are no safetensors file.
        RuntimeError: the weights are another model's.

    Example:
        >>> import tempfile
        >>> from nvsubq import NDBackbone, NDMixer
        >>> from nvsubq.cores import Mamba
        >>> model = NDBackbone(1, 1, 3, depths=(1,), dims=(8,), mixer=functools.partial(NDMixer, Mamba))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     twin = from_pretrained(folder)
        >>> x = torch.randn(1, 1, 16)
        >>> torch.equal(twin(x), model.eval()(x))
        True
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}: `save_pretrained` writes {CONFIG} and {WEIGHTS}."
            )
    model = instantiate(from_yaml(folder / CONFIG))
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{folder / CONFIG} builds a {type(model).__name__}, not a module.")
    try:
        _adopt_dtypes(model, folder / WEIGHTS)
        model = model.to(device)
        load_model(model, str(folder / WEIGHTS), device=str(device))
    except SafetensorError as error:  # a pickle under that name, too: it is not read as one
        raise ValueError(f"{folder / WEIGHTS} cannot be read as safetensors: {error}.") from error
    return model.eval()


def _adopt_dtypes(model: nn.Module, file: Path) -> None:
    """Give the floating-point tensors of `model` the dtypes that they have in `file`."""
    with safe_open(file, "pt") as stored:
        own = model.state_dict(keep_vars=True)
        for name in own.keys() & set(stored.keys()):
            dtype = stored.get_tensor(name).dtype
            if dtype.is_floating_point and own[name].is_floating_point():
                own[name].data = own[name].data.to(dtype)
