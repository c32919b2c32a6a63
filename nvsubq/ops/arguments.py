"""Checks shared by the ops; every error names the argument, its value or shape, and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
STATE = (torch.float32, torch.float64)  # a state in half precision drifts over a long walk
_INTEGERS = (torch.int32, torch.int64)


def one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a value that is not in the list."""
    if value not in allowed:
        raise ValueError(f"`{name}` (={value!r}) must be one of {', '.join(map(repr, allowed))}.")


def integers(name: str, tensor: Tensor, sizes: tuple[int | None, ...], letters: str) -> None:
    """Refuse all but an int32 or int64 tensor of these sizes (None: any size)."""
    _is_tensor(name, tensor)
    if tensor.dtype not in _INTEGERS:
        raise ValueError(f"`{name}` (dtype {dtype_name(tensor.dtype)}) must be int32 or int64.")
    if not _fits(tuple(tensor.shape), sizes):
        known = "" if None in sizes else f" = {list(sizes)}"
        raise ValueError(f"`{name}` (shape {list(tensor.shape)}) must have shape {letters}{known}.")


class Arguments:
    """The tensors of one call: shapes are written in the project's letters, and a letter means one size.

    Args:
        step: the call is a one-step update, so the letter `L` is left out of every pattern.

    Example:
        >>> arguments = Arguments()
        >>> arguments.tensor("u", torch.ones(2, 5, 4), "B L D")
        >>> arguments.tensor("delta", torch.ones(2, 5, 3), "B L D")
        Traceback (most recent call last):
        ValueError: `delta` (shape [2, 5, 3]) must have shape [B, L, D] = [2, 5, 4].
    """

    def __init__(self, *, step: bool = False) -> None:
        self.sizes: dict[str, int] = {}
        self.step = step
        self._first: tuple[str, torch.device] | None = None

    def required(self, **tensors: Tensor) -> None:
        """Refuse a None, or anything else that is no tensor."""
        for name, tensor in tensors.items():
            _is_tensor(name, tensor)

    def tensor(
        self, name: str, tensor: Tensor | None, *patterns: str, dtypes: Sequence[torch.dtype] = REAL
    ) -> None:
        """Check rank, sizes, dtype and device (None passes), and remember the sizes of new letters."""
        if tensor is None:
            return
        _is_tensor(name, tensor)
        options = [_letters(pattern, self.step) for pattern in patterns]
        shape = tuple(tensor.shape)
        fitting = next((o for o in options if _fits(shape, [self.sizes.get(letter) for letter in o])), None)
        if fitting is None:
            allowed = " or ".join(self._describe(letters) for letters in options)
            raise ValueError(f"`{name}` (shape {list(shape)}) must have shape {allowed}.")
        if tensor.dtype not in dtypes:
            allowed = ", ".join(map(dtype_name, dtypes))
            raise ValueError(
                f"`{name}` (dtype {dtype_name(tensor.dtype)}) must have one of the dtypes {allowed}."
            )
        self._same_device(name, tensor.device)
        self.sizes.update(zip(fitting, shape, strict=True))

    def state(self, name: str, state: Tensor | None, pattern: str, *, is_complex: bool = False) -> None:
        """Check a recurrent state: fp32 or fp64, complex exactly where the recurrence is."""
        self.tensor(name, state, pattern, dtypes=COMPLEX if is_complex else STATE)

    def required_state(self, state: Tensor, pattern: str, *, is_complex: bool = False) -> None:
        """Check the state of an update, which is changed in place."""
        self.required(state=state)
        self.state("state", state, pattern, is_complex=is_complex)

    def table(self, name: str, table: Tensor | None) -> None:
        """Check an integer table `[B, L]`, such as `seq_idx`."""
        if table is not None:
            integers(name, table, (self.sizes["B"], self.sizes["L"]), "[B, L]")
            self._same_device(name, table.device)

    def divides(self, letter: str, of: str, what: str) -> None:
        """Refuse when the size of `letter`, if it is known, does not divide that of `of`."""
        parts, whole = self.sizes.get(letter), self.sizes[of]
        if parts is not None and (parts == 0 or whole % parts):
            raise ValueError(f"{what} {letter} (={parts}) must divide {of} (={whole}).")

    def blocks(self, count: int, of: str) -> None:
        """Check that `count` walks (blocks S) divide the size of letter `of`, and the groups, if any."""
        if count == 1:
            return
        if self.sizes[of] % count:
            raise ValueError(
                f"`order` and `reverse` name S (={count}) walks; S must divide {of} (={self.sizes[of]})."
            )
        if "G" in self.sizes and self.sizes["G"] % count:
            raise ValueError(
                f"the number of groups G (={self.sizes['G']}) must be a multiple of the S (={count}) walks."
            )

    @property
    def device(self) -> torch.device | None:
        """Where the first tensor is, and so all of them."""
        return None if self._first is None else self._first[1]

    def _describe(self, letters: tuple[str, ...]) -> str:
        sizes = ", ".join(str(self.sizes.get(letter, letter)) for letter in letters)
        return f"[{', '.join(letters)}]" + (f" = [{sizes}]" if any(l in self.sizes for l in letters) else "")

    def _same_device(self, name: str, device: torch.device) -> None:
        if self._first is None:
            self._first = (name, device)
        elif device != self._first[1]:
            other, expected = self._first
            raise ValueError(f"`{name}` (on {device}) must be on the device of `{other}` ({expected}).")


@cache
def _letters(pattern: str, step: bool) -> tuple[str, ...]:
    return tuple(letter for letter in pattern.split() if not (step and letter == "L"))


def _is_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` (={value!r}) must be a tensor, not {type(value).__name__}.")


def _fits(shape: tuple[int, ...], sizes: Sequence[int | None]) -> bool:
    return len(shape) == len(sizes) and all(e is None or s == e for s, e in zip(shape, sizes, strict=True))


def dtype_name(dtype: torch.dtype) -> str:
    """Give `float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")
