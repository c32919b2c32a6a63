"""What cores share: the base class under the seed's name, and the checks of their arguments."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nvsubq.cores.cache import check_cache
from nvsubq.ops import segments_of

# Which core takes which discretization. The base takes the seed's list, for cores that users write.
DISCRETIZATIONS: dict[str, tuple[str | None, ...]] = {
    "LTV_LRNN": ("zoh", "bilinear", "dirac", "async", "no_discretization", None),
    "Mamba": ("mamba", "zoh", "bilinear", "dirac"),
    "S5": ("zoh", "bilinear", "dirac", "async"),
    "S7": (None,),
    "Mamba2": (None,),
    "RGLRU": (None,),
    "Attention": (None,),
}

# What optimisers and initialisers read off parameters.
_MARKS = ("_no_weight_decay", "_no_reinit")


class LTV_LRNN(nn.Module, ABC):
    """Base of the linear time-varying cores: `forward`, `step`, `allocate_inference_cache` over `[B, L, C]`.

    A subclass sets `d_model`, and `use_fast_path` and `layer_idx` where it has them. It says in
    `discretizations` what it takes, and in `capturable` whether a CUDA graph may replay its step: True where
    that reads and writes nothing but tensors, those of the cache in place, and not `seqlen_offset`. In
    `carries` it says whether all that its walk carries along goes through the scans and the convolution of
    `nvsubq.ops`: then the walk may go on in other processes (`nvsubq.parallel`).

    Args:
        discretization: one of the class's `discretizations`; `no_discretization` means that the core's
            A and B are used as they are, None that the core has its own rule.

    Raises:
        ValueError: `discretization` is not in the class's list.
        TypeError: the base itself, or a subclass without the three methods, is instantiated.
    """

    discretizations: ClassVar[tuple[str | None, ...]] = DISCRETIZATIONS["LTV_LRNN"]
    causal: bool = True
    capturable: bool | None = None
    carries: ClassVar[bool] = False
    use_fast_path: bool = True
    layer_idx: int | None = None
    d_model: int

    def __init__(self, discretization: str | None) -> None:
        super().__init__()
        if discretization not in self.discretizations:
            raise ValueError(
                f"`discretization` (={discretization!r}) of {type(self).__name__} must be one of "
                f"{', '.join(repr(name) for name in self.discretizations)}."
            )
        self.discretization = discretization
        self.register_load_state_dict_post_hook(_set_marks_again)

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        integration_timesteps: Tensor | None = None,
        lengths: Tensor | None = None,
        inference_cache: dict[str, Any] | None = None,
        *,
        seq_idx: Tensor | None = None,
        order: Tensor | None = None,
        reverse: bool = False,
    ) -> Tensor:
        """Map `x` `[B, L, C]` to `[B, L, C]`, from the cached state where there is one."""

    @abstractmethod
    def step(
        self, x: Tensor, inference_cache: dict[str, Any], integration_timesteps: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Map one cell `x` `[B, 1, C]` to `[B, 1, C]` and advance the cache by one."""

    @abstractmethod
    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> dict[str, Any]:
        """Make the cache of a walk that has not begun."""

    def _marks(self) -> dict[str, dict[str, Any]]:
        return {
            name: {mark: value for mark, value in vars(parameter).items() if mark in _MARKS}
            for name, parameter in self.named_parameters()
        }

    def _set_marks(self, marks: dict[str, dict[str, Any]]) -> None:
        for name, parameter in self.named_parameters():
            vars(parameter).update(marks.get(name, {}))

    # torch drops a parameter's attributes where it makes a new one: deepcopy, `to_empty`, some casts, and
    # `load_state_dict(assign=True)`, which comes to the parts after this module's own parameters.
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__["_marks_before_load"] = self._marks()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        marks = self._marks()
        module = super()._apply(fn, recurse)
        self._set_marks(marks)
        return module

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_parameter_marks": self._marks()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        marks = state.pop("_parameter_marks", {})
        super().__setstate__(state)
        self._set_marks(marks)

    @property
    def backend(self) -> str | None:
        """The ops' backend for this module: None lets the dispatch choose."""
        return None if self.use_fast_path else "torch"

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}"

    def parse_walk(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        inference_cache: dict[str, Any] | None = None,
        seq_idx: Tensor | None = None,
        order: Tensor | None = None,
        reverse: bool = False,
        *,
        name: str = "hidden_states",
    ) -> dict[str, Any]:
        """Check the arguments of `forward` and return those that every op takes, as keywords.

        Args:
            x: input `[B, L, C]`.
            name: how `forward` calls `x`.

        Raises:
            ValueError: `x` has another rank or width, or `reverse` meets a cache, or the cache does not fit.
        """
        check_input(x, self.d_model, name)
        if not isinstance(reverse, bool):
            raise ValueError(f"`reverse` (={reverse!r}) must be True or False: a core walks one way.")
        if isinstance(order, Tensor) and order.dim() != 1:
            raise ValueError(
                f"`order` (shape {list(order.shape)}) must have shape [L]: a core walks one list."
            )
        if inference_cache is not None:
            if reverse:
                raise ValueError(
                    f"`reverse` (={reverse!r}) must be False with an `inference_cache`: "
                    "a cached state is continued forwards."
                )
            check_cache(inference_cache, x.shape[0])
        if lengths is not None or seq_idx is not None:
            seq_idx = segments_of(x.shape[0], x.shape[1], seq_idx=seq_idx, lengths=lengths, device=x.device)
        return {"seq_idx": seq_idx, "order": order, "reverse": reverse, "backend": self.backend}

    def refuse_timesteps(self, integration_timesteps: Tensor | None) -> None:
        """Raise ValueError where a core without a use for timesteps gets some."""
        if integration_timesteps is not None:
            raise ValueError(
                f"`integration_timesteps` must be None: {type(self).__name__} has no use for them "
                "(Mamba, S5 and S7 have)."
            )


def _set_marks_again(core: LTV_LRNN, _: Any) -> None:
    core._set_marks(core.__dict__.pop("_marks_before_load", {}))


Core = LTV_LRNN


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """The floating dtype that a constructor means: configs name dtypes by strings, None is torch's default.

    Raises:
        ValueError: `dtype` is no real floating dtype.
    """
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found is None and dtype is None:
        found = torch.get_default_dtype()
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`dtype` (={dtype!r}) must be a real floating dtype, 'bfloat16' for one.")
    return found


LARGEST = 2**31 - 1


def check_bool(**flags: bool) -> None:
    """Raise ValueError for the first keyword that is neither True nor False.

    YAML's `no` and `off` reach constructors as strings, which are true.
    """
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(f"`{name}` (={flag!r}) must be True or False.")


def check_number(**values: float) -> None:
    """Raise ValueError for the first keyword whose value is no real number."""
    for name, value in values.items():
        if not _is_a(numbers.Real, value):
            raise ValueError(f"`{name}` (={value!r}) must be a number.")


def check_whole(**values: int) -> None:
    """Raise ValueError for the first keyword whose value is no integer."""
    for name, value in values.items():
        if not _is_a(numbers.Integral, value):
            raise ValueError(f"`{name}` (={value!r}) must be an integer.")


def _is_a(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def check_at_least(low: float, **values: float) -> None:
    """Raise ValueError for the first keyword whose value is below `low`, or is no number.

    Where `low` is an integer the values are sizes: integers that the kernels can count with.
    """
    for name, value in values.items():
        whole = isinstance(low, int)
        if not _is_a(numbers.Integral if whole else numbers.Real, value) or not value <= LARGEST:
            kind = "an integer" if whole else "a number"
            raise ValueError(f"`{name}` (={value!r}) must be {kind} of at most {LARGEST}.")
        if value < low:
            raise ValueError(f"`{name}` (={value}) must be at least {low}.")


def check_dt_range(dt_min: float, dt_max: float) -> None:
    """Raise ValueError unless 0 < dt_min <= dt_max."""
    check_number(dt_min=dt_min, dt_max=dt_max)
    if not 0.0 < dt_min <= dt_max:
        raise ValueError(f"`dt_min` (={dt_min}) must be positive and at most `dt_max` (={dt_max}).")


def check_input(x: Tensor, d_model: int, name: str) -> None:
    """Raise ValueError unless `x` is `[B, L, d_model]`."""
    if x.dim() != 3 or x.shape[-1] != d_model:
        raise ValueError(f"`{name}` must have shape [B, L, {d_model}], got {list(x.shape)}.")


def check_step_input(x: Tensor, d_model: int, name: str) -> None:
    """Raise ValueError unless `x` is `[B, 1, d_model]`."""
    if x.dim() != 3 or x.shape[1] != 1 or x.shape[-1] != d_model:
        raise ValueError(f"`{name}` of a step must have shape [B, 1, {d_model}], got {list(x.shape)}.")


def check_timesteps(timesteps: Tensor, batch: int, length: int) -> Tensor:
    """Return timesteps `[B, L]` (`[B]` is taken too where L is 1), or raise ValueError."""
    if length == 1 and timesteps.shape == (batch,):
        timesteps = timesteps[:, None]
    if timesteps.shape != (batch, length):
        raise ValueError(
            f"`integration_timesteps` must have shape [{batch}, {length}] (batch, length), "
            f"got {list(timesteps.shape)}."
        )
    if timesteps.is_complex():
        raise ValueError(f"`integration_timesteps` must be real, got {timesteps.dtype}.")
    return timesteps


def mask_absent(x: Tensor, seq_idx: Tensor | None) -> Tensor:
    """Zero the cells `[B, L, *]` that are not there (negative `seq_idx`), and their gradients.

    Projections around an op see every cell: on the way in this keeps what lies in padding, a NaN for one,
    out of the weights' gradients, on the way out it removes the bias.
    """
    if seq_idx is None:
        return x
    return x.masked_fill((seq_idx < 0)[..., None], 0.0)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which states are kept: fp64 for fp64, else fp32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
