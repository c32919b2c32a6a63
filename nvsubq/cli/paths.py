"""Where the configs lie: in a checkout beside the package, in an installed wheel inside it."""

from __future__ import annotations

from pathlib import Path

PRIMARY = "train.yaml"


def config_dir() -> Path:
    """The folder of the Hydra configs.

    Raises:
        FileNotFoundError: neither place has them; the message names both.

    Example:
        >>> (config_dir() / "core" / "mamba.yaml").is_file()
        True
    """
    package = Path(__file__).resolve().parents[1]
    # A wheel has them inside; an editable install runs from the checkout, where they lie beside the package.
    places = (package / "configs", package.parent / "configs")
    for place in places:
        if (place / PRIMARY).is_file():
            return place
    raise FileNotFoundError(f"no configs: neither {places[0]} nor {places[1]} holds {PRIMARY}.")
