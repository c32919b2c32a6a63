"""`selective_scan` and `selective_state_update`: the recurrence of Mamba, for any walk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from nvsubq.ops.arguments import COMPLEX, REAL, Arguments, dtype_name, one_of
from nvsubq.ops.call import Op, Output
from nvsubq.ops.numerics import accumulation_dtype, complex_of
from nvsubq.ops.update import Update
from nvsubq.ops.walks import check_walk

DISCRETIZATIONS = ("mamba", "zoh", "bilinear", "dirac", "async", "no_discretization")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    delta_a: Tensor | None = None,
    timesteps: Tensor | None = None,
    decay_gate: Tensor | None = None,
    discretization: str = "mamba",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    order: Tensor | None = None,
    reverse: bool | Sequence[bool] = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan s_k = Ā_k s_{k-1} + γ_k B_k u_k and read y_k = (C_k s_k + D u_k) SiLU(z_k), channel by channel.

    | discretization | Ā | γ |
    |---|---|---|
    | `mamba` | exp(Δᴬ A) | Δ |
    | `zoh`, `async` | exp(Δᴬ A) | (exp(ΔA) - 1)/A |
    | `bilinear` | (1 + Δᴬ A/2)/(1 - Δᴬ A/2) | Δ/(1 - ΔA/2) |
    | `dirac` | exp(Δᴬ A) | 1 |
    | `no_discretization` | A | 1 |

    Δ = delta + delta_bias, through softplus if asked; Δᴬ = Δ unless `delta_a` is given.

    Args:
        u: `[B, L, D]`.
        delta: `[B, L, D]`.
        A: `[D, N]`, real or complex; with complex A the output is 2 Re(sum_n C_n s_n).
        B: `[B, L, N]`, `[B, L, G, N]` (G divides D; neighbouring channels share a group), or fixed `[D, N]`.
        C: like B; with complex A both real or both complex.
        D: `[D]`.
        z: `[B, L, D]`.
        delta_bias: `[D]`, added to delta.
        delta_softplus: apply softplus to delta after the bias.
        delta_a: Δᴬ as it is (no bias, no softplus): `[B, L, D]`, or `[D]` with `timesteps`.
        timesteps: `[B, L]`; then Δᴬ = timesteps · delta_a.
        decay_gate: real, shaped like B; multiplies Ā.
        discretization: one of the table.
        initial_state: `[B, D, N]`, fp32 or fp64, complex with complex A; before the first visited cell.
        return_final_state: also return the state after the last visited cell that is there.
        seq_idx: integers `[B, L]`: the sequence that a cell belongs to; negative: the cell is not there.
        order: `[L]` or `[S, L]`, the cells in the order of the walk, by S equal blocks of channels.
        reverse: walk from the end of the order; one bool, or one for each block.
        backend: a name from `backends()`.

    Returns:
        y `[B, L, D]` in u's dtype, or (y, final state `[B, D, N]`).

    Raises:
        ValueError: a shape, dtype, device or option that does not fit; the message names it.
        RuntimeError: the backend named is not active.

    Example:
        >>> import torch
        >>> u, delta, A = torch.ones(1, 3, 2), torch.full((1, 3, 2), 0.5), torch.zeros(2, 1)
        >>> B = C = torch.ones(1, 3, 1)
        >>> selective_scan(u, delta, A, B, C)[0, :, 0].tolist()
        [0.5, 1.0, 1.5]

    Reference: Gu & Dao, Mamba (arXiv:2312.00752); event mode: STREAM (arXiv:2411.12603).
    """
    return SELECTIVE_SCAN.run(
        (u, delta, A, B, C, D, z, delta_bias, delta_a, timesteps, decay_gate, initial_state),
        (delta_softplus, discretization),
        seq_idx, order, reverse, return_final_state, backend,
    )  # fmt: skip


def selective_state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    delta_a: Tensor | None = None,
    timesteps: Tensor | None = None,
    decay_gate: Tensor | None = None,
    discretization: str = "mamba",
    backend: str | None = None,
) -> Tensor:
    """Advance `selective_scan` by one cell: `state` changes in place, nothing is recorded for autograd.

    Args:
        state: `[B, D, N]`, fp32 or fp64, complex with complex A.
        u: `[B, D]`; `delta`, `z` and `delta_a` alike.
        delta: `[B, D]`.
        A: `[D, N]`.
        B: `[B, N]` or `[B, G, N]`; a B fixed over time goes in as `B.expand(batch, D, N)`, with G = D.
        C: like B.
        D: `[D]`.
        z: `[B, D]`.
        delta_bias: `[D]`.
        delta_softplus: as in `selective_scan`.
        delta_a: `[B, D]`, or `[D]` with `timesteps`.
        timesteps: `[B]`.
        decay_gate: real, shaped like B.
        discretization: as in `selective_scan`.
        backend: a name from `backends()`.

    Returns:
        y `[B, D]` in u's dtype.

    Raises:
        ValueError: a shape, dtype, device or option that does not fit; the message names it.

    Example:
        >>> import torch
        >>> state = torch.zeros(1, 1, 1)
        >>> one = torch.ones(1, 1)
        >>> selective_state_update(state, one, 0.5 * one, 0 * one, one, one).item(), state.item()
        (0.5, 0.5)
    """
    tensors = (state, u, delta, A, B, C, D, z, delta_bias, delta_a, timesteps, decay_gate)
    return SELECTIVE_STATE_UPDATE.advance(tensors, (delta_softplus, discretization), backend)


def _check(
    check, u, delta, A, B, C, D, z, delta_bias, delta_a, timesteps, decay_gate, discretization
) -> None:
    one_of("discretization", discretization, DISCRETIZATIONS)
    check.required(u=u, delta=delta, A=A, B=B, C=C)
    check.tensor("u", u, "B L D")
    check.tensor("delta", delta, "B L D")
    check.tensor("A", A, "D N", dtypes=(*REAL, *COMPLEX))
    forms = ("B N", "B G N") if check.step else ("B L N", "B L G N", "D N")
    either = (*REAL, *COMPLEX) if A.is_complex() else REAL
    check.tensor("B", B, *forms, dtypes=either)
    check.tensor("C", C, *forms, dtypes=either)
    if B.is_complex() != C.is_complex():
        raise ValueError(
            f"`B` (dtype {dtype_name(B.dtype)}) and `C` (dtype {dtype_name(C.dtype)}) "
            "must be both real or both complex."
        )
    check.divides("G", "D", "the number of groups")
    check.tensor("D", D, "D")
    check.tensor("z", z, "B L D")
    check.tensor("delta_bias", delta_bias, "D")
    check.tensor("decay_gate", decay_gate, *forms)
    if decay_gate is not None and decay_gate.shape != B.shape:
        raise ValueError(
            f"`decay_gate` (shape {list(decay_gate.shape)}) must have the shape of `B` {list(B.shape)}."
        )
    _check_event_mode(check, delta_a, timesteps, discretization)


def _check_event_mode(
    check: Arguments, delta_a: Tensor | None, timesteps: Tensor | None, discretization: str
) -> None:
    if delta_a is not None and discretization == "no_discretization":
        raise ValueError(
            "`delta_a` has no place with `discretization` (='no_discretization'): A is the decay itself."
        )
    if timesteps is None:
        check.tensor("delta_a", delta_a, "B L D")
        return
    check.tensor("timesteps", timesteps, "B L")
    if delta_a is None:
        raise ValueError("`timesteps` needs `delta_a` [D], the rate that it multiplies.")
    check.tensor("delta_a", delta_a, "D")


_TENSORS = (
    "u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_a", "timesteps", "decay_gate",
    "initial_state",
)  # fmt: skip


def _check_call(given: Mapping[str, Any]) -> None:
    check = Arguments()
    _check(check, *(given[name] for name in (*_TENSORS[:-1], "discretization")))
    check.state("initial_state", given["initial_state"], "B D N", is_complex=given["A"].is_complex())
    blocks = check_walk(check, given, "D")
    for name in ("B", "C"):
        if blocks > 1 and given[name].dim() == 3:
            raise ValueError(
                f"`{name}` (shape {list(given[name].shape)}) has one group; with S (={blocks}) walks "
                "it must be [B, L, G, N] with G a multiple of S, or [D, N]."
            )


def _outputs(given: Mapping[str, Any]) -> tuple[Output, Output]:
    u, A = given["u"], given["A"]
    exact = accumulation_dtype(*(given[name] for name in _TENSORS))
    state = complex_of(exact) if A.is_complex() else exact
    return Output(u.shape, u.dtype), Output((u.shape[0], *A.shape), state)


SELECTIVE_SCAN = Op(
    name="selective_scan",
    tensors=_TENSORS,
    required=5,
    options={"delta_softplus": "bool", "discretization": "str"},
    check=_check_call,
    outputs=_outputs,
)


def _check_update(given: Mapping[str, Any]) -> None:
    check = Arguments(step=True)
    _check(check, *(given[name] for name in (*_TENSORS[:-1], "discretization")))
    check.required_state(given["state"], "B D N", is_complex=given["A"].is_complex())


SELECTIVE_STATE_UPDATE = Update(
    SELECTIVE_SCAN,
    "selective_state_update",
    ("delta_softplus", "discretization"),
    _check_update,
    over_cells={
        **dict.fromkeys(("u", "delta", "z", "delta_a"), (2,)),
        **dict.fromkeys(("B", "C", "decay_gate"), (2, 3)),
        "timesteps": (1,),
    },
)
