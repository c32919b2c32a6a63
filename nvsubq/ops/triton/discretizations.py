"""The decay and input factor of each discretization of `selective_scan`, and their derivatives, for real A.

Shapes: steps `dt` (of the factor) and `dt_a` (of the decay) `[T, 1, BD]`, A `[1, BN, BD]`.
"""

import triton
import triton.language as tl

MAMBA = tl.constexpr(0)
ZOH = tl.constexpr(1)
BILINEAR = tl.constexpr(2)
DIRAC = tl.constexpr(3)
AS_THEY_ARE = tl.constexpr(4)

# Below this the power series of (exp(z) - 1)/z is used: its derivative would cancel to eps/|z| otherwise.
RADIUS = tl.constexpr(0.3)
TERMS = tl.constexpr(12)


@triton.jit
def expm1_over(z, exp_z):
    """(exp(z) - 1)/z and its derivative."""
    small = tl.abs(z) < RADIUS
    near = tl.where(small, z, 0.0)
    far = tl.where(small, 1.0, z)
    slope = tl.zeros_like(near)
    series = slope + 1.0
    for n in tl.static_range(TERMS):  # 1 + z/2 (1 + z/3 (1 + ...)), from within
        slope = (series + near * slope) * (1.0 / (TERMS + 1 - n))
        series = 1.0 + near * series * (1.0 / (TERMS + 1 - n))
    value = tl.where(small, series, (exp_z - 1.0) / far)
    return value, tl.where(small, slope, (exp_z - value) / far)


@triton.jit
def discretize(dt_a, dt, A, KIND: tl.constexpr):
    """The decay `[T, BN, BD]` and the factor of B u, of that shape or one that broadcasts to it."""
    if KIND == BILINEAR:
        half = 0.5 * dt_a * A
        decay = (1.0 + half) / (1.0 - half)
        factor = dt / (1.0 - 0.5 * dt * A)
    elif KIND == AS_THEY_ARE:
        decay = A + tl.zeros_like(dt_a)
        factor = tl.zeros_like(dt) + 1.0
    else:
        decay = tl.exp(dt_a * A)
        if KIND == ZOH:
            z = dt * A
            value, _ = expm1_over(z, tl.exp(z))
            factor = dt * value
        elif KIND == DIRAC:
            factor = tl.zeros_like(dt) + 1.0
        else:
            factor = dt
    return decay, factor


@triton.jit
def derivatives(dt_a, dt, A, decay, KIND: tl.constexpr):
    """The derivatives of the decay by dt_a and by A, and of the factor by dt and by A."""
    if KIND == BILINEAR:
        p = 1.0 / (1.0 - 0.5 * dt_a * A)
        q = 1.0 / (1.0 - 0.5 * dt * A)
        by_dt_a = A * p * p
        decay_by_A = dt_a * p * p
        by_dt = q * q
        factor_by_A = 0.5 * dt * dt * q * q
    elif KIND == AS_THEY_ARE:
        by_dt_a = tl.zeros_like(dt)
        decay_by_A = by_dt_a + 1.0
        by_dt = by_dt_a
        factor_by_A = by_dt_a
    else:
        by_dt_a = A * decay
        decay_by_A = dt_a * decay
        if KIND == ZOH:
            z = dt * A
            by_dt = tl.exp(z)
            _, slope = expm1_over(z, by_dt)
            factor_by_A = dt * dt * slope
        else:
            factor_by_A = tl.zeros_like(dt)
            by_dt = factor_by_A
            if KIND == MAMBA:
                by_dt = factor_by_A + 1.0
    return by_dt_a, decay_by_A, by_dt, factor_by_A
