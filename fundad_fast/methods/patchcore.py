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

    The settings are those with which anomalib runs it: both layers concatenated, 3×3 averaging,
    re-weighting with nine neighbours, σ = 4, the coreset in a sparse random projection. (The
    authors' own code pools to 1,024 features, crops to 224 of 256 pixels and does not re-weight.)

    Presets: ``paper`` at 224 pixels with 10 % of the rows; ``default`` takes that to fundus
    photographs at full size, with scores inside the field of view; ``quick`` is a small one for a
    first look.
    """

    name: ClassVar[str] = "patchcore"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {**_PATCHCORE, "image_size": 224, "fov": "none"},
        "default": _PATCHCORE,
        "quick": {
            **_PATCHCORE,
            "backbone": "resnet18.tv_in1k",
            "image_size": 256,
            "coreset_sampling_ratio": 0.02,
        },
    }
