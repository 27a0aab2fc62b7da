# SPDX-License-Identifier: Apache-2.0
"""The settings of ReSynthDetect, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from ..synthetic import ConsistentSettings
from ._base import MethodConfig

_OURS = "Not published; our design."
_CODE = "Not published; DRAEM's code."


class ReSynthConfig(MethodConfig):
    """Generator, networks, training, score. Published is a poster, with few numbers."""

    image_size: int = Field(
        512, ge=32, le=4096, description=f"Side of the square input, in pixels. {_OURS}"
    )
    tile: int = Field(
        512,
        ge=32,
        description="Images with longer sides are trained on in tiles of this side, and scored in "
        f"tiles that overlap. {_OURS}",
    )
    overlap: int = Field(
        128, ge=0, description=f"Pixels that tiles share at least when scoring. {_OURS}"
    )

    generator: ConsistentSettings = Field(
        default_factory=lambda: ConsistentSettings.model_validate({}),
        description="Numbers of the synthetic anomalies, as in "
        "generator={fusion: selfmix_reference, masks: perlin}. Published: source, augmentation and "
        "crop, self-mix paste with Perlin mask and fusion map.",
    )
    textures: Literal["healthy", "external"] = Field(
        "healthy",
        description="Where patches come from: healthy images (published), or images of another "
        "kind, as in DRAEM; everyday pictures where none are given.",
    )
    mirror: Literal["none", "horizontal", "both"] = Field(
        "both", description=f"Axes along which images are mirrored at random. {_OURS}"
    )
    rotation: float = Field(
        15.0, ge=0, le=180, description=f"Images are turned by ± this at random, degrees. {_OURS}"
    )

    stages: Literal["two", "joint"] = Field(
        "two",
        description="two: first the reconstruction, then, frozen, it guides the localisation "
        "(published); joint: both at once, the reconstruction being to undo anomalies (DRAEM).",
    )
    reconstruction_loss: Literal["l2", "l2+ssim"] = Field(
        "l2", description="l2: published; l2+ssim: DRAEM."
    )
    guide: Literal["none", "image", "features", "difference"] = Field(
        "features",
        description="What of the reconstruction guides the localisation. Published: its features, "
        "not which or where. features: those of its decoder, at every level; image: the "
        "reconstruction beside the input (DRAEM); difference: how its encoder's features of input "
        f"and reconstruction differ; none: nothing, and no first stage. {_OURS}",
    )
    width: int = Field(
        64, ge=1, description=f"Channels of the localisation network at full resolution. {_CODE}"
    )
    reconstruction_width: int = Field(
        64,
        ge=1,
        description="The same of the reconstruction network. Not published; DRAEM's code: 128.",
    )
    depth: int = Field(5, ge=2, le=7, description=f"Levels of both networks. {_CODE}")
    tau: float = Field(
        2.0,
        ge=0,
        description="τ of the focal loss, whose form is published; its value is not. DRAEM's "
        "code: 2. 0 is the binary cross-entropy.",
    )

    val_share: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="Share of the healthy images that are not trained on; the weights kept are "
        f"those that do best on synthetic anomalies in them. {_OURS}",
    )
    val_repeats: int = Field(
        4, ge=1, description=f"Anomalous versions of each of them, always the same. {_OURS}"
    )
    train_batch: int = Field(8, ge=1, description=f"Images per step, of all GPUs. {_CODE}")
    learning_rate: float = Field(1e-4, gt=0, description=f"Of Adam. {_CODE}")
    rate_drops: tuple[float, ...] = Field(
        (0.8, 0.9), description=f"Shares of a stage at which the rate drops. {_CODE}"
    )
    rate_factor: float = Field(
        0.2, gt=0, le=1, description=f"By which it is multiplied each time. {_CODE}"
    )
    reconstruction_epochs: int | None = Field(
        200, ge=1, description=f"Epochs of the first stage at the latest. {_OURS}"
    )
    epochs: int | None = Field(
        300, ge=1, description=f"Epochs of the second (or joint) stage at the latest. {_OURS}"
    )
    reconstruction_steps: int = Field(
        50_000, ge=1, description=f"Steps of the first stage at the latest. {_OURS}"
    )
    max_steps: int = Field(
        50_000, ge=1, description=f"Steps of the second (or joint) stage at the latest. {_OURS}"
    )
    patience: int | None = Field(
        None, ge=1, description="A stage ends when this many steps made it no better. Our option."
    )
    validate_every: int | None = Field(
        None, ge=1, description=f"Steps between validations; none: every epoch. {_OURS}"
    )
    clip: float | None = Field(
        None, gt=0, description="Largest norm of the gradient; none: no limit. Our option."
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Of products in training, by autocast. Our option."
    )

    image_score: Literal["pooled", "max", "top"] = Field(
        "pooled",
        description="Image score from the map: the maximum of its moving average (DRAEM's code), "
        "its maximum, or the mean of its highest share. Not published.",
    )
    pool: int = Field(
        21, ge=1, le=255, description="Side of that moving average, in pixels. DRAEM's code: 21."
    )
    top_fraction: float = Field(
        0.001, gt=0, le=1, description=f"Share of the pixels that image_score=top averages. {_OURS}"
    )
    memory_budget: int = Field(
        8 * 2**30, ge=2**20, description="Bytes of images in memory; beyond, they are on disk."
    )

    @model_validator(mode="after")
    def _consistent(self) -> ReSynthConfig:
        if self.overlap >= self.tile:
            raise ValueError(f"overlap={self.overlap}: want less than tile={self.tile}")
        if self.stages == "joint" and self.guide == "none":
            raise ValueError("stages=joint trains a reconstruction that guide=none has no use for")
        if self.pool % 2 == 0:
            raise ValueError(f"pool={self.pool}: want an odd number")
        least = 2**self.depth
        if min(self.image_size, self.tile) < least:
            raise ValueError(
                f"networks of depth={self.depth} need image_size and tile of at least {least}"
            )
        return self


# For two CPU cores. Forward and backward of a step of stage 2 on 4 images, on one core's worth of a
# shared machine: 0.7 s at 256 pixels and width 8, 3.2 s at 512, 6.6 s at 512 and width 16.
_SMALL: dict[str, Any] = {
    "width": 8,
    "reconstruction_width": 8,
    "train_batch": 4,
    "learning_rate": 1e-3,
    "val_repeats": 4,
}

_DRAEM: dict[str, Any] = {
    "guide": "image",
    "stages": "joint",
    "reconstruction_loss": "l2+ssim",
    "textures": "external",
    "generator": {
        "masks": "perlin",
        "exponent_min": 0,
        "exponent_max": 5,
        "exponents_apart": 8,
        "match_colours": False,
        "patch": "mask",
        "crop_min": 1.0,
        "crop_max": 1.0,
        "augmentation": "draem",
        "fusion": "constant",
        "rim": (0.2, 1.0),
        "least_change": 0.0,
    },
    "mirror": "none",
    "rotation": 45.0,
}

# Lesions are small and local: a tile of 256 pixels at full resolution costs a quarter of a picture.
_DEFAULT: dict[str, Any] = {
    **_SMALL,
    "tile": 256,
    "overlap": 64,
    "epochs": None,
    "reconstruction_epochs": None,
    "reconstruction_steps": 500,
    "max_steps": 1800,
    "validate_every": 100,
}
_QUICK: dict[str, Any] = {
    **_SMALL,
    "image_size": 256,
    "epochs": None,
    "reconstruction_epochs": None,
    "reconstruction_steps": 200,
    "max_steps": 800,
    "validate_every": 100,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "default": _DEFAULT,
    "quick": _QUICK,
    "draem": {**_DRAEM, "reconstruction_width": 128, "epochs": 700},
    "draem-default": {**_DEFAULT, **_DRAEM},
    "draem-quick": {**_QUICK, **_DRAEM},
}
