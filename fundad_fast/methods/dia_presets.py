# SPDX-License-Identifier: Apache-2.0
"""The presets of DIA: the paper's numbers are the config's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SMALL = {
    "image_size": 64,
    "diffusion_width": 32,
    "diffusion_multipliers": (1, 2, 4),
    "diffusion_blocks": 1,
    "diffusion_attention": "deepest",
    "diffusion_batch": 64,
    "diffusion_rate": 3e-4,
    "diffusion_steps": 10_000,
    "max_steps": 6000,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "default": _SMALL,
    "quick": {
        **_SMALL,
        "diffusion_width": 16,
        "diffusion_steps": 600,
        "diffusion_batch": 16,
        "diffusion_rate": 1e-3,
        "width": 32,
        "train_batch": 8,
        "warmup_share": 0.05,
        "max_steps": 400,
    },
    "csi": {**_SMALL, "dissolve": "none"},
    "blur": {**_SMALL, "dissolve": "blur"},
}
