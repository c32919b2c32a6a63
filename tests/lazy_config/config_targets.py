"""Targets for the tests of the config layer: small classes that remember how they were built."""

from __future__ import annotations

import inspect
import math
import os  # noqa: F401  an import that a config must not reach
from collections import OrderedDict  # noqa: F401  a foreign object that an exact entry may name
from collections.abc import Iterator
from typing import Any

import pytest

from nvsubq.lazy_config import allow_targets, targets

CALLS: list[str] = []  # what was built, in order


@pytest.fixture(autouse=True)
def fresh_policy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The default allow-list and this module, for one test."""
    monkeypatch.setattr(targets, "_policy", targets._DEFAULT)
    allow_targets("config_targets.*")
    CALLS.clear()
    yield
    CALLS.clear()


class Record:
    """Equal to a record of the same class with the same values."""

    def __init__(self, **values: Any) -> None:
        self.values = values
        CALLS.append(type(self).__name__)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.values == other.values  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.values})"


class Core(Record):
    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        dtype: str | None = None,
    ) -> None:
        if isinstance(d_model, int) and d_model < 0:
            raise ValueError(f"`d_model` (={d_model}) must be at least 0.")
        super().__init__(d_model=d_model, d_state=d_state, d_conv=d_conv, dt_limit=dt_limit, dtype=dtype)

    @classmethod
    def from_width(cls, width: int = 8) -> Core:
        return cls(d_model=width)

    @staticmethod
    def small() -> Core:
        return Core(d_model=1)

    @classmethod
    def _hidden(cls) -> Core:
        return cls(d_model=0)


class OtherCore(Record):
    def __init__(self, width: int, *, blocks: int = 1, scale: object = math.pi, guard: type = Record) -> None:
        super().__init__(width=width, blocks=blocks, scale=scale)


class Wrapper(Record):
    def __init__(self, core: Any = None, layers: Any = (), options: Any = None) -> None:
        super().__init__(core=core, layers=layers, options=options)


class Open(Record):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


class Items(Record):
    def __init__(self, *items: Any, name: str = "items") -> None:
        super().__init__(items=items, name=name)


class Strict(Record):
    def __init__(self, first: Any, /, second: Any = 2) -> None:
        super().__init__(first=first, second=second)


class OddError(Exception):
    def __init__(self, code: int, place: str) -> None:
        super().__init__(code, place)


def fail(kind: str = "value") -> None:
    raise {"value": ValueError("wrong value"), "key": KeyError("gone"), "odd": OddError(3, "here")}[kind]


def twice(x: int, y: int = 2) -> int:
    return x * y


def many(**options: Any) -> None:
    """A function with a long signature."""


many.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [inspect.Parameter(f"option_{i}", inspect.Parameter.KEYWORD_ONLY, default="a value") for i in range(40)]
)


def outer() -> type:
    class Local:
        pass

    return Local


class Outer:
    class Inner(Record):
        def __init__(self, x: int = 1) -> None:
            super().__init__(x=x)


nameless = lambda: None  # noqa: E731
constant = 3
instance = Open(a=1)
