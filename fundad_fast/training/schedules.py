# SPDX-License-Identifier: Apache-2.0
"""Learning rates by step."""

from __future__ import annotations

import math


def warm_up_and_decay(
    step: int,
    *,
    warmup: int = 100,
    start: float = 0.01,
    tenfold: float = 8000.0,
    floor: float = 0.05,
) -> float:
    """Factor of the learning rate at a step: up in a line, down exponentially, then level.

    From ``start`` to 1 over ``warmup`` steps; then a tenth per ``tenfold`` steps; from the step at
    which that would come to ``floor``, rounded down, exactly ``floor``. With the defaults the
    values at steps 0, 100, 8100 and 10508 are 0.01, 1, 0.1 and 0.05. Source: the public code of
    "Many tasks make light work", METHODS.md C.5.

    Args:
        step: from 0.
        warmup: steps of the rise, 0 for none.
        start, floor: factors in (0, 1].
        tenfold: steps per division by ten.
    """
    if step < warmup:
        return start + (1 - start) * step / warmup
    if step >= warmup + math.floor(tenfold * math.log10(1 / floor)):
        return floor
    return float(10 ** (-(step - warmup) / tenfold))


def multi_step(step: int, total: int, *, at: tuple[float, ...], factor: float) -> float:
    """Factor of the learning rate that falls by ``factor`` at shares of the training.

    Args:
        step: from 0.
        total: steps of the training.
        at: shares of ``total``, such as 0.8 and 0.9.
        factor: by which each of them multiplies the rate.
    """
    return float(factor ** sum(step >= share * total for share in at))


def warm_up_and_cosine(step: int, *, warmup: int, total: int, multiplier: float = 10.0) -> float:
    """Factor of the learning rate at a step: from 1 in a line to ``multiplier``, then a cosine.

    The cosine falls from ``multiplier`` to 0 in ``total`` steps after the ``warmup`` steps, so a
    training of ``total`` steps in all ends shortly before 0. Source: the public codes of CSI and
    "Dissolving is amplifying", METHODS.md D.5 (10 epochs of warm-up, then 1,000).

    Args:
        step: from 0.
        warmup: steps of the rise, 0 for none.
        total: steps of the fall, at least 1.
        multiplier: the highest factor.
    """
    if step < warmup:
        return 1 + (multiplier - 1) * step / warmup
    share = min((step - warmup) / total, 1.0)
    return multiplier * (1 + math.cos(math.pi * share)) / 2
