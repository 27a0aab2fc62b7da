# SPDX-License-Identifier: Apache-2.0
"""ReSAD: region and spatial aware anomaly detection for fundus images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .memory_bank import MemoryBank

_DEFAULT = {"combination": ("F", "R"), "radius_fraction": 0.125}


class ReSAD(MemoryBank):
    """Memory bank over region-aware plus spatial-aware features.

    Presets: ``paper`` is the literal reading of the paper, C = P + R over the whole frame.
    ``default`` is our design, chosen on real data (``benchmarks/quality.py``, part ``tune``):
    C = F + R, with a radius relative to the map and scores inside the field of view. F keeps small
    lesions sharp and R adds each cell's surroundings; P, which compares every cell with every
    other, gained nothing there for its cost. ``quick`` is a small one of the same.
    Not to be confused with the ResAD of NeurIPS 2024, which is another method.
    """

    name: ClassVar[str] = "resad"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"fov": "none"},
        "default": _DEFAULT,
        "quick": {
            **_DEFAULT,
            "backbone": "resnet18.tv_in1k",
            "image_size": 256,
            "coreset_sampling_ratio": 0.02,
        },
    }
