# SPDX-License-Identifier: Apache-2.0
"""The settings of "Dissolving is amplifying", each with its source."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ._base import MethodConfig

_CODE = "Public code."
# Starts of the settings that the diffusion model's training depends on.
_OF_DIFFUSION = ("diffusion_", "ema", "resolution", "seed", "image_size", "channels", "fov")


class DIAConfig(MethodConfig):
    """Dissolving, contrast, scores. "Code" is the authors' public code."""

    image_size: int = Field(
        224, ge=16, le=4096, description="Side of the square input, in pixels. Paper: 224, or 28."
    )
    fov: Literal["auto", "none"] = Field(
        "none",
        description="auto: a fundus photograph, black outside its field of view; none: the whole "
        "frame (all that the paper has).",
    )

    channels: Literal["auto", "rgb", "grey"] = Field(
        "auto",
        description="auto: as the images are; grey: colours become their luminance, which is "
        "quicker and right for grey pictures saved as RGB. Paper: RGB.",
    )

    dissolve: Literal["diffusion", "blur", "none"] = Field(
        "diffusion",
        description="diffusion: the paper's; blur: a Gaussian blur in its place, the ablation of "
        "its README; none: nothing is dissolved, which is CSI.",
    )
    resolution: int = Field(
        32,
        ge=8,
        le=512,
        description="Side of the images that are dissolved. Paper: 32; 64, 128 tried. A model "
        "given by weights has its own.",
    )
    compat_no_rescale: bool = Field(
        False,
        description="Hand the diffusion model [0, 1] though it was trained on [-1, 1], as the "
        "public code does. Else images are mapped there and back.",
    )
    t_sampler: Literal["uniform", "beta_low", "beta_high", "beta_moving"] = Field(
        "uniform", description=f"How time steps are drawn. {_CODE} How beta_moving moves is ours."
    )
    t_offset: float = Field(0.3, ge=0, lt=1, description=f"Least t as a share of t_scale. {_CODE}")
    t_upper: float = Field(1.0, gt=0, description=f"Largest t as a share of t_scale. {_CODE}")
    t_scale: int = Field(100, ge=1, le=1000, description=f"With the others: 30 to 99. {_CODE}")
    t_per: Literal["shift", "image"] = Field(
        "shift", description="One t for all images of a shift in a step (code), or one for each."
    )
    blur_sigma: float = Field(
        1.0, gt=0, description="Of dissolve=blur, in pixels of resolution. Not published: ours."
    )

    diffusion_width: int = Field(64, ge=8, description=f"Channels of its first level. {_CODE}")
    diffusion_multipliers: tuple[int, ...] = Field(
        (1, 2, 4, 8), min_length=1, max_length=6, description=f"Of the width, by level. {_CODE}"
    )
    diffusion_blocks: int = Field(2, ge=1, description=f"Residual blocks of a level. {_CODE}")
    diffusion_attention: Literal["all", "deepest"] = Field(
        "all", description="Levels with attention. Code: all (linear; here it is full)."
    )
    diffusion_batch: int = Field(
        512, ge=1, description="Images per step. Code: 256, gradients of two batches added."
    )
    diffusion_rate: float = Field(8e-5, gt=0, description=f"Of Adam (0.9, 0.99). {_CODE}")
    diffusion_steps: int = Field(
        156_250,
        ge=1,
        description="Code: up to 312,500; its README: usable after half of them.",
    )
    diffusion_weights: Literal["raw", "ema"] = Field(
        "raw", description="Which weights dissolve: code: raw, though it keeps a moving average."
    )
    ema: float = Field(0.995, ge=0, lt=1, description=f"Decay of the moving average. {_CODE}")
    ema_every: int = Field(10, ge=1, description=f"Steps between its updates. {_CODE}")

    shift: Literal["rotation", "cutperm"] = Field(
        "rotation",
        description="Shifting transformations: turns, or swapped halves. Paper: turns; its author "
        "advises cutperm for PneumoniaMNIST.",
    )
    stem: Literal["cifar", "imagenet"] = Field(
        "imagenet", description="First layers: code: imagenet for 224, cifar for 28 pixels."
    )
    width: int = Field(64, ge=4, description="Channels of ResNet-18's first stage. Paper: 64.")
    projection: int = Field(128, ge=2, description=f"Numbers of the projection. {_CODE}")
    temperature: float = Field(0.5, gt=0, description=f"τ of NT-Xent. {_CODE}")
    exclusion: Literal["shifted_removed", "naive"] = Field(
        "shifted_removed",
        description="An image and its own dissolved one: neither alike nor different, or (naive) "
        "different. Code: shifted_removed.",
    )
    divisor: Literal["pairs", "images"] = Field(
        "pairs", description="Of the sum over positive pairs: paper: pairs; code: all images."
    )
    crop: tuple[float, float] = Field(
        (0.08, 1.0), description=f"Share of the area that crops keep in training. {_CODE}"
    )
    train_batch: int = Field(
        32, ge=1, description="Images per step; the network sees 12 of each. Paper: 32."
    )
    learning_rate: float = Field(0.1, gt=0, description="Of LARS, before the warm-up. Code: 0.1.")
    warmup_factor: float = Field(10.0, ge=1, description=f"By what the warm-up raises it. {_CODE}")
    warmup_share: float = Field(
        0.01, ge=0, lt=1, description="Of all steps. Code: 10 of 1,000 epochs."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description=f"Of LARS. {_CODE}")
    weight_decay: float = Field(1e-6, ge=0, description=f"Of LARS, on all weights. {_CODE}")
    trust: float = Field(0.001, gt=0, description=f"Trust coefficient of LARS. {_CODE}")
    epochs: int = Field(1000, ge=1, description="Code: 1000.")
    iterations: int = Field(200, ge=1, description=f"Most steps of an epoch. {_CODE}")
    max_steps: int | None = Field(
        None, ge=1, description="Steps in all, in place of epochs. Our option."
    )
    select: Literal["last", "synthetic", "labelled"] = Field(
        "last",
        description="Whose weights are kept. last: the last step's. synthetic: those of the best "
        "AUROC of healthy images against the same with synthetic anomalies, kept out of the "
        "contrast (ours). labelled: of the best AUROC on labelled images that are handed in, the "
        "code's rule on the test set: figures on those images, and on their like, are too high.",
    )
    select_every: int | None = Field(
        None, ge=1, description="Steps between looks; default: a tenth of all. Code: an epoch."
    )
    select_share: float = Field(
        0.2, gt=0, lt=1, description="Of the healthy images, what select=synthetic looks at. Ours."
    )
    select_views: int = Field(
        2, ge=1, description="Views of an image and shift at a look. Code: 10; ours saves time."
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Of the contrast's products in training, by autocast. Code: float32. The "
        "diffusion model always trains in float32: mixed precision did not converge (code).",
    )

    views: int = Field(
        10, ge=1, description="Views of an image and shift that are scored. Paper: 10."
    )
    view_scale: tuple[float, float] = Field(
        (0.54, 0.54), description="Share of the area that their crops keep. Code: 0.54."
    )
    map: Literal["none", "dissolve"] = Field(
        "none",
        description="The paper has no map. dissolve: |x - dissolve(x)|, which is not the paper's "
        "and no part of the score.",
    )
    map_t: int = Field(100, ge=0, lt=1000, description="Time step of map=dissolve. Ours.")
    memory_budget: int = Field(
        8 * 2**30, ge=2**20, description="Bytes of images in memory; beyond, they are on disk."
    )

    def of_diffusion(self) -> dict[str, Any]:
        """The settings that the diffusion model's training depends on, as JSON has them."""
        settings = self.model_dump(mode="json")
        return {k: v for k, v in settings.items() if k.startswith(_OF_DIFFUSION)}

    @model_validator(mode="after")
    def _fits(self) -> DIAConfig:
        for name in ("crop", "view_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name}={low},{high}: want shares in order, above 0 and up to 1")
        if self.t_upper <= self.t_offset or self.t_scale * self.t_upper > 1000:
            raise ValueError(
                f"t_offset={self.t_offset}, t_upper={self.t_upper}, t_scale={self.t_scale}: want "
                "t_offset < t_upper and t_scale * t_upper <= 1000"
            )
        if self.map == "dissolve" and self.dissolve == "none":
            raise ValueError("map=dissolve needs dissolve=diffusion or dissolve=blur")
        return self
