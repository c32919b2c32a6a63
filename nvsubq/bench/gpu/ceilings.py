"""The device's own ceilings: bytes per second of a copy, exponentials per second."""

from __future__ import annotations

import statistics
from functools import partial

import torch

from nvsubq.bench.gpu.clock import Clock
from nvsubq.bench.gpu.work import Ceilings

COPIED = 2**30
STEPS, CHAINS, THREADS = 4096, 8, 256

# Each thread keeps independent chains of the hardware's exponential, so that nothing but that unit is busy.
SOURCE = """
extern "C" __global__ void exponentials(float* out, int steps) {
  float v[CHAINS];
  for (int i = 0; i < CHAINS; ++i) v[i] = 0.001f * (threadIdx.x + i);
  for (int step = 0; step < steps; ++step)
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(v[i]));
  float sum = 0;
  for (int i = 0; i < CHAINS; ++i) sum += v[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
""".replace("CHAINS", str(CHAINS))


def measure(clock: Clock, copied: int = COPIED) -> Ceilings:
    """Measures both.

    Args:
        clock: whose device it is.
        copied: bytes of the copy.
    """
    source = torch.zeros(copied, dtype=torch.int8, device=clock.device)
    seconds = statistics.median(clock.events(partial(torch.empty_like(source).copy_, source)))
    exps, how = _exponentials(clock)
    how = f"bytes: a copy of {copied / 2**20:.0f} MiB; exponentials: {how}"
    return Ceilings(2 * copied / seconds, exps, how)


def _exponentials(clock: Clock) -> tuple[float, str]:
    """Exponentials per second, and how that was measured."""
    try:
        from torch.cuda import _compile_kernel

        kernel = _compile_kernel(SOURCE, "exponentials")
        blocks = 8 * torch.cuda.get_device_properties(clock.device).multi_processor_count
        out = torch.empty(blocks * THREADS, device=clock.device)
        run = partial(kernel, (blocks, 1, 1), (THREADS, 1, 1), (out, STEPS))
        seconds = statistics.median(clock.events(run))
        return blocks * THREADS * STEPS * CHAINS / seconds, "a loop of ex2.approx in registers"
    except Exception:  # a function that torch does not promise, and a compiler that may be missing
        x = torch.full((2**21,), 0.5, device=clock.device)
        seconds = statistics.median(clock.events(lambda: [x.exp2_() for _ in range(64)]))
        return 64 * x.numel() / seconds, "torch's exp2_ in the cache, which is bound by the cache: too low"
