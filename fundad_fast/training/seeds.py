# SPDX-License-Identifier: Apache-2.0
"""Seeds that are a function of what they are for, so that no generator's state has to be kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*what: int) -> int:
    """A seed in [0, 2⁶³) for a tuple of non-negative whole numbers, the same everywhere.

    Different tuples of one length have unrelated seeds (numpy's SeedSequence).
    """
    high, low = np.random.SeedSequence(what).generate_state(2)
    return (int(high) << 32 | int(low)) >> 1


@contextmanager
def own_generators(device: torch.device) -> Iterator[None]:
    """Leaves the caller's generators, and cuDNN's choice of algorithms, as they were."""
    devices = [device] if device.type == "cuda" else []
    cudnn = torch.backends.cudnn
    kept = cudnn.deterministic, cudnn.benchmark
    with torch.random.fork_rng(devices):
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = kept
