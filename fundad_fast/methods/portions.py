# SPDX-License-Identifier: Apache-2.0
"""Work in portions that a device's memory can take."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass
class Portion:
    """How much is done at a time.

    Attributes:
        of: what is counted, for the warning.
        least: less than this is not tried.
        most: what fitted last; ``None`` while everything has.
    """

    of: str
    least: int = 1
    most: int | None = None


def in_portions(call: Callable[[slice], T], n: int, portion: Portion) -> list[T]:
    """The results of ``call`` for slices that cover ``range(n)``, in order.

    Where a GPU's memory runs out, the slice is halved, and so are those of later calls with the
    same ``portion``; a warning says so. What a slice's results are may not depend on the others.

    Raises:
        torch.cuda.OutOfMemoryError: the least portion does not fit either.
    """
    results: list[T] = []
    first = 0
    while first < n:
        size = min(portion.most or n, n - first)
        try:
            results.append(call(slice(first, first + size)))
        except torch.cuda.OutOfMemoryError:
            if size <= portion.least:
                raise
        else:
            first += size
            continue
        # Not in the handler: the error holds on to what the call had made so far.
        portion.most = max(portion.least, size // 2)
        torch.cuda.empty_cache()
        warnings.warn(
            f"GPU memory ran out with {size} {portion.of} at a time; going on with {portion.most}",
            RuntimeWarning,
            stacklevel=2,
        )
    return results
