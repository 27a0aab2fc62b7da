# SPDX-License-Identifier: Apache-2.0
"""PatchCore, as a choice of the memory bank's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .memory_bank import MemoryBank

_PATCHCORE = {
    "combination": ("F",),
    "patch_pooling": 3,
    "reweight": "paper",
    "num_neighbors": 9,
    "smoothing": 4.0,
}


class PatchCore(MemoryBank):
    """Locally aware patch features in a coreset memory bank (Roth et al., CVPR 2022).

    Presets: ``paper`` has the published settings (224 pixels, 10 % of the rows, nine neighbours as
    in anomalib); ``default`` takes them to fundus photographs at full size with scores inside the
    field of view; ``quick`` is a small one for a first look.
    """

    name: ClassVar[str] = "patchcore"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {**_PATCHCORE, "image_size": 224, "fov": "none"},
        "default": {**_PATCHCORE, "bank_rows": "fov"},
        "quick": {
            **_PATCHCORE,
            "bank_rows": "fov",
            "backbone": "resnet18.tv_in1k",
            "image_size": 256,
            "coreset_sampling_ratio": 0.02,
        },
    }
