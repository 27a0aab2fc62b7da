# SPDX-License-Identifier: Apache-2.0
"""The settings of "Many tasks make light work", each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ..synthetic import EXTRA_TASKS, TASKS, TaskSettings
from ._base import MethodConfig

_CODE = "Public code."


class ManyTasksConfig(MethodConfig):
    """Tasks, scheme, network, training. "Code" is the authors' public code."""

    image_size: int = Field(
        256, ge=32, le=4096, description="Side of the square input, in pixels. Chest X-rays: 256."
    )
    fov: Literal["auto", "none"] = Field(
        "none",
        description="auto: a fundus photograph, with scores inside its field of view only; none: "
        "the whole frame (all that the paper has).",
    )
    normalise: Literal["range", "zscore"] = Field(
        "range",
        description="range: [0, 1] becomes [-1, 1], the paper's chest X-rays; zscore: mean 0 and "
        "standard deviation 1 inside the mask, its brains.",
    )
    channels: Literal["auto", "rgb", "grey"] = Field(
        "auto",
        description="auto: as the images are; grey: colours become their luminance, which is right "
        "for grey pictures saved as RGB, as synthetic anomalies would colour them. Paper: grey.",
    )
    intensity: Literal["range", "equalise"] = Field(
        "range",
        description="equalise: even out each image's histogram (256 bins) first, grey images only. "
        "Code, chest X-rays.",
    )
    volume: tuple[int, int, int] | None = Field(
        None,
        description="Grid of whole volumes: axial slices, rows, columns; none: images. Paper: "
        "80, 112, 80 at 2 mm. image_size has then no meaning.",
    )
    spacing: tuple[float, float, float] | None = Field(
        None, description="Millimetres between voxels to resample volumes to; none: as they are."
    )
    resample: bool = Field(
        False, description="Resample volumes of another spacing than the first one's."
    )
    flip: bool = Field(
        False, description="Reverse the last axis of every other image. Code, brains: true."
    )

    tasks: tuple[str, ...] = Field(
        TASKS, min_length=1, description=f"Of {', '.join(TASKS + EXTRA_TASKS)}. Paper: the first 5."
    )
    train_tasks: int = Field(
        1,
        ge=1,
        description="Tasks that a model trains on (T); the others validate it, and every choice is "
        "a model. Paper: 1 of 5. All of them: one model, validated on the same tasks. Our option.",
    )
    models: tuple[int, ...] | None = Field(
        None, description="Numbers of the models to train, from 0; none named: all. Our option."
    )
    synthesis: TaskSettings = Field(
        default_factory=lambda: TaskSettings.model_validate({}),
        description="Numbers of the tasks, as in synthesis={g_max: 5, kappa: 0.2}.",
    )

    width: int = Field(32, ge=1, description="Channels at full resolution. Paper: 32.")
    depth: int = Field(
        7, ge=2, le=9, description="Number of resolutions. Paper: 7 for X-rays, 5 for brains."
    )
    widest: int | None = Field(
        None, ge=1, description="Most channels. Code, and by default: 512 in 2-D, 320 in 3-D."
    )
    positions: bool = Field(
        True,
        description="CoordConv and Fourier channels appended to the input. Code. At first these 66 "
        "(67 of volumes) drown an image of one channel: short trainings are better off without.",
    )
    start: Literal["he", "zero"] = Field(
        "he",
        description="Of the last convolution. he: random, as the others, the code's; zero: 0 for "
        "every image, which is nearly right from the start. Our option.",
    )

    train_batch: int = Field(
        50, ge=1, description="Images per step, of all GPUs together. Paper: 50, brains 8."
    )
    learning_rate: float = Field(
        5e-3, gt=0, description="Of AdamW without decay. Paper: 5e-3 for X-rays, 1e-3 for brains."
    )
    warmup_steps: int = Field(100, ge=0, description=f"From a hundredth of the rate up. {_CODE}")
    tenfold_steps: float = Field(
        8000, gt=0, description=f"Steps over which the rate then falls to a tenth. {_CODE}"
    )
    rate_floor: float = Field(
        0.05, gt=0, le=1, description=f"Share of the rate at which it stops falling. {_CODE}"
    )
    max_steps: int = Field(
        100_000, ge=1, description="Steps of a model at the latest. Code: 2,000 epochs alone."
    )
    max_epochs: int | None = Field(2000, ge=1, description=f"Likewise epochs. {_CODE}")
    patience: int | None = Field(
        5000, ge=1, description="A model ends when this many steps made it no better. Paper: 5000."
    )
    validate_every: int | None = Field(
        None, ge=1, description="Steps between validations; none: every epoch. Code: every epoch."
    )
    validate_alike: bool = Field(
        False,
        description="Draw the same anomalies at every validation, so that two differ by the "
        "network alone. Code: anew each time. Our option.",
    )
    clip: float | None = Field(
        None, gt=0, description="Largest norm of the gradient. Code: none. Our option."
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Of products in training, by autocast. Code: float32."
    )
    memory_budget: int = Field(
        8 * 2**30, ge=2**20, description="Bytes of images in memory; beyond, they are on disk."
    )

    @field_validator("tasks")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [task for task in value if task not in TASKS + EXTRA_TASKS]
        if unknown:
            raise ValueError(
                f"no task {', '.join(unknown)}; there are {', '.join(TASKS + EXTRA_TASKS)}"
            )
        if len(set(value)) != len(value):
            raise ValueError("want each task at most once")
        return value

    @model_validator(mode="after")
    def _enough(self) -> ManyTasksConfig:
        from math import comb

        if self.train_tasks > len(self.tasks):
            raise ValueError(
                f"train_tasks={self.train_tasks}, but there are {len(self.tasks)} tasks"
            )
        made = comb(len(self.tasks), self.train_tasks)
        if self.models is not None and (
            not self.models
            or len(set(self.models)) != len(self.models)
            or not all(0 <= number < made for number in self.models)
        ):
            raise ValueError(f"models={self.models}: want different numbers from 0 to {made - 1}")
        return self


_XRAY = {"channels": "grey", "intensity": "equalise"}

_BRAIN = {
    "volume": (80, 112, 80),
    "normalise": "zscore",
    "flip": True,
    "synthesis": {"g_max": 5.0},
    "depth": 5,
    "train_batch": 8,
    "learning_rate": 1e-3,
}

_SMALL = {
    "width": 16,
    "depth": 5,
    "train_batch": 16,
    "learning_rate": 2e-3,
    "tenfold_steps": 2000,
    "validate_alike": True,
    "positions": False,
    "start": "zero",
}

# Of the tables in docs/training.md: minutes on two cores.
_SMALL_XRAY = {
    **_SMALL,
    **_XRAY,
    "image_size": 64,
    "max_steps": 2500,
    "tenfold_steps": 1500,
    "patience": 3000,
    "validate_every": 100,
    "precision": "bfloat16",
}
_SMALL_BRAIN = {
    **_SMALL,
    **_BRAIN,
    "volume": (32, 40, 32),
    "spacing": (5.0, 5.0, 5.0),
    "resample": True,
    "synthesis": {"g_max": 2.0},
    "width": 8,
    "depth": 4,
    "train_batch": 4,
    "learning_rate": 4e-3,
    "max_steps": 1500,
    "tenfold_steps": 1000,
    "patience": 3000,
    "validate_every": 150,
    "precision": "bfloat16",
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": _XRAY,
    "paper-cxr": _XRAY,
    "paper-brain": _BRAIN,
    "small-cxr": _SMALL_XRAY,
    "small-brain": _SMALL_BRAIN,
    "default": {**_SMALL, "max_steps": 4000, "patience": 2000, "validate_every": 100},
    "quick": {
        **_SMALL,
        "image_size": 64,
        "max_steps": 600,
        "warmup_steps": 50,
        "tenfold_steps": 500,
        "validate_every": 100,
    },
    **{
        task: {
            **_SMALL,
            "max_steps": 4000,
            "patience": 2000,
            "validate_every": 100,
            "tasks": (task,),
        }
        for task in ("fpi", "pii", "nsa")
    },
}
