"""Damaged arrays of a run are one error that names the file, wherever the damage is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nvsubq.training.report_data import RunError, read_arrays


def says_so(file: Path) -> bool:
    """Whether a file is refused, by its name; a flipped date is not seen, and does no harm."""
    try:
        read_arrays(file)
    except RunError as error:
        return str(error).startswith(f"{file} is broken: ")
    return False


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_bytes(tmp_path, save):
    file = tmp_path / "predictions.npz"
    save(file, squares=np.arange(20.0), indices=np.arange(5))
    assert list(read_arrays(file)) == ["squares", "indices"]
    whole, refused = file.read_bytes(), 0
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        for damaged in (flipped, whole[:place]):
            file.write_bytes(damaged)
            refused += says_so(file)
    assert refused > len(whole)
    with pytest.raises(RunError, match=r"nowhere\.npz is broken"):
        read_arrays(tmp_path / "nowhere.npz")
