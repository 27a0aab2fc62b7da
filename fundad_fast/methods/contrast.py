# SPDX-License-Identifier: Apache-2.0
"""NT-Xent over two views and a dissolved one, with pairs that are neither alike nor different."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Exclusion = Literal["shifted_removed", "naive"]

BLOCK_BYTES = 2**27
"""Of similarities that are kept for the gradient at a time; more are made anew for it."""


def nt_xent(
    z: Tensor,
    pairs: int,
    *,
    temperature: float = 0.5,
    mode: Exclusion = "shifted_removed",
    divisor: Literal["pairs", "images"] = "pairs",
    block_bytes: int = BLOCK_BYTES,
) -> Tensor:
    """Mean of -log(e^{s_ij/τ} / Σ_{k not in E_i} e^{s_ik/τ}) over the positive pairs (i, j).

    The rows of ``z`` are stacked: ``pairs`` first views O1, as many second views O2, and either
    nothing more (CSI) or as many dissolved images D, all in one order. Positive are (O1_i, O2_i)
    and (O2_i, O1_i). Everything else is negative, but for E: a row and itself, and in
    ``shifted_removed`` an image and its own dissolved one under the same shift; in ``naive`` the
    latter is negative too. D is in no positive pair, so only the rows of O1 and O2 are computed,
    in blocks of bounded memory.

    Source: METHODS.md D.4, after the poster and the public code of "Dissolving is amplifying".

    Args:
        z: ``[2 * pairs, d]`` or ``[3 * pairs, d]`` float32 projections, normalised here.
        pairs: B, of images times shifts.
        temperature: τ, above 0.
        mode: which pairs are excluded.
        divisor: ``pairs`` divides by the 2B positive pairs, as the paper writes; ``images`` by the
            rows of ``z``, as the code does.
        block_bytes: see :data:`BLOCK_BYTES`.

    Raises:
        ValueError: rows that are not two or three times ``pairs``.
    """
    n = len(z)
    if pairs < 1 or n not in (2 * pairs, 3 * pairs):
        raise ValueError(f"nt_xent: want {2 * pairs} or {3 * pairs} rows, got {n}")
    z = nnf.normalize(z.float(), dim=1)
    remove_own = mode == "shifted_removed" and n == 3 * pairs
    rows = max(1, block_bytes // (4 * n))
    if rows >= 2 * pairs:
        total = _block(z, 0, 2 * pairs, pairs, temperature, remove_own)
    else:
        total = torch.stack(
            [
                checkpoint(
                    _block,
                    z,
                    first,
                    min(first + rows, 2 * pairs),
                    pairs,
                    temperature,
                    remove_own,
                    use_reentrant=False,
                    preserve_rng_state=False,  # nothing in it is random
                )
                for first in range(0, 2 * pairs, rows)
            ]
        ).sum()
    return total / (2 * pairs if divisor == "pairs" else n)


def _block(
    z: Tensor, first: int, last: int, pairs: int, temperature: float, remove_own: bool
) -> Tensor:
    """Sum of the losses of the rows from ``first`` to before ``last``."""
    row = torch.arange(first, last, device=z.device)
    other = torch.where(row < pairs, row + pairs, row - pairs)
    logits = z[first:last] @ z.T / temperature
    positive = logits.gather(1, other[:, None])[:, 0]
    excluded = row[:, None]
    if remove_own:
        excluded = torch.stack([row, row % pairs + 2 * pairs], 1)
    return (logits.scatter(1, excluded, -torch.inf).logsumexp(1) - positive).sum()
