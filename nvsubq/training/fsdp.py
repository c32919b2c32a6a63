"""FSDP with a unit for each block: parameters, gradients and optimizer states in shards."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import FSDPStrategy

from nvsubq.models.blocks import Block


class BlockFSDP(FSDPStrategy):
    """Lightning's FSDP; a block of a model is gathered when it runs, and let go again.

    Args:
        sharding: "FULL_SHARD" (parameters, gradients, optimizer states), "SHARD_GRAD_OP" (without parameters)
            or "HYBRID_SHARD" (shards within a machine, copies across machines).
        checkpoints: "full", one file, assembled on the first process, or "sharded", a folder with a file for
            each process.
        cpu_offload: keep what is not in use in the host's memory.
    """

    def __init__(
        self, *, sharding: str = "FULL_SHARD", checkpoints: str = "full", cpu_offload: bool = False
    ) -> None:
        options: dict[str, Any] = {"sharding_strategy": sharding, "state_dict_type": checkpoints}
        super().__init__(auto_wrap_policy={Block}, cpu_offload=cpu_offload, **options)
