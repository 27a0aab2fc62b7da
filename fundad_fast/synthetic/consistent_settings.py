# SPDX-License-Identifier: Apache-2.0
"""The numbers of the consistent anomaly generator, each with its source."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_OURS = "Not published; our design."


class ConsistentSettings(BaseModel):
    """Settings of ReSynthDetect's generator.

    Published (a poster) are the steps alone: a healthy source image, random augmentation and crop,
    Perlin noise as the mask, a self-mix paste with a fusion map. Every number is of DRAEM's or
    Self-Mix's public code, or ours, as said.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clean_share: float = Field(
        0.5, ge=0, lt=1, description="Share of images that stay healthy. DRAEM's code: 0.5."
    )
    masks: Literal["lesions", "perlin"] = Field(
        "lesions",
        description="lesions: some connected components of the noise, of a lesion's size and not "
        "cut by the field of view (our design); perlin: all of it (DRAEM), "
        "which covers far more than lesions of the retina do.",
    )
    noises: int = Field(
        3,
        ge=1,
        le=16,
        description="masks=lesions: noises drawn for an image, each with cells of its own size, so "
        "that small and large components lie side by side, as lesions of the retina do. DRAEM's "
        f"code: 1. {_OURS}",
    )
    exponent_min: int = Field(
        4,
        ge=0,
        le=8,
        description="Cells of the noise along each axis of the image: 2 to the power of this at "
        f"the least. DRAEM's code: 0, of which few components have a lesion's size. {_OURS}",
    )
    exponent_max: int = Field(
        7,
        ge=0,
        le=8,
        description="The largest power. DRAEM's code: 5, which leaves out the size of "
        f"microaneurysms and small exudates. {_OURS}",
    )
    exponents_apart: int = Field(
        1,
        ge=0,
        le=8,
        description="Most by which the powers of the two axes differ. DRAEM's code: drawn apart, "
        f"which makes spindles of most components. {_OURS}",
    )
    threshold: float = Field(
        0.5, gt=0, lt=1, description="Noise above this is the mask. DRAEM's code: 0.5."
    )
    turn: float = Field(
        90.0, ge=0, le=180, description="The noise is turned by ± this, degrees. DRAEM's code: 90."
    )
    components_max: int = Field(
        100,
        ge=1,
        description="Components kept: 1 to this, drawn evenly in the logarithm; in a tile of an "
        f"image its share of them. {_OURS}",
    )
    area_min: float = Field(
        4 / 512**2,
        gt=0,
        lt=1,
        description="Least area of a component, as a share of the image: 4 pixels at 512 x 512. "
        f"{_OURS}",
    )
    area_max: float = Field(
        0.02, gt=0, le=1, description=f"Largest area of a component, likewise. {_OURS}"
    )
    match_colours: bool = Field(
        True,
        description="Scale each channel of the source first, so that its mean inside the mask is "
        f"the image's: another eye's colour is no lesion. {_OURS}",
    )
    patch: Literal["component", "mask"] = Field(
        "component",
        description="What gets a source patch of its own, with an augmentation of its own: each "
        f"component, so that one image has dark and bright ones, or the whole mask. {_OURS}",
    )
    crop_min: float = Field(
        0.1, gt=0, le=1, description=f"Least side of a crop, as a share of the source's. {_OURS}"
    )
    crop_max: float = Field(
        0.3,
        gt=0,
        le=1,
        description="Largest side of a crop, likewise: of 1, a lesion is a picture of a whole "
        f"fundus. {_OURS}",
    )
    augmentation: Literal["mild", "draem"] = Field(
        "mild",
        description="mild: gamma, brightness, hue and saturation, contrast, sharpness, within the "
        "colours that tissue can have (our design: anomalies are to be consistent); draem: "
        "its code's pool, with inversion, solarisation and the like.",
    )
    augmentations: int = Field(
        3, ge=0, le=5, description="How many of them, without repetition. DRAEM's code: 3."
    )
    fusion: Literal["continuous", "selfmix", "selfmix_reference", "constant"] = Field(
        "continuous",
        description="Weight of the patch. continuous: from 0 outside a component up with the "
        "distance to its rim (our design); selfmix: (1 - λ)δ + λ, δ the distance from 0 at the rim "
        "to 1, λ drawn from rim for each component; selfmix_reference: the same with λ from 0.7 to "
        "1, as in Self-Mix's code; constant: one weight per image, drawn from rim (DRAEM).",
    )
    rim: tuple[float, float] = Field(
        (0.0, 0.5),
        description=f"Range of λ for fusion=selfmix, of the weight for constant. {_OURS}",
    )
    ramp: float = Field(
        0.5,
        gt=0,
        le=1,
        description="fusion=continuous: share of a component's depth over which the weight rises "
        f"to 1. {_OURS}",
    )
    edge: float = Field(
        3.0,
        ge=1,
        description="fusion=continuous: pixels over which the weight rises at the least; smaller "
        f"components stay translucent. {_OURS}",
    )
    strength: tuple[float, float] = Field(
        (0.2, 1.0),
        description="fusion=continuous: the weight in a component's middle, drawn evenly for each: "
        f"many lesions are faint. {_OURS}",
    )
    least_change: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Pixels whose mean change over the channels is below this, of [0, 1], are no "
        f"part of the label; 0: all of the mask is. {_OURS}",
    )

    @model_validator(mode="after")
    def _ordered(self) -> ConsistentSettings:
        if self.area_min > self.area_max or self.crop_min > self.crop_max:
            raise ValueError("want area_min <= area_max and crop_min <= crop_max")
        if self.exponent_min > self.exponent_max:
            raise ValueError("want exponent_min <= exponent_max")
        for name, (low, high) in (("rim", self.rim), ("strength", self.strength)):
            if not 0 <= low <= high <= 1:
                raise ValueError(f"{name}={(low, high)}: want 0 <= low <= high <= 1")
        return self
