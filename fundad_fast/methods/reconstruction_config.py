# SPDX-License-Identifier: Apache-2.0
"""The settings that the methods which score a reconstruction have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ._base import MethodConfig
from .residuals import Compare, Relative

PNET = "P-Net's public code (the same first author)"


class ReconstructionConfig(MethodConfig):
    """Size of the network and its training. "Ours" is our design, not the paper's."""

    image_size: int = Field(
        224, ge=32, le=4096, description=f"Side of the square input, in pixels. {PNET}: 224."
    )
    fov: Literal["auto", "none"] = Field(
        "none",
        description="auto: a fundus photograph, with losses and scores inside its field of view "
        "only, and black outside; none: the whole frame.",
    )
    channels: Literal["auto", "rgb", "grey"] = Field(
        "auto",
        description="auto: as the images are; grey: colours become their luminance, right for grey "
        "pictures saved as RGB.",
    )
    intensity: Literal["range", "equalise"] = Field(
        "range",
        description="equalise: even out each image's histogram first, grey images only, so that "
        "X-rays of more contrast have no larger differences. Ours.",
    )
    compare: Compare = Field(
        "pixels",
        description=f"What makes the map: differences of pixels ({PNET}), or structure: 1 - SSIM "
        "(Bergmann et al. 2018, for autoencoders).",
    )
    residual_blur: float = Field(
        0.0,
        ge=0,
        le=0.25,
        description="σ, as a share of the image's side, of a Gaussian over the differences of "
        "pixels with their signs: edges that are a little off cancel, what is brighter or darker "
        "over an area stays. Ours.",
    )
    residual_relative: Relative = Field(
        "none",
        description="Divide differences by the standard deviation of the image, or of what is "
        "around each pixel (local): then it is in part a score of low contrast, of untrained "
        "networks as well, so look at that control. Ours.",
    )
    image_score: Literal["mean", "top"] = Field(
        "mean",
        description=f"Image score: the map's mean ({PNET}), or that of its highest share. Ours: "
        "top.",
    )
    top_fraction: float = Field(
        0.05, gt=0, le=1, description="Share of the pixels that image_score=top averages. Ours."
    )
    width: int = Field(
        64, ge=1, le=512, description=f"Channels at full resolution; they double to 8x. {PNET}: 64."
    )
    depth: int = Field(5, ge=2, le=9, description=f"Number of resolutions. {PNET}: 5.")
    train_batch: int = Field(8, ge=1, description=f"Images per step, of all GPUs. {PNET}: 8.")
    learning_rate: float = Field(1e-3, gt=0, description=f"Of Adam. {PNET}: 1e-3.")
    betas: tuple[float, float] = Field((0.1, 0.9), description=f"Of Adam. {PNET}: 0.1 and 0.9.")
    weight_decay: float = Field(1e-4, ge=0, description=f"Of Adam. {PNET}: 1e-4.")
    max_steps: int = Field(200_000, ge=1, description="Steps at the latest. Ours.")
    max_epochs: int | None = Field(800, ge=1, description=f"Likewise epochs. {PNET}: 800.")
    rate_drops: tuple[float, ...] = Field(
        (0.025, 0.05, 0.1, 0.15),
        description="The learning rate falls to a tenth after each of these shares of all steps. "
        f"{PNET}: 20, 40, 80 and 120 of 800 epochs (OCT).",
    )
    clip: float | None = Field(None, gt=0, description="Largest norm of a gradient. Ours.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Of products in training, by autocast. Ours."
    )
    memory_budget: int = Field(
        8 * 2**30,
        ge=2**20,
        description="Bytes of images in memory; beyond, on disk. Ours.",
    )

    @field_validator("rate_drops")
    @classmethod
    def _rising_shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(value) or not all(0 < share < 1 for share in value):
            raise ValueError("want rising shares between 0 and 1")
        return value

    @field_validator("betas")
    @classmethod
    def _shares(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("want numbers from 0 to below 1")
        return value
