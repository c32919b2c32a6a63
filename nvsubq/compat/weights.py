"""Other packages' weights into our cores: `load_weights`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nvsubq.cores import RGLRU, S5, S7, Mamba, Mamba2

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class LoadedWeights:
    """What `load_weights` did.

    Args:
        source: the package whose rules were used.
        renamed: names in the state dict that are other than those in the core, with these.
        left_out: names that were not needed, with the reason.
    """

    source: str
    renamed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def load_weights(
    core: nn.Module, state_dict: Mapping[str, Tensor], source: str = "auto", *, prefix: str | None = None
) -> LoadedWeights:
    """Load the weights of another package's layer into a core, all of them or none.

    Args:
        core: `Mamba`, `Mamba2`, `S5`, `S7` or `RGLRU`, with the sizes of the layer that was saved.
        state_dict: of that layer, or of a model: then the names of one layer are chosen by `prefix`.
        source: "mamba_ssm", "huggingface" (its Mamba and Mamba2 mixers), "lrnnx", "lite_mamba", "nvsubq", or
            "auto", which looks at the names.
        prefix: what the names of the layer begin with, "backbone.layers.0.mixer." for one. None takes what
            all names have in common.

    Returns:
        What was renamed, and what was left out and why.

    Raises:
        ValueError: an unknown source, one that has no such core, or weights that do not fit; the message
            lists every name that is missing, has no place or another shape, and the core is as it was.

    Example:
        >>> from nvsubq.cores import Mamba
        >>> core, other = Mamba(8), Mamba(8)
        >>> saved = {f"layers.0.mixer.{name}": weight for name, weight in other.state_dict().items()}
        >>> report = load_weights(core, saved)
        >>> report.source, report.renamed["layers.0.mixer.A_log"], report.left_out
        ('mamba_ssm', 'A_log', {})
    """
    kind = next((cls for cls in _CORES if isinstance(core, cls)), None)
    if kind is None:
        raise ValueError(f"`core` (a {type(core).__name__}) must be one of {_names(_CORES)}.")
    if source != "auto" and source not in _SOURCES:
        raise ValueError(f"`source` (={source!r}) must be one of {', '.join(['auto', *_SOURCES])}.")
    prefix = _common_prefix(state_dict) if prefix is None else prefix
    given = {name[len(prefix) :]: weight for name, weight in state_dict.items() if name.startswith(prefix)}
    if not given:
        raise ValueError(
            f"`prefix` (={prefix!r}) begins none of the {len(state_dict)} names in `state_dict`."
        )
    source = _guess(core, given) if source == "auto" else source
    if kind not in _SOURCES[source]:
        raise ValueError(f"`source` (={source!r}) has no {kind.__name__}, only {_names(_SOURCES[source])}.")
    adapted, left_out = _SOURCES[source][kind](core, given)
    _check(core, adapted, source)
    core.load_state_dict(adapted)
    return LoadedWeights(
        source,
        {prefix + name: name for name in given if prefix and name in adapted},
        {prefix + name: reason for name, reason in left_out.items()},
    )


def _common_prefix(state_dict: Mapping[str, Tensor]) -> str:
    """What all names begin with, up to a dot, before the part that names a parameter of a core."""
    names = list(state_dict)
    if not names:
        raise ValueError("`state_dict` is empty.")
    parts = [name.split(".") for name in names]
    shared: list[str] = []
    for level in zip(*(p[:-1] for p in parts), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return "".join(f"{part}." for part in shared)


def _check(core: nn.Module, given: Weights, source: str) -> None:
    own = core.state_dict()
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} has no place" for name in given if name not in own]
    problems += [
        f"{name} is {list(given[name].shape)}, the core's {list(weight.shape)}"
        for name, weight in own.items()
        if name in given and given[name].shape != weight.shape
    ]
    if problems:
        listed = "; ".join(problems)
        raise ValueError(f"`state_dict` does not fit {type(core).__name__} (source {source}): {listed}.")


Adapted = tuple[Weights, dict[str, str]]


def _as_they_are(core: Any, given: Weights) -> Adapted:
    return given, {}


def _event_mamba(core: Mamba, given: Weights) -> Adapted:
    """lrnnx has a projection for events in every model; it uses its bias alone, and only with events."""
    left_out = {}
    if "dtA_proj.weight" in given:
        left_out["dtA_proj.weight"] = "lrnnx does not use it"
    if "dtA_proj.bias" in given and not core.event_mode:
        left_out["dtA_proj.bias"] = "the core has event_mode=False"
    return {name: weight for name, weight in given.items() if name not in left_out}, left_out


def _dilated_mamba(core: Mamba, given: Weights) -> Adapted:
    """lite-mamba names the first branch twice, and has a gate where there is one branch too."""
    if len(core.conv_dilations) > 1:
        return given, {}
    left_out = {name: "another name of conv1d" for name in given if name.startswith("conv1d_layers.0.")}
    if "conv_gates" in given and given["conv_gates"].numel() == 1:
        left_out["conv_gates"] = "the share of one branch is 1"
    return {name: weight for name, weight in given.items() if name not in left_out}, left_out


def _residual_s7(core: S7, given: Weights) -> Adapted:
    if not core.residual or core.variant != "selective":
        raise ValueError(
            f"`core` (an S7 with variant={core.variant!r}, residual={core.residual}) must be selective and "
            "have residual=True for weights of lrnnx, whose S7 adds its input to its output."
        )
    return given, {}


def _flat_steps(core: S5, given: Weights) -> Adapted:
    """Some versions keep `log_dt` as a column."""
    steps = given.get("log_dt")
    if steps is not None and steps.shape == (core.d_state, 1):
        given = given | {"log_dt": steps[:, 0]}
    return given, {}


_CORES = (Mamba, Mamba2, S5, S7, RGLRU)
_SOURCES: dict[str, dict[type, Callable[[Any, Weights], Adapted]]] = {
    "mamba_ssm": {Mamba: _as_they_are, Mamba2: _as_they_are},
    "huggingface": {Mamba: _as_they_are, Mamba2: _as_they_are},
    "lrnnx": {Mamba: _event_mamba, S5: _flat_steps, S7: _residual_s7, RGLRU: _as_they_are},
    "lite_mamba": {Mamba: _dilated_mamba},
    "nvsubq": dict.fromkeys(_CORES, _as_they_are),
}


def _guess(core: nn.Module, given: Weights) -> str:
    if "conv_gates" in given:
        return "lite_mamba"
    if isinstance(core, S7):
        return "lrnnx" if core.residual and core.variant == "selective" else "nvsubq"
    if "dtA_proj.weight" in given or isinstance(core, (S5, RGLRU)):
        return "lrnnx"
    return "nvsubq" if "dtA_proj.bias" in given or "A_imag" in given else "mamba_ssm"


def _names(classes: Any) -> str:
    return ", ".join(cls.__name__ for cls in classes)
