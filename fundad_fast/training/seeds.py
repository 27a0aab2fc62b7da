# SPDX-License-Identifier: Apache-2.0
"""Seeds that are a function of what they are for, so that no generator's state has to be kept."""

from __future__ import annotations

import numpy as np


def seed_of(*what: int) -> int:
    """A seed in [0, 2⁶³) for a tuple of non-negative whole numbers, the same everywhere.

    Different tuples of one length have unrelated seeds (numpy's SeedSequence).
    """
    high, low = np.random.SeedSequence(what).generate_state(2)
    return (int(high) << 32 | int(low)) >> 1
