"""The HiPPO-LegS matrix, diagonalised: where S5's spectrum and bases start."""

from __future__ import annotations

import torch
from torch import Tensor


def hippo_normal_eigen(size: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the normal part of HiPPO-LegS (Gu et al., arXiv:2008.07669).

    `A_nk = -sqrt(2n+1) sqrt(2k+1)` below the diagonal, `-(n+1)` on it, 0 above; `p_n = sqrt(n + 1/2)`.
    `S = A + p p^T` is -1/2 times the identity plus a skew-symmetric matrix, so a unitary V diagonalises it.

    Args:
        size: number of states.

    Returns:
        eigenvalues `[size]` in ascending order of their imaginary parts, and V `[size, size]` with the
        eigenvectors as columns; both complex128 on the CPU.

    Example:
        >>> eigenvalues, basis = hippo_normal_eigen(4)
        >>> eigenvalues.real
        tensor([-0.5000, -0.5000, -0.5000, -0.5000], dtype=torch.float64)
    """
    n = torch.arange(size, dtype=torch.float64, device="cpu")
    p = torch.sqrt(n + 0.5)
    root = torch.sqrt(2 * n + 1)
    hippo = -torch.tril(torch.outer(root, root), -1) - torch.diag(n + 1)
    normal = hippo + torch.outer(p, p)
    real = normal.diagonal().mean()
    imag, basis = torch.linalg.eigh(-1j * (normal - torch.diag(normal.diagonal())).to(torch.complex128))
    return torch.complex(real.expand(size), imag), basis


def hippo_blocks(size: int, blocks: int, *, half: bool = False) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a block-diagonal matrix of equal HiPPO-LegS blocks.

    Args:
        size: number of eigenvalues.
        blocks: number of blocks; it divides `size`.
        half: of blocks twice as large, keep one of each pair of conjugates.

    Returns:
        eigenvalues `[size]`, and the eigenvectors as columns, `[size, size]` (`[2 size, size]` with `half`).

    Example:
        >>> hippo_blocks(4, 2)[1].abs().gt(0).int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    each = size // blocks
    eigenvalues, basis = hippo_normal_eigen(2 * each if half else each)
    return eigenvalues[:each].repeat(blocks), torch.block_diag(*[basis[:, :each]] * blocks)
