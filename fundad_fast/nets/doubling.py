# SPDX-License-Identifier: Apache-2.0
"""Linear up-sampling whose gradient is the same in every run."""

from __future__ import annotations

import torch
from torch import Tensor


def doubled(x: Tensor) -> Tensor:
    """Every axis of ``[b, c, *s]`` twice as long, linearly, as with ``align_corners=False``.

    Made of shifts: the gradient of torch's own is added up in no fixed order on a GPU, and a
    training that goes on after a kill would end with other weights.
    """
    for axis in range(2, x.dim()):
        n = x.shape[axis]
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, n - 1)], axis)
        after = torch.cat([x.narrow(axis, 1, n - 1), x.narrow(axis, n - 1, 1)], axis)
        pair = [torch.lerp(x, before, 0.25), torch.lerp(x, after, 0.25)]
        x = torch.stack(pair, axis + 1).flatten(axis, axis + 1)
    return x
