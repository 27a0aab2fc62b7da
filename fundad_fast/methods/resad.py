# SPDX-License-Identifier: Apache-2.0
"""ReSAD: region and spatial aware anomaly detection for fundus images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .memory_bank import MemoryBank

_DEFAULT = {
    "combination": ("F", "P", "R"),
    "radius_fraction": 0.125,
    "attn_norm": "l2",
    "attn_scale": 10.0,
    "num_neighbors": 3,
}


class ReSAD(MemoryBank):
    """Memory bank over region-aware plus spatial-aware features.

    Presets: ``paper`` is the literal reading of the paper, C = P + R over the whole frame.
    ``default`` is our design, C = F + P + R inside the field of view, chosen on real lesions of one
    part of ``idrid_512``, on which the report part does not draw, and on painted ones in healthy
    images of ``idrid_512`` and ``hrf_1024`` (docs/quality.md). F keeps small lesions sharp; R, with
    the paper's radius relative to the map, adds each cell's surroundings; P adds what looks alike
    elsewhere in the image, for which its logits are cosines × 10: a cell then draws on some 700 of
    4,096 cells, with raw logits, which grow with the features' length, on about 15 (ResNet-18).
    The distance is the mean to three bank rows: a k-centre keeps the extremes of the healthy rows,
    and a single one of them near a lesion would hide it.
    ``quick`` is a small one of the same.
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
