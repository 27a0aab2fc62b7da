# SPDX-License-Identifier: Apache-2.0
"""Holes in a grid, whose contents a network guesses from what is around them."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

_CODE = "Lesion2Void's code"


class HoleSettings(BaseModel):
    """Where holes are. Source: Huang et al., ISBI 2022 (Lesion2Void), its public code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: float = Field(
        16 / 224,
        gt=0,
        lt=1,
        description=f"Of a hole, as a share of the image's. {_CODE}: 16 of 224 pixels.",
    )
    period: float = Field(
        48 / 224,
        gt=0,
        lt=1,
        description=f"From one hole to the next, likewise. {_CODE}: 48 of 224 pixels.",
    )
    overlap: int = Field(
        2,
        ge=1,
        le=8,
        description="When scoring, every pixel lies in this many holes squared, at different "
        f"places of theirs. {_CODE}: 2.",
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.side >= self.period:
            raise ValueError("want side < period, so that something is left around a hole")
        return self


def hole_sizes(shape: tuple[int, int], settings: HoleSettings) -> tuple[int, int]:
    """Side and period in pixels of an image ``[h, w]``, at least 1 and 2."""
    least = min(shape)
    side = max(1, round(settings.side * least))
    return side, max(side + 1, round(settings.period * least))


def holes(shape: tuple[int, int], offset: tuple[int, int], settings: HoleSettings) -> Tensor:
    """Bool ``[h, w]``, true in the holes of a grid that is moved by ``offset`` pixels.

    The grid has no beginning: holes are cut by every edge.
    """
    side, period = hole_sizes(shape, settings)
    rows, columns = (
        (torch.arange(n) - start) % period < side for n, start in zip(shape, offset, strict=True)
    )
    return rows[:, None] & columns[None, :]


def all_offsets(shape: tuple[int, int], settings: HoleSettings) -> list[tuple[int, int]]:
    """Offsets of grids whose holes cover every pixel, ``overlap`` times along each axis at most.

    Where the side is no multiple of ``overlap``, some pixels lie in one hole more than others.
    """
    side, period = hole_sizes(shape, settings)
    steps = range(0, period, max(1, side // settings.overlap))
    return [(y, x) for y in steps for x in steps]
