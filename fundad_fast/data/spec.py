# SPDX-License-Identifier: Apache-2.0
"""The input specification of a model: how pixels of a file become the numbers a method sees."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator


class InputSpec(BaseModel):
    """How images are prepared; stored with the model, so that scoring repeats what fitting did.

    Frozen; an unknown key or a value out of range raises ``pydantic.ValidationError``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(
        ge=16, le=8192, description="Side of the square that images are resized to, in pixels."
    )
    channels: Literal["rgb", "grey"] = Field(
        default="rgb", description="Colour channels of the images the model learned from."
    )
    bit_depth: Literal[8, 16, 32] = Field(
        default=8,
        description="Bits per sample of the images the model learned from; 32 is float.",
    )
    white_level: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Sample value that becomes 1.0; by default 255, 65535 or 1.0 (float). "
        "For example 4095 for 12 bits kept in 16. A larger sample is that image's error.",
    )
    fov: Literal["auto", "none"] = Field(
        default="auto",
        description="auto: find the fundus field of view, and refuse an image without one; "
        "none: the whole frame counts.",
    )
    fov_crop: bool = Field(
        default=False,
        description="Crop to the square around the field of view (needs fov=auto).",
    )
    fov_erode: float = Field(
        default=0.03,
        ge=0,
        lt=0.5,
        description="Width of the rim of the field of view that is not scored, as a fraction of "
        "its radius.",
    )
    mixed_inputs: Literal["error", "convert"] = Field(
        default="error",
        description="error: images with other channels or bit depth are refused; convert: grey is "
        "repeated, colour becomes luminance, every bit depth is scaled to [0, 1].",
    )
    pages: Literal["one", "first"] = Field(
        default="one",
        description="one: a TIFF with several pages is refused; first: its first page is read.",
    )

    window: (
        Annotated[int, Field(strict=True, ge=0)]
        | tuple[FiniteFloat, Annotated[FiniteFloat, Field(ge=1)]]
        | Literal["none"]
        | None
    ) = Field(
        default=None,
        description="Of grey DICOM: None, the file's first (or its table); k, its k-th from 0, and "
        "a file without is an error; centre and width in rescaled units; none, the whole range "
        "that the stored bits can express.",
    )
    intensity: Literal["range", "equalise"] = Field(
        default="range",
        description="range: samples divided by white; equalise: histogram equalisation with 256 "
        "bins of the image as it was read, grey images only (METHODS: chest X-ray).",
    )
    volume: tuple[int, int, int] | None = Field(
        default=None,
        description="Grid of whole NIfTI volumes: axial slices, rows, columns. None: images, and "
        "the slices of a volume one by one. With a grid, image_size and fov have no meaning.",
    )
    spacing: tuple[float, float, float] | None = Field(
        default=None,
        description="Millimetres between the voxels of that grid, along slices, rows, columns. "
        "Volumes of another spacing are resampled if resample is set, else refused.",
    )
    resample: bool = Field(
        default=False, description="Resample volumes to the spacing (linear, anti-aliased)."
    )

    @property
    def channel_count(self) -> int:
        """1 or 3."""
        return 3 if self.channels == "rgb" else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a prepared image: ``(c, s, s)``, or ``(1, d, h, w)`` of a volume."""
        if self.volume is not None:
            return (1, *self.volume)
        return (self.channel_count, self.image_size, self.image_size)

    @property
    def masked(self) -> bool:
        """Whether prepared images come with a mask."""
        return self.volume is not None or self.fov == "auto"

    @model_validator(mode="after")
    def _volumes_are_grey(self) -> Self:
        if self.volume is None:
            return self
        if min(self.volume) < 8 or max(self.volume) > 1024:
            raise ValueError(f"volume={list(self.volume)}: use a grid of 8 to 1024 voxels a side")
        if self.fov != "none" or self.channels != "grey" or self.intensity != "range":
            raise ValueError("a volume needs fov=none, channels=grey and intensity=range")
        return self

    @model_validator(mode="after")
    def _crop_needs_a_field_of_view(self) -> Self:
        if self.fov_crop and self.fov == "none":
            raise ValueError("fov_crop=true needs fov=auto; set fov=auto or fov_crop=false")
        return self
