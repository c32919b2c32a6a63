"""Sequence parallelism: one field in slabs, a process for each, and every walk through all of them."""

from nvsubq.ops.slabs import Slabs
from nvsubq.parallel.fields import join_slabs, slab_of
from nvsubq.parallel.model import sequence_parallel, sum_gradients

__all__ = ["Slabs", "join_slabs", "sequence_parallel", "slab_of", "sum_gradients"]
