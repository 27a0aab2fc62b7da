# SPDX-License-Identifier: Apache-2.0
"""One figure with all that is needed to read it: interval, sample size, definition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A value with its 95 % interval.

    Attributes:
        value: the figure, or ``None`` where it is undefined; then ``reason`` says why.
        lo, hi: ends of the 95 % interval, or ``None`` where none can be given.
        n: images that entered.
        definition: what was computed, in one sentence.
        reason: why the value, or only its interval, is missing; ``None`` when nothing is.
    """

    value: float | None
    lo: float | None
    hi: float | None
    n: int
    definition: str
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The entry of ``metrics.json``; ``reason`` is there only when something is missing."""
        entry: dict[str, Any] = {
            "value": self.value,
            "lo": self.lo,
            "hi": self.hi,
            "n": self.n,
            "definition": self.definition,
        }
        if self.reason is not None:
            entry["reason"] = self.reason
        return entry


def finite(value: float) -> float | None:
    """A Python float, or ``None`` for NaN and infinities, which JSON does not have."""
    value = float(value)
    return value if math.isfinite(value) else None


def as_dicts(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    return {name: metric.as_dict() for name, metric in metrics.items()}
