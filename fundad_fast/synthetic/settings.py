# SPDX-License-Identifier: Apache-2.0
"""The numbers of the synthetic tasks, each with its source."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TaskSettings(BaseModel):
    """Settings of the tasks of "Many tasks make light work", and of those that came before them.

    "Code" is the authors' public code, where the paper does not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_anomalies: int = Field(
        4, ge=1, description="After each anomaly but the last one a fair coin stops. Paper."
    )
    size_offset: float = Field(
        0.03, ge=0, description="Extent of a shape, as a share of the image's: offset + Gamma. NSA."
    )
    size_shape: float = Field(2.0, gt=0, description="Shape of that Gamma distribution. NSA.")
    size_scale: float = Field(0.1, gt=0, description="Scale of that Gamma distribution. NSA.")
    min_size: float = Field(0.06, gt=0, le=1, description="Least extent of a shape. Code.")
    max_size: float = Field(
        0.8, gt=0, le=1, description="Largest extent of a shape and of its turned box. Code."
    )
    shear: float = Field(0.2, ge=0, description="Standard deviation of the shear factors. Code.")
    rotation: float = Field(
        math.pi / 2, ge=0, description="Shapes are turned by ± this in every plane, radians. Code."
    )
    min_object_fraction: float = Field(
        0.5, ge=0, le=1, description="Least share of a shape that lies on the object. Paper."
    )
    placement_tries: int = Field(
        200,
        ge=1,
        description="Places tried before the one that lies best on the object is taken, and "
        "windows of a source before its last one is. The code tries for ever.",
    )

    source_rotation: float = Field(
        math.pi / 4, ge=0, description="Sources are turned by ± this in every plane. Code."
    )
    source_scale: float = Field(
        0.1, ge=0, description="Sources are scaled by 1 + Exp(mean this) or by its inverse. Code."
    )
    source_share: float = Field(
        0.8, gt=0, le=0.9, description="Largest share of a source's extent that is used. Code."
    )
    changed: float = Field(
        1e-3, ge=0, description="Mean change from which a blended cell belongs to the mask. Code."
    )

    g_min: float = Field(
        0.5, gt=0, description="Least push of a deformation, in cells. Code: 0.5 in all data sets."
    )
    g_max: float = Field(
        10.0, gt=0, description="Largest push, in cells. Code: 5 for brains, 10 for chest X-rays."
    )

    kappa: float = Field(
        0.2, gt=0, description="Intensity changes by κ/2 + Gamma(3, κ), either sign. Code."
    )
    smoothing_offset: float = Field(
        0.02, ge=0, description="Width of its slope: (this + Gamma) × shortest side. Paper: d_s."
    )
    smoothing_shape: float = Field(3.0, gt=0, description="Shape of that Gamma. Code.")
    smoothing_scale: float = Field(0.01, gt=0, description="Scale of that Gamma. Code.")

    label_sigma: float = Field(
        0.2, gt=0, description="σ of the label 1 - exp(-Δ²/2σ²). Paper, table 3."
    )
    clean_labels: bool = Field(
        True, description="Close and fill the labels of each component. Code, not in the paper."
    )

    patch_core: float = Field(
        0.8, gt=0, le=1, description="FPI, PII: centres lie in this central share. Code of both."
    )
    patch_min: float = Field(0.05, gt=0, lt=0.5, description="FPI, PII: least half-width. Code.")
    patch_max: float = Field(0.2, gt=0, lt=0.5, description="FPI, PII: largest half-width. Code.")
    factor_min: float = Field(0.05, ge=0, le=1, description="FPI, PII: least factor. Code.")
    factor_max: float = Field(0.95, ge=0, le=1, description="FPI, PII: largest factor. Code.")

    nsa_scale_sigma: float = Field(
        0.5, ge=0, description="NSA: sources are scaled by N(1, this), limited. Code."
    )
    nsa_scale_min: float = Field(0.7, gt=0, description="NSA: least scale. Code.")
    nsa_scale_max: float = Field(1.3, gt=0, description="NSA: largest scale. Code.")
    nsa_tolerance: float = Field(
        1 / 255, ge=0, description="NSA: mean change that is a change. Code: one of 255 levels."
    )
    nsa_steepness: float = Field(
        13.58, gt=0, description="NSA: k of the label 1/(1 + exp(-k(Δ - Δ₀))). Paper, figure."
    )
    nsa_middle: float = Field(0.162, description="NSA: Δ₀ of the label. Paper, figure.")

    cutpaste_min: float = Field(
        0.02, gt=0, lt=1, description="CutPaste: least share of the image. Its paper."
    )
    cutpaste_max: float = Field(
        0.15, gt=0, lt=1, description="CutPaste: largest share of the image. Its paper."
    )
    cutpaste_aspect: float = Field(
        3.3, ge=1, description="CutPaste: aspect ratios up to this, either way. Its paper."
    )
    cutpaste_jitter: float = Field(
        0.1, ge=0, lt=1, description="CutPaste: brightness and contrast × (1 ± this). Its paper."
    )

    @model_validator(mode="after")
    def _ordered(self) -> TaskSettings:
        for low, high in (
            ("min_size", "max_size"),
            ("g_min", "g_max"),
            ("patch_min", "patch_max"),
            ("factor_min", "factor_max"),
            ("nsa_scale_min", "nsa_scale_max"),
            ("cutpaste_min", "cutpaste_max"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"want {low} <= {high}")
        return self
