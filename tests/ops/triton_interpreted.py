"""Runs cases on the Triton backend in Triton's interpreter, on the CPU; `test_triton.py` starts it.

    python triton_interpreted.py < NAMES     each line "op case dtype"; answers with a line of JSON for each

Triton decides when it is imported whether it interprets, so this is a process of its own. The interpreter
calls the function of a scan for every element: here it is called for whole slices, which gives the same
numbers a hundred times faster. A name that ends in `+` keeps the interpreter's own scan; one that ends in `*`
cuts walks into chunks.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from cases import Case, case_of, check
from triton.runtime.interpreter import ScanOps

from nvsubq.ops.triton import recurrence, selective_launch


def by_slices(scan: Any, inputs: tuple) -> list:
    """What `ScanOps.generic_scan` gives."""
    arrays = [value.handle.data for value in inputs]
    found = [np.zeros_like(array) for array in arrays]
    running: tuple = ()
    for step in range(arrays[0].shape[scan.axis]):
        slices = (np.ascontiguousarray(array.take(step, axis=scan.axis)) for array in arrays)
        here = tuple(scan.to_tensor(s, value.dtype) for s, value in zip(slices, inputs, strict=True))
        running = scan.combine_fn.fn(*running, *here) if running else here
        at = (*[slice(None)] * scan.axis, step)
        for array, value in zip(found, running, strict=True):
            array[at] = value.handle.data
    return [scan.to_tensor(array, value.dtype) for array, value in zip(found, inputs, strict=True)]


def smaller(case: Case, sizes: dict[str, int]) -> Case:
    return replace(case, name=f"{case.name}-small", sizes={**case.sizes, **sizes})


def run(op: str, name: str, dtype: str) -> None:
    own_scan, chunks = name.endswith("+"), name.endswith("*")
    case = case_of(op, name.rstrip("+*"))
    if chunks:  # three of them, with pieces and tiles that are not full
        case = smaller(case, {"L": 145, "B": 1, "D": 2 * case.blocks})
    elif own_scan:
        case = smaller(case, {"L": 9, "B": 1})
    elif case.sizes["L"] > 9 and case.sizes["B"] > 2:
        case = smaller(case, {"L": 11, "B": 2})
    with ExitStack() as changed:
        if not own_scan:
            changed.enter_context(mock.patch.object(ScanOps, "generic_scan", by_slices))
        if chunks:
            for module in (recurrence, selective_launch):
                changed.enter_context(mock.patch.multiple(module, CHUNK=64, MOST_UNCUT=64))
        check(case, "triton", getattr(torch, dtype))


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin.read().splitlines():
        try:
            run(*line.split())
            said = ""
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        print(json.dumps([line, said]), flush=True)


if __name__ == "__main__":
    main()
