"""Notices of Lightning's that are of no use here."""

from __future__ import annotations

import logging
import warnings

# Lightning warns of what is chosen here on purpose; everything else it warns of is shown.
QUIET = (
    r"The '\w+' does not have many workers",
    r"The number of training batches .* is smaller than the logging interval",
    r"Using `DistributedSampler` with the dataloaders",  # what it fills up is left out of the score
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
)


def quiet_lightning() -> None:
    """Leaves out Lightning's notices of what is chosen on purpose, for this process."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
